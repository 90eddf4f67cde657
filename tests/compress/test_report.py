"""The report and the model card: what they show, what they leave out, what a hostile name cannot do."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pytest

from compress.report import write_model_card, write_report
from faces.errors import UserError

HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;$\\frac{$ | `_x_`](javascript:1)"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class _Page(html.parser.HTMLParser):
    """Tags, attributes, ids and text of a page; fails on a tag that is closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in ("meta", "img", "wbr", "br", "input", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _report(folder: Path, value: dict[str, Any] | None = None) -> str:
    return write_report(fake_run.write(folder, value)).read_text("utf-8")


def test_the_page_is_well_formed_and_small(tmp_path: Path) -> None:
    text = _report(tmp_path)
    page = _Page(text)
    assert len(page.ids) == len(set(page.ids)), "an id twice"
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {a or b for a, b in targets} <= set(page.ids)
    assert len(text.encode()) < 3_000_000
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 8 * 2 * 4
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    text = _report(tmp_path)
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"""(src|href|action|data|poster)\s*=\s*["']?(?!data:image/|#)[^\s"'>]""", text)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not {tag for tag, _ in _Page(text).tags} & {"script", "link", "iframe", "object", "embed", "form"}


def test_the_banner_is_there_only_for_a_bootstrap(tmp_path: Path) -> None:
    bootstrap = _report(tmp_path / "a", fake_run.results(bootstrap=True))
    trained = _report(tmp_path / "b", fake_run.results(bootstrap=False))
    body = bootstrap[bootstrap.index("<body>") :]
    assert body.index('id="bootstrap"') < body.index("<h1>")
    banner = _Page(body[: body.index("<header>")].removeprefix("<body>").replace('<div class="wrap">', "")).text
    assert "not a trained face-recognition model" in banner
    assert "88.7 % [86.7, 90.5]" in banner
    assert "91.2 %" in banner, "the comparison with the other teacher's student"
    assert "bootstrap" not in _Page(trained).text
    assert 'id="bootstrap"' not in trained


def test_a_bootstrap_without_a_full_size_row_says_so(tmp_path: Path) -> None:
    value = fake_run.results()
    value["accuracy"] = [row for row in value["accuracy"] if row["protocol"] != "full"]
    assert "full-size faces was not measured" in _report(tmp_path, value)
    assert "full-size faces was not measured" in write_model_card(tmp_path).read_text()


def test_every_row_is_in_page_and_card(tmp_path: Path) -> None:
    value = fake_run.results()
    for i, row in enumerate(value["accuracy"] + value["reference"]):
        # Every row a number of its own, so that no row hides behind another's.
        row["accuracy"], row["ci95"] = 60.1 + i, [59.3 + i, 61.7 + i]
    page, card = _Page(_report(tmp_path, value)).text, write_model_card(tmp_path).read_text()
    for row in value["accuracy"]:
        shown = f"{row['accuracy']:.1f} % [{row['ci95'][0]:.1f}, {row['ci95'][1]:.1f}]"
        assert shown in page
        assert shown in card
        low, high = row["tar_ci95"]["1e-2"]
        assert f"{row['tar_at_far']['1e-2']:.1f} % [{low:.1f}, {high:.1f}]" in page
        assert f"{row['tar_at_far']['1e-2']:.1f} % [{low:.1f}, {high:.1f}]" in card
        assert f"{row['eer']:.1f} % [{row['eer_ci95'][0]:.1f}, {row['eer_ci95'][1]:.1f}]" in page
        if row["rank1"] is not None:
            assert f"{row['rank1']:.1f} % [{row['rank1_ci95'][0]:.1f}, 100.0]" in card
    for row in value["reference"]:
        assert f"{row['accuracy']:.1f} % [" in page
    for row in value["throughput"]:
        assert f"{row['faces_per_second']:,.0f}" in page
    for row in value["artifacts"]:
        assert row["path"] in page
        assert row["sha256"][:12] in page
        assert row["path"] in card
    for stage in value["seconds"]:
        assert stage in page
    assert "0.4121" in card
    assert "4500 impostor pairs: 4.5 false matches expected" in card
    assert "no GPU here" in page


def test_the_headline_is_the_student_at_16_px(tmp_path: Path) -> None:
    text = _Page(_report(tmp_path)).text
    head = text[: text.index("All rows")]
    for shown in (
        "108,512",
        "1.47 M",
        "439 kB",
        "86.9 %",
        "10,442",
        "7,420",
        "2 of 3 artifacts passed, 1 not judged",
    ):
        assert shown in head
    value = fake_run.results()
    value["artifacts"][0]["parity"] |= {"passed": False, "reason": "least cosine 0.91"}
    failed = _Page(_report(tmp_path, value)).text
    assert "1 of 3 artifacts passed, 1 failed, 1 not judged" in failed
    assert "✗ failed" in failed


