"""results.json, schema 1: a good file is taken, every kind of bad one is refused with its field named."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import pytest
from pydantic import ValidationError

from compress import results
from compress.result_artifacts import Price
from faces.errors import UserError

REQUIRED = {
    "": ("schema", "teacher", "student", "accuracy", "artifacts", "throughput", "seconds"),
    "teacher": ("name", "source", "bootstrap", "method", "params"),
    "student": ("name", "params", "macs", "mode", "loss"),
    "accuracy": (
        "model", "data", "split", "protocol", "accuracy", "ci95", "pairs", "folds", "rank1", "tar_at_far",
    ),
    "artifacts": ("path", "format", "precision", "bytes", "sha256", "parity"),
    "parity": ("max_abs", "cosine_min", "passed", "reason"),
    "throughput": (
        "artifact", "runtime", "device", "threads", "batch", "precision", "input_px", "preprocessing",
        "faces_per_second", "iqr", "p50_ms", "p99_ms", "peak_gops", "share",
    ),
}  # fmt: skip


def _part(value: dict[str, Any], name: str) -> dict[str, Any]:
    part = {"": value, "parity": value["artifacts"][0]}.get(name, value.get(name))
    part = part[0] if isinstance(part, list) else part
    return part["parity"] if name == "parity" else part


def test_a_good_file_is_taken_whole(tmp_path: Path) -> None:
    value = fake_run.results()
    file = tmp_path / "results.json"
    file.write_text(json.dumps(value))
    loaded = results.load(file)
    assert loaded == results.validate(value)
    assert loaded.model_dump(by_alias=True, exclude_unset=True) == value


def test_the_least_file_of_the_schema_is_taken() -> None:
    value = fake_run.results()
    for key in ("run", "data", "reference"):
        del value[key]
    for row in value["accuracy"]:
        for key in ("rank1_ci95", "tar_ci95", "eer", "eer_ci95", "roc", "std_folds"):
            del row[key]
    for key in ("macs", "input_px", "embedding_dim", "licence"):
        del value["teacher"][key]
    assert results.validate(value).run is None


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in REQUIRED.items() for key in keys])
def test_each_required_field_is_required(part: str, key: str, tmp_path: Path) -> None:
    value = fake_run.results()
    del _part(value, part)[key]
    (tmp_path / "results.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=rf"{key}: Field required"):
        results.load(tmp_path / "results.json")


def _set(part: str, key: str, new: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: _part(value, part).__setitem__(key, new)


BAD = {
    "accuracy above 100": _set("accuracy", "accuracy", 100.1),
    "accuracy below 0": _set("accuracy", "accuracy", -0.1),
    "accuracy as text": _set("accuracy", "accuracy", "91.2"),
    "interval above the value": _set("accuracy", "ci95", [89.5, 92.0]),
    "interval below the value": _set("accuracy", "ci95", [80.0, 89.0]),
    "interval upside down": _set("accuracy", "ci95", [92.0, 88.0]),
    "interval of three": _set("accuracy", "ci95", [80.0, 90.0, 95.0]),
    "interval beyond 100": _set("accuracy", "ci95", [88.0, 101.0]),
    "interval of rank-1 beside it": _set("accuracy", "rank1_ci95", [1.0, 2.0]),
    "interval of an EER that is none": _set("accuracy", "eer", None),
    "interval of a TAR beside it": _set("accuracy", "tar_ci95", {"1e-2": [1.0, 2.0]}),
    "interval of a TAR that is none": _set("accuracy", "tar_ci95", {"1e-3": [1.0, 2.0]}),
    "interval of a TAR at another FAR": _set("accuracy", "tar_ci95", {"1e-4": [1.0, 2.0]}),
    "unknown protocol": _set("accuracy", "protocol", "same@"),
    "resolution of 0": _set("accuracy", "protocol", "same@0"),
    "FAR that is none": _set("accuracy", "tar_at_far", {"often": 90.0}),
    "FAR of 0": _set("accuracy", "tar_at_far", {"0": 90.0}),
    "ROC of two lengths": _set("accuracy", "roc", {"fmr": [0.1, 1.0], "tmr": [1.0]}),
    "ROC too long": _set("accuracy", "roc", {"fmr": [0.5] * 201, "tmr": [0.5] * 201}),
    "ROC that falls": _set("accuracy", "roc", {"fmr": [0.1, 1.0], "tmr": [1.0, 0.9]}),
    "ROC in percent": _set("accuracy", "roc", {"fmr": [0.1, 100.0], "tmr": [0.9, 1.0]}),
    "unknown schema": _set("", "schema", 2),
    "schema as text": _set("", "schema", "1"),
    "unknown key": _set("", "accuracies", []),
    "unknown key in a row": _set("accuracy", "acc", 90.0),
    "unknown mode": _set("student", "mode", "sd"),
    "count with a fraction": _set("student", "params", 108_512.5),
    "bootstrap as a number": _set("teacher", "bootstrap", 1),
    "sha256 too short": _set("artifacts", "sha256", "3f"),
    "parity failed without a reason": _set("parity", "passed", False),
    "parity not judged without a reason": _set("parity", "passed", None),
    "cosine above 1": _set("parity", "cosine_min", 1.1),
    "no thread": _set("throughput", "threads", 0),
    "speed of 0": _set("throughput", "faces_per_second", 0),
    "time below 0": _set("seconds", "data", -1.0),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_bad_value_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    value = fake_run.results()
    results.validate(copy.deepcopy(value))
    change(value)
    with pytest.raises(ValueError, match="validation error"):
        results.validate(value)


def test_not_a_number_is_refused() -> None:
    value = fake_run.results()
    value["throughput"][0]["p50_ms"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.validate(value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\x00\xff"])
def test_a_file_that_is_none_is_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match=r"results\.json is no results\.json of schema 1"):
        results.load(tmp_path / "results.json")


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*results\.json: No such file"):
        results.load(tmp_path / "results.json")


def test_protocols_are_told_apart() -> None:
    rows = results.validate(fake_run.results()).accuracy
    assert [(row.kind, row.px) for row in rows[:4]] == [
        ("full", None), ("same", 32), ("same", 16), ("same", 8),
    ]  # fmt: skip
    assert (rows[4].kind, rows[4].px) == ("cross", 32)


def test_every_field_is_documented() -> None:
    schema = results.Results.model_json_schema()
    assert "TAR by FAR" in schema["$defs"]["Accuracy"]["properties"]["tar_at_far"]["description"]
    undocumented = [
        f"{name}.{key}"
        for name, part in schema["$defs"].items()
        for key, field in part["properties"].items()
        if not field.get("description")
    ]
    assert undocumented == []


@pytest.mark.parametrize("lost", ["accuracy", "accuracy_per_image", "ci95"])
def test_a_price_is_measured_whole_or_not_at_all(lost):
    price = {"px": 16, "cosine_least": 0.9, "cosine_mean": 0.99, "accuracy": 90.0, "accuracy_per_image": 91.0,
             "ci95": [-2.0, 0.1], "pairs": 7}  # fmt: skip
    Price.model_validate(price)
    Price.model_validate(price | {"accuracy": None, "accuracy_per_image": None, "ci95": None})
    with pytest.raises(ValidationError, match="measured together or not at all"):
        Price.model_validate(price | {lost: None})
