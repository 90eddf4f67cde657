"""Rows of speed as a table: in the terminal, and as Markdown for a page that names the command above it."""

from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.paper import FACES_PER_SECOND, MEMORY_MB, SOURCE

Row = dict[str, Any]
_LEFT = ("artifact", "runtime", "precision", "pre-processing")


def terminal(rows: Sequence[Row]) -> Table:
    """The plain table of one thread count, at most 80 characters wide."""
    first = rows[0]
    title = f"{first['device']}, {first['threads']} thread(s), sgemm peak {_peak(rows)} GFLOP/s"
    # Without rules between the columns it fits 80 characters.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("artifact", "runtime", "batch", "faces/s", "iqr", "p50 ms", "p99 ms", "of peak"):
        table.add_column(heading, justify="left" if heading in _LEFT else "right")
    for row in rows:
        table.add_row(
            row["artifact"],
            row["runtime"].split()[0],
            str(row["batch"]),
            f"{row['faces_per_second']:,.0f}",
            f"{row['iqr']:,.0f}",
            f"{row['p50_ms']:.3f}",
            f"{row['p99_ms']:.3f}",
            _percent(row["share"]),
        )
    return table


def _peak(rows: Sequence[Row]) -> str:
    floats = [row["peak_gops"] for row in rows if row["precision"] not in ("int8", "bf16")]
    return f"{floats[0]:.0f}" if floats else "not asked,"


FULL: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("artifact", lambda row: row["artifact"]),
    ("runtime", lambda row: row["runtime"].split()[0]),
    ("precision", lambda row: row["precision"]),
    ("threads", lambda row: str(row["threads"])),
    ("batch", lambda row: f"{row['batch']:,}"),
    ("pre-processing", lambda row: "outside" if row["preprocessing"] is False else str(row["preprocessing"])),
    ("faces/s", lambda row: f"{row['faces_per_second']:,.0f}"),
    ("iqr", lambda row: f"{row['iqr']:,.0f}"),
    ("of peak", lambda row: _percent(row["share"])),
    ("faces/s, free core", lambda row: _free(row["scaled"]) if "scaled" in row else "-"),
    ("of peak, free core", lambda row: _percent(row["scaled"]["share"]) if "scaled" in row else "-"),
    ("p50 / p90 / p99 ms hot", lambda row: _percentiles(row.get("hot"))),
    ("after 20 ms pause", lambda row: _percentiles(row.get("paused"))),
    ("passes", lambda row: "agree" if row.get("passes", {}).get("agree") else _apart(row)),
)


def markdown(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """A Markdown table of full rows; columns: headings of `FULL`, all by default."""
    chosen = [(name, of) for name, of in FULL if columns is None or name in columns]
    lines = ["| " + " | ".join(name for name, _ in chosen) + " |"]
    lines.append("|" + "|".join("---" if name in _LEFT else "--:" for name, _ in chosen) + "|")
    lines += ["| " + " | ".join(of(row) for _, of in chosen) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def against_paper(rows: Sequence[Row], memory_rows: Sequence[Row] = ()) -> str:
    """Best row of one thread at batch 1 and at any batch by student, the paper's figure for its size beside it."""
    lines = [
        "| student | px | faces/s, batch 1 | best | by | of peak | paper (2.6 GHz core) | times | all / arena kB |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    plain = [row for row in rows if row["threads"] == 1 and row["preprocessing"] is False]
    for px, name in sorted({(row["input_px"], network(row)) for row in plain}):
        of_px = [row for row in plain if (row["input_px"], network(row)) == (px, name)]
        best = max(of_px, key=_rate)
        ones = [row for row in of_px if row["batch"] == 1]
        paper = FACES_PER_SECOND["one 2.6 GHz core"].get(px)
        found = next((one for one in memory_rows if "all_bytes" in one and network(one) == name), None)
        lines.append(
            f"| {name} | {px} | {f'{max(map(_rate, ones)):,.0f}' if ones else '-'} | {_rate(best):,.0f} | "
            f"{_by(best)} | "
            f"{_percent(best['share'])} | {paper or '-'} | {f'{_rate(best) / paper:,.0f}' if paper else '-'} | "
            + (f"{found['all_bytes'] / 1e3:,.0f} / {found['arena_bytes'] / 1e3:,.0f} |" if found else "- |")
        )
    return "\n".join(lines) + f"\n\nThe paper's column: {SOURCE}, another machine.\n"


def network(row: Row) -> str:
    """What an artifact's name begins with: `tiny16` of `tiny16-int8-cpu.onnx`."""
    return row["artifact"].partition(".")[0].partition("-")[0]


def memory(rows: Sequence[Row]) -> str:
    """Activation bytes a face; empty for no rows."""
    if not rows:
        return ""
    lines = [
        "| artifact | runtime | px | activations, kB | arena at least, kB | process grew, kB a face | paper, kB |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        graph = [f"{row[name] / 1e3:,.1f}" if name in row else "-" for name in ("all_bytes", "arena_bytes")]
        paper = f"{MEMORY_MB[row['input_px']] * 1e3:,.0f}" if row["input_px"] in MEMORY_MB else "-"
        lines.append(
            f"| {row['artifact']} | {row['runtime'].split()[0]} | {row['input_px']} | {graph[0]} | {graph[1]} | "
            f"{row['grown_bytes'] / 1e3:,.1f} | {paper} |"
        )
    return "\n".join(lines) + "\n"


def loadgen(rows: Sequence[Row]) -> str:
    """LoadGen's figures; empty for no rows."""
    if not rows:
        return ""
    lines = [
        "| LoadGen | artifact | runtime | batch | faces/s | p50 / p90 / p99 ms | seconds | its verdict |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        length = "" if row["official_length"] else ", shorter than the rule book's 600 s"
        latency = "-" if row["p50_ms"] is None else _percentiles(row)
        rate = "-" if row["faces_per_second"] is None else f"{row['faces_per_second']:,.0f}"
        lines.append(
            f"| {row['scenario']} | {row['artifact']} | {row['runtime'].split()[0]} | {row['batch']} | {rate} | "
            f"{latency} | {row['seconds']:g} | {'valid' if row['valid'] else 'invalid'}{length} |"
        )
    return "\n".join(lines) + "\n"


def _rate(row: Row) -> float:
    return row["faces_per_second"]


def _by(row: Row) -> str:
    return f"{row['runtime'].split()[0]} {row['precision']}, batch {row['batch']}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _free(scaled: dict[str, float | None]) -> str:
    rate = scaled["faces_per_second"]
    return "-" if rate is None else f"{rate:,.0f}"


def _percentiles(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['p50_ms']:.3f} / {found['p90_ms']:.3f} / {found['p99_ms']:.3f}"


def _apart(row: Row) -> str:
    if "passes" not in row:
        return "one"
    first, second = row["passes"]["medians"]
    return f"{abs(first - second) / max(first, second):.0%} apart"