def test_a_teachers_files_are_told_apart_from_the_students(tmp_path: Path) -> None:
    value = fake_run.results()
    for artifact in value["artifacts"]:
        artifact["parity"] |= {"passed": True}
    assert _row(_report(tmp_path, value), "Artifacts equal to the model") == ["✓ passed 3 of 3", "not exported"]
    for precision, size, passed in (("fp32", 22_000_000, True), ("fp16", 11_000, False)):
        parity = {"max_abs": 0.1, "cosine_min": 0.99, "passed": passed, "reason": "least cosine"}
        about = {"path": f"teacher-{precision}.onnx", "model": "teacher", "precision": precision, "bytes": size}
        value["artifacts"].append(value["artifacts"][0] | about | {"parity": parity})
    page = _report(tmp_path, value)
    assert _row(page, "Artifacts equal to the model") == ["✓ passed 3 of 3", "✗ failed 1 of 2"]
    assert _row(page, "Size") == ["271 kB artifacts/student_fp16.engine, fp16", "22 MB teacher-fp32.onnx, fp32"]
    tiles = re.sub(r"\s*\n\s*", "", _Page(page).text)
    assert "Smallest artifact271 kBtensorrt, fp16" in tiles
    assert "Paritypassed3 of 3 artifacts passed1 of 2 teacher artifacts passed, 1 failed" in tiles


@pytest.mark.parametrize("some", [True, False])
def test_files_of_the_teacher_that_missed_are_counted_and_listed(some: bool, tmp_path: Path) -> None:
    value = fake_run.results()
    if some:
        value["artifacts"].append(value["artifacts"][0] | {"path": "teacher.onnx", "model": "teacher"})
    about = {"format": "onnx", "precision": "int8"}
    value["misses"] = [
        about | {"path": "teacher-int8-cpu.onnx", "reason": "least cosine 0.9", "differs": True},
        about | {"path": "teacher-int8-tensorrt.onnx", "reason": "no faces"},
    ]
    page = _report(tmp_path, value)
    told = "✓ passed 1 of 3, 2 missed" if some else "0 of 2, all missed"
    assert _row(page, "Artifacts equal to the model")[1] == told
    assert f"{int(some)} of {2 + some} teacher artifacts passed, 2 missed" in " ".join(_Page(page).text.split())
    card = write_model_card(tmp_path).read_text()
    for path, verdict, why in (
        ("teacher-int8-cpu.onnx", "not equal to its model", "least cosine 0.9"),
        ("teacher-int8-tensorrt.onnx", "could not be made", "no faces"),
    ):
        assert f"| {path} | onnx, int8 | n/a | {verdict} | n/a | {why} |" in card
        row = page.partition(f'<th scope="row">{path}</th>')[2].partition("</tr>")[0]
        assert f"<td>{verdict}</td>" in row
        assert why in row


def test_the_speed_shown_is_of_a_file_that_passed(tmp_path: Path) -> None:
    value = fake_run.results()
    value["artifacts"][0]["parity"] |= {"passed": False, "reason": "least cosine 0.91"}
    page = _report(tmp_path, value)
    tiles = re.sub(r"\s*\n\s*", "", _Page(page).text)
    assert "Faces a second8,106cpu, 1 thread, batch 32" in tiles
    assert _row(page, "Faces a second, best")[0].startswith("8,106 artifacts/student_fp32.tflite")
    value["artifacts"][1]["parity"] |= {"passed": False, "reason": "least cosine 0.91"}
    assert _row(_report(tmp_path, value), "Faces a second, best")[0].startswith("10,442 artifacts/student_fp32.onnx")


def test_people_who_are_not_strangers_are_not_called_others(tmp_path: Path) -> None:
    value = fake_run.results()
    for leaks in (0, 3):
        value["data"]["split"]["leaks"] = leaks
        page = _report(tmp_path, value)
        for told in (page, write_model_card(tmp_path).read_text()):
            assert ("10 other people" in told, "10 people, not all of them strangers" in told) == (
                not leaks,
                bool(leaks),
            )


def _row(page: str, title: str) -> list[str]:
    """The cells of a row of the headline table, as text."""
    row = page.partition(f'<th scope="row">{title}</th>')[2].partition("</tr>")[0]
    return [" ".join(re.sub("<[^>]+>", "", cell).split()) for cell in row.split("</td>")[:-1]]


