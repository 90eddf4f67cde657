"""Numbers and names as the report and the model card write them."""

import json
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

NONE = "n/a"


def percent(value: float | None) -> str:
    """`91.2 %`, or n/a."""
    return NONE if value is None else f"{value:.1f} %"


def interval(value: float | None, ci95: Sequence[float] | None) -> str:
    """`91.2 % [89.9, 92.4]`, without an interval `91.2 %`, or n/a."""
    return percent(value) if ci95 is None else f"{percent(value)} [{ci95[0]:.1f}, {ci95[1]:.1f}]"


def short(value: float | None) -> str:
    """Three digits and a thousands unit: `1.47 M`."""
    if value is None:
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.3g}"


def digits(value: float | None) -> str:
    """Three significant digits, never an exponent for what fits a table: `12,346`, `0.0812`, `2.1e-07`."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def count(value: int | None) -> str:
    """`108,512`."""
    return NONE if value is None else f"{value:,}"


def size(value: float) -> str:
    """Bytes in decimal units: `436 kB`."""
    return f"{short(value)}B" if value >= 1e3 else f"{value:.0f} bytes"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def spread(iqr: float | list[float] | None) -> str:
    """Interquartile range, or both quartiles in brackets."""
    return f"[{digits(iqr[0])}, {digits(iqr[1])}]" if isinstance(iqr, list) else digits(iqr)


def preprocessing(value: bool | str) -> str:
    """Whether a timed call pre-processes."""
    return value if isinstance(value, str) else ("inside" if value else "not inside")


def pretty(value: Any) -> str:
    """Indented JSON, keys in their order."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def breakable(path: str) -> Markup:
    """A path, escaped, that a page may break after a slash."""
    return Markup("/<wbr>").join(str(path).split("/"))


def markdown(text: object) -> str:
    """User text as plain Markdown text on one line: nothing in it is markup, HTML or a table's border."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = re.sub(r"&(?=[#\w]+;)", "&amp;", line).replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def code_block(text: str) -> str:
    """User text, unaltered, as a fenced Markdown block: its fence is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}sh\n{text}\n{fence}"


FILTERS = {
    function.__name__: function
    for function in (
        percent, short, digits, count, size, duration, spread, preprocessing, pretty, breakable, markdown,
        code_block,
    )
}  # fmt: skip
