import hashlib
import itertools
import json
import re
import shlex

import pytest
from click.testing import CliRunner
from fake_run import results
from safetensors.torch import save_file

from compress import zoo
from compress.config import load_config
from compress.results import Results
from students.registry import create_student


def test_a_card_tells_files_by_name_and_hash_and_never_where_they_lay(tmp_path):
    first, second = tmp_path / "my_faces" / "a.tar", tmp_path / "my_faces" / "pairs.csv"
    first.parent.mkdir()
    first.write_bytes(b"faces")
    second.write_bytes(b"pairs")
    escaped = str(second).replace("_", "\\_")
    card = f"# tiny16\nMade by: pipeline --data {first} --set data.pairs={escaped}\n"
    found = zoo.published(card, [first, second])
    assert str(tmp_path) not in found
    assert "pipeline --data a.tar --set data.pairs=pairs.csv" in found
    assert "Data: research only." in zoo.published(f"Data: {zoo.USER_DATA}.", [], "research only")
    assert f"| a.tar | 5 | `{hashlib.sha256(b'faces').hexdigest()}` |" in found


def test_a_card_tells_no_folder_of_data_and_no_first_weights(tmp_path):
    shards, start = tmp_path / "private" / "shards", tmp_path / "private" / "start.safetensors"
    shards.mkdir(parents=True)
    (shards / "a.tar").write_bytes(b"faces")
    start.write_bytes(b"weights")
    found = results()
    found["run"]["config"] = {"data": {"public": [str(shards), "."]}, "distill": {"weights": str(start)}}
    files = zoo.data_files(Results.model_validate(found))
    card = zoo.published(f"Made by: pipeline --data {shards} --student-weights {start}", files)
    assert "Made by: pipeline --data shards --student-weights start.safetensors" in card
    assert str(tmp_path) not in card
    for name, content in (("a.tar", b"faces"), ("start.safetensors", b"weights")):
        assert f"| {name} | {len(content)} | `{hashlib.sha256(content).hexdigest()}` |" in card


@pytest.mark.parametrize("card", sorted(zoo.ZOO.glob("*.md")), ids=lambda card: card.stem)
def test_the_command_of_a_shipped_card_is_taken_as_it_stands(card):
    words = shlex.split(re.search(r"Made by:\n\n```sh\n(.*)\n```", card.read_text()).group(1))
    settings = [after for word, after in itertools.pairwise(words) if word == "--set"]
    config = load_config("standard", None, {"distill.student": card.stem}, settings)
    assert config.export.precisions == ("fp32", "fp16", "int8")


def test_a_folder_that_is_no_run(tmp_path):
    done = CliRunner().invoke(zoo.main, [str(tmp_path)])
    assert done.exit_code == 2
    assert "results.json" in done.output


@pytest.mark.parametrize(
    ("distill", "report", "said"),
    [
        ("2026-01-02T03:04:05+00:00", "2026-01-02T03:05:00+00:00", None),
        ("2026-01-02T03:06:00+00:00", "2026-01-02T03:05:00+00:00", "newer than its report"),
        ("2026-01-02T03:04:05+00:00", None, "stage report"),
    ],
)
def test_a_student_is_published_with_its_own_card_alone(tmp_path, monkeypatch, distill, report, said):
    run, shelf = tmp_path / "run", tmp_path / "zoo"
    (run / "stages").mkdir(parents=True)
    found = results()
    found["run"]["config"]["data"] = {"public": ["orl"]}
    (run / "results.json").write_text(json.dumps(found))
    (run / "MODEL_CARD.md").write_text("# tiny16")
    save_file(create_student("tiny16").state_dict(), run / "student.safetensors")
    for stage, ended in (("distill", distill), ("report", report)):
        if ended:
            (run / f"stages/{stage}.json").write_text(json.dumps({"ended": ended}))
    monkeypatch.setattr(zoo, "ZOO", shelf)
    done = CliRunner().invoke(zoo.main, [str(run)])
    assert (done.exit_code, shelf.exists()) == ((0, True) if said is None else (2, False)), (
        done.exception or done.output
    )
    assert said is None or said in done.output