def test_an_earlier_runs_fine_tuning_is_not_drawn(tmp_path: Path) -> None:
    value = fake_run.results()
    fake_run.write(tmp_path, value)
    (tmp_path / "finetune.csv").write_text("step,loss,lr\n1,3.0,0.1\n2,2.0,0.05\n")
    assert 'id="finetune"' not in write_report(tmp_path).read_text()
    value["teacher"] |= {"method": "full", "finetuned": {"steps": 2, "trained": 10}}
    page = _report(tmp_path, value)
    assert 'id="finetune"' in page
    assert "of the fine-tuning" in page


def test_decisions_are_marked_in_words(tmp_path: Path) -> None:
    text = _report(tmp_path)
    strip = fake_run.strip()
    right = int((strip["decision"] == strip["same"][:, None]).sum())
    assert 0 < right < 32
    assert text.count("✓ right") == right
    assert text.count("✗ wrong") == 32 - right
    assert text.count("says same") == int(strip["decision"].sum())
    at_8 = int((strip["decision"][:, 3] == strip["same"]).sum())
    assert f"{at_8} of 8 at 8 px" in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    value = fake_run.results()
    value["teacher"] |= {"name": HOSTILE, "source": HOSTILE, "method": HOSTILE, "licence": HOSTILE}
    value["student"] |= {"name": HOSTILE, "loss": HOSTILE}
    for row in value["accuracy"] + value["reference"]:
        row |= {"data": HOSTILE, "split": HOSTILE}
    value["accuracy"][0]["model"] = value["reference"][0]["model"] = value["reference"][0]["source"] = HOSTILE
    value["artifacts"][1] |= {"path": HOSTILE, "format": HOSTILE, "precision": HOSTILE}
    value["artifacts"][2]["parity"]["reason"] = HOSTILE
    for row in value["throughput"]:
        row |= {"artifact": HOSTILE, "runtime": HOSTILE, "device": HOSTILE, "preprocessing": HOSTILE}
    value["misses"] = [{"path": HOSTILE, "format": HOSTILE, "precision": HOSTILE, "reason": HOSTILE}]
    value["seconds"] = {HOSTILE: 1.0}
    value["run"] |= {"command": HOSTILE, "started": HOSTILE, "cpu": HOSTILE, "git": HOSTILE,
                     "warnings": [HOSTILE], "seeds": {HOSTILE: 1}, "versions": {HOSTILE: HOSTILE},
                     "config": {HOSTILE: HOSTILE}}  # fmt: skip
    value["data"] = {"public": value["data"]["public"] | {"name": HOSTILE, "licence": HOSTILE},
                     "skipped": {HOSTILE: 1}, "landmark_misses": [HOSTILE]}  # fmt: skip
    fake_run.write(tmp_path, value)
    strip = fake_run.strip()
    np.savez(tmp_path / "strip.npz", **(strip | {"names": np.array([HOSTILE] * 8)}))
    sidecar = tmp_path / "artifacts/student_fp32.onnx.json"
    sidecar.write_text(sidecar.read_text().replace('"orl"', json.dumps(HOSTILE)))
    text = write_report(tmp_path).read_text("utf-8")
    page = _Page(text)
    assert not {tag for tag, _ in page.tags} & {"script"}
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert HOSTILE in page.text
    card = write_model_card(tmp_path).read_text("utf-8")
    block = f"```sh\n{HOSTILE}\n```\n"
    assert block in card
    card = card.replace(block, "")
    assert "<" not in card
    assert "`_x_" not in card.replace("\\`", "")
    assert not re.search(r"(?<!\\)\]\(", card)
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {6, 7, 11}


def test_a_bare_run_says_what_is_missing(tmp_path: Path) -> None:
    value = fake_run.results(bootstrap=False)
    for key in ("run", "data", "reference"):
        del value[key]
    value |= {"accuracy": [], "artifacts": [], "throughput": [], "seconds": {}}
    (tmp_path / "results.json").write_text(json.dumps(value))
    text = _Page(write_report(tmp_path).read_text()).text
    for missing in ("No accuracy was measured", "No example faces", "No speed was measured",
                    "Nothing was exported", "No times were recorded", "were not recorded"):  # fmt: skip
        assert missing in text
    assert "Not measured." in write_model_card(tmp_path).read_text()


