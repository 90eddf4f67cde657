"""Hostile artifacts, even with a sidecar that matches their bytes: a message for each, never a crash."""

import hashlib
import json
import random
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

import export
from export import sidecar
from export.parity import Trial
from export.sidecar import Card
from export.stage import How, Subject, export_model
from faces.errors import UserError
from students import create_student

# One process opens all files of a folder; a crash in native code then fails the test and not the test run.
_OPEN_ALL = """
import json, pathlib, sys
import numpy as np
import export
from faces.errors import UserError
told = {}
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    if file.suffix == ".json":
        continue
    try:
        export.load(file).embed(np.zeros((3, 16, 16, 3), np.uint8))
        told[file.name] = None
    except UserError as mistake:
        told[file.name] = str(mistake)
    print(json.dumps(told), flush=True)
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (256, 16, 16, 3), dtype=np.uint8)
    card = Card(
        model="tiny16", template="arcface", metric="cosine", teacher=None, data=None,
        parameters=1, macs=1,
    )  # fmt: skip
    trial = Trial(images, np.full(256, -1), None, "same@16", "noise")
    export_model(Subject("s", create_student("tiny16"), card, trial), folder, How())
    return folder


def _place(folder, name, data, like):
    """Write `data` with a copy of the sidecar of `like` that names its size and hash."""
    (folder / name).write_bytes(data)
    contract = json.loads(sidecar.path_of(like).read_text())
    contract |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sidecar.path_of(folder / name).write_text(json.dumps(contract))


def _flipped(data, seed, low, high):
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(20):
        changed[rng.randrange(low, high)] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_damaged_files_with_a_matching_sidecar(good, tmp_path, format):
    like = good / f"s.{format}"
    data = like.read_bytes()
    other = (good / ("s.tflite" if format == "onnx" else "s.onnx")).read_bytes()
    refused = {
        "empty": b"",
        "text": b"this is no model\n" * 50,
        "noise": random.Random(0).randbytes(4096),
        "other": other,
        "zeros": bytes(len(data)),
    } | {f"cut{size}": data[:size] for size in (1, 8, 100, len(data) // 2, len(data) - 1)}
    # Changed bytes may hit a weight, which only the hash can tell: these must merely not crash.
    survived = {f"head{seed}": _flipped(data, seed, 8, 2000) for seed in range(8)}
    survived |= {f"tail{seed}": _flipped(data, seed, len(data) - 5000, len(data)) for seed in range(8)}
    for name, content in (refused | survived).items():
        _place(tmp_path, f"{name}.{format}", content, like)
    done = subprocess.run([sys.executable, "-c", _OPEN_ALL, str(tmp_path)], capture_output=True, text=True, check=False)
    told = json.loads(done.stdout.strip().split("\n")[-1])
    assert done.returncode == 0, (done.returncode, list(told)[-1:], done.stderr)
    assert len(told) == len(refused | survived)
    for name in refused:
        message = told[f"{name}.{format}"]
        assert message is not None, name
        assert f"{name}.{format}: not a usable {format} file: " in message
        assert "\n" not in message


def test_the_hash_is_checked_before_a_runtime_sees_the_file(good, tmp_path, monkeypatch):
    data = bytearray((good / "s.tflite").read_bytes())
    data[1000] ^= 255
    (tmp_path / "s.tflite").write_bytes(data)
    sidecar.path_of(tmp_path / "s.tflite").write_bytes(sidecar.path_of(good / "s.tflite").read_bytes())
    monkeypatch.setattr("export.runtimes._tflite_runtime", lambda: pytest.fail("a runtime was asked"))
    with pytest.raises(UserError, match="SHA-256"):
        export.load(tmp_path / "s.tflite")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"schema_version": 1e999}',
        b"\x00" * 99,
    ],
)
def test_sidecars_that_are_none(good, tmp_path, text):
    (tmp_path / "s.onnx").write_bytes((good / "s.onnx").read_bytes())
    sidecar.path_of(tmp_path / "s.onnx").write_bytes(text)
    with pytest.raises(UserError, match=r"s\.onnx\.json: not a sidecar of schema 1"):
        export.load(tmp_path / "s.onnx")


def test_a_sidecar_of_another_contract(good, tmp_path):
    like = good / "s.onnx"
    for field, value in (
        ("input", {"name": "face", "shape": [None, 3, 32, 32], "layout": "NCHW"}),
        ("input", {"name": "image", "shape": [None, 3, 16, 16], "layout": "NCHW"}),
        ("format", "tflite"),
    ):
        _place(tmp_path, "s.onnx", like.read_bytes(), like)
        file = sidecar.path_of(tmp_path / "s.onnx")
        file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
        with pytest.raises(UserError, match=r"s\.onnx: (not a usable|its inputs are)"):
            export.load(tmp_path / "s.onnx")
    # A wrong output size is seen when it runs, and asks for no memory before that.
    _place(tmp_path, "s.onnx", like.read_bytes(), like)
    file = sidecar.path_of(tmp_path / "s.onnx")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"embedding_dim": 10**15}))
    with pytest.raises(UserError, match=r"1 faces gave an output of shape \(1, 128\)"):
        export.load(tmp_path / "s.onnx").embed(np.zeros((1, 16, 16, 3), np.uint8))


def test_an_onnx_file_cannot_read_files_outside_its_folder(good, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(10**6))
    proto = onnx.load(str(good / "s.onnx"))
    weight = max(proto.graph.initializer, key=lambda w: len(w.raw_data))
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    _place(inside, "s.onnx", proto.SerializeToString(), good / "s.onnx")
    with pytest.raises(UserError, match=r"s\.onnx: not a usable onnx file.*escapes model directory"):
        export.load(inside / "s.onnx")


def test_folders_in_place_of_files(good, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match="no such file"):
        export.load(tmp_path / "folder.onnx")
    (tmp_path / "s.onnx").write_bytes((good / "s.onnx").read_bytes())
    sidecar.path_of(tmp_path / "s.onnx").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        export.load(tmp_path / "s.onnx")
