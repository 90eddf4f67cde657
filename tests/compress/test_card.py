"""The model card on its own."""

import json
import re
import shlex
from pathlib import Path

import fake_run
import pytest

from compress.report import write_model_card, write_report
from compress.zoo import published


def test_the_card_names_what_a_threshold_is_compared_with(tmp_path: Path) -> None:
    fake_run.write(tmp_path)
    first, second = (tmp_path / f"artifacts/student_fp32.{name}.json" for name in ("onnx", "tflite"))
    # The same thresholds of another score are other thresholds.
    second.write_text(json.dumps(json.loads(first.read_text()) | {"metric": "euclidean"}))
    card = write_model_card(tmp_path).read_text()
    assert "| artifacts/student_fp32.onnx | cosine | 1e-2 | 0.4121 |" in card
    assert "| artifacts/student_fp32.tflite | minus the Euclidean distance | 1e-2 | 0.4121 |" in card


@pytest.mark.parametrize("setting", ["a=  b", "a=~/_x_", "a=```", "a=1\n````\n2", "a=it's"])
def test_the_card_tells_the_command_as_it_was_typed(setting: str, tmp_path: Path) -> None:
    data = tmp_path / "my  ~_faces_" / "a_b.tar"
    data.parent.mkdir()
    data.write_bytes(b"faces")
    value = fake_run.results()
    typed = ["python", "-m", "compress.pipeline", "--set", setting, "--data"]
    value["run"]["command"] = shlex.join([*typed, str(data)])
    fake_run.write(tmp_path, value)
    card = write_model_card(tmp_path).read_text()
    for text, name in ((card, str(data)), (published(card, [data]), data.name)):
        found = re.search(r"^(`{3,})sh\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
        assert found
        assert shlex.split(found[2]) == [*typed, name]


@pytest.mark.parametrize("people", [10, 300])
def test_intervals_from_few_people_are_called_too_narrow(tmp_path: Path, people: int) -> None:
    value = fake_run.results()
    value["data"]["split"]["test_identities"] = people
    fake_run.write(tmp_path, value)
    pages = [write_report(tmp_path).read_text(), write_model_card(tmp_path).read_text()]
    assert [("too narrow" in page) for page in pages] == [people == 10] * 2