def test_partial_rows_do_not_stop_the_report(tmp_path: Path) -> None:
    value = fake_run.results()
    value["accuracy"] = [row | {"roc": None} for row in value["accuracy"] if row["protocol"] == "same@16"]
    # A set of which only an artifact was tested has nothing to draw; of a speed only the rate is known.
    value["accuracy"].append(value["accuracy"][-1] | {"data": "another"})
    value["reference"] = []
    value["throughput"] = [
        value["throughput"][0] | {"iqr": None, "p50_ms": None, "p99_ms": None, "peak_gops": None, "share": None}
    ]
    fake_run.write(tmp_path, value)
    (tmp_path / "strip.npz").unlink()
    (tmp_path / "curves.csv").write_text("step,loss\n0,1.0\n40,0.5\n80,0.")
    text = write_report(tmp_path).read_text()
    assert "No ROC curve was stored" in text
    assert "No cross@p row was measured" in text
    assert "1 unreadable line" not in text, "0. is a number"
    (tmp_path / "curves.csv").write_text("step,loss\n0,1.0\n40,0.5\n80")
    assert "1 unreadable line left out" in write_report(tmp_path).read_text()
    (tmp_path / "curves.csv").write_text("step,loss\n0,1e308\n40,-1e308\n80,1\n" + "9" * 200_000 + ",1\n")
    assert "fewer than two readable points" in write_report(tmp_path).read_text()
    (tmp_path / "curves.csv").write_text("step,loss\n0,nan\n")
    assert "fewer than two readable points" in write_report(tmp_path).read_text()


def test_the_roc_has_no_point_at_zero(tmp_path: Path) -> None:
    value = fake_run.results()
    for row in value["accuracy"]:
        row["roc"] = {"fmr": [0.0, 0.0], "tmr": [0.0, 0.5]}
    value["reference"] = []
    assert "No ROC curve was stored" in _report(tmp_path, value), "zeros cannot stand on a log axis"


@pytest.mark.parametrize("damage", ["cut", "shape", "missing", "pickle"])
def test_a_damaged_strip_is_told_on_the_page(damage: str, tmp_path: Path) -> None:
    fake_run.write(tmp_path)
    file, strip = tmp_path / "strip.npz", fake_run.strip()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    elif damage == "shape":
        np.savez(file, **(strip | {"score": strip["score"][:3]}))
    elif damage == "missing":
        np.savez(file, **{key: value for key, value in strip.items() if key != "shown"})
    else:
        np.savez(file, **(strip | {"names": strip["names"].astype(object)}), allow_pickle=True)
    assert "strip.npz could not be read" in write_report(tmp_path).read_text()


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (fake_run.write(tmp_path / name) for name in ("a", "b"))
    assert write_report(first).read_bytes() == write_report(second).read_bytes()
    assert write_model_card(first).read_bytes() == write_model_card(second).read_bytes()
    before = (first / "report.html").read_bytes()
    code = "import sys, pathlib, compress.report as r; r.write_report(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(first)], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert (first / "report.html").read_bytes() == before


def test_wrong_files_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json"):
        write_report(tmp_path)
    fake_run.write(tmp_path)
    (tmp_path / "artifacts/student_fp32.onnx.json").write_text("{")
    with pytest.raises(UserError, match=r"student_fp32\.onnx\.json is no sidecar"):
        write_model_card(tmp_path)


PROBE = """<!DOCTYPE html><body style="margin:0"><iframe id="f" src="report.html"
style="border:0;width:{width}px;height:900px"></iframe><pre id="out"></pre><script>
f.onload = () => {{ const page = f.contentDocument.documentElement,
  wide = [...f.contentDocument.querySelectorAll('*')]
  .filter(e => !e.closest('.scroll *, pre, svg *') && e.getBoundingClientRect().right > {width} + 0.5)
  .map(e => e.tagName + '.' + e.className);
  out.textContent = JSON.stringify({{scroll: page.scrollWidth, client: page.clientWidth, wide}}); }}
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("name", ["tiny16", "a_student_with_a_long_name_and_no_space_in_it_" * 4])
def test_nothing_overflows_the_width(width: int, name: str, tmp_path: Path) -> None:
    value = fake_run.results()
    value["student"]["name"] = name
    _report(tmp_path, value)
    (tmp_path / "probe.html").write_text(PROBE.format(width=width))
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000", "--hide-scrollbars", "--virtual-time-budget=5000",
            "--dump-dom", (tmp_path / "probe.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    seen = json.loads(found[1])
    assert seen["client"] == width
    assert seen["scroll"] <= seen["client"]
    assert seen["wide"] == []
