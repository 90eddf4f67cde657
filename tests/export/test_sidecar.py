import json

import cv2
import numpy as np
import onnx
import pytest

import export
from export import child, sidecar
from faces import align, open_faces
from faces.align import crop, template_landmarks
from faces.errors import UserError
from faces.verification import Roc


@pytest.fixture
def artifact(exported, tmp_path):
    for name in ("student.onnx", "student.onnx.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    return tmp_path / "student.onnx"


def test_says_how_to_feed_the_file(exported):
    onnx, tflite = sidecar.read(exported / "student.onnx"), sidecar.read(exported / "student.tflite")
    assert (onnx.input.layout, onnx.input.shape, onnx.input.name) == ("NCHW", (None, 3, 16, 16), "face")
    assert (tflite.input.layout, tflite.input.shape) == ("NHWC", (None, 16, 16, 3))
    assert (onnx.input.dtype, onnx.input.range, onnx.input.colour) == ("float32", (0, 1), "RGB")
    # Spots at the landmarks come to lie where the crop's points are.
    faces = np.zeros((5, 128, 128, 3), np.uint8)
    landmarks = np.repeat(template_landmarks(128)[None], 5, 0).astype(np.float32)
    y, x = np.mgrid[:128, :128]
    for face, spot in zip(faces, landmarks[0], strict=True):
        face[:] = 255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 72)[..., None]
    seen = crop(faces, landmarks, "arcface", 16)[..., 0].astype(float)
    weights = seen / seen.sum((1, 2), keepdims=True)
    found = [((one * np.arange(16)).sum(), (one * np.arange(16)[:, None]).sum()) for one in weights]
    np.testing.assert_allclose(onnx.crop.points, found, atol=0.05)
    assert (onnx.opset, tflite.opset, onnx.embedding_dim) == (20, None, 128)
    assert onnx.parity.passed
    assert onnx.parity.faces == 256
    assert onnx.macs < 1.6e6
    assert {"torch", "onnx", "onnxruntime"} <= set(onnx.versions)


def test_says_how_the_photo_is_cut(exported):
    contract = json.loads((exported / "student.onnx.json").read_text())["crop"]
    faces = open_faces("orl")
    photo = cv2.resize(faces.images[0], None, fx=1.7, fy=1.7, interpolation=cv2.INTER_CUBIC)
    points = (faces.landmarks[0] + 0.5) * 1.7 - 0.5
    matrix, side = align.similarity(points, np.array(contract["stored_points"])), contract["stored_px"]
    stored = cv2.warpAffine(photo, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(stored.astype(int) - align.loose_crop(photo, points)[0]).max() <= 1


def test_survives_a_round_trip(artifact):
    found = sidecar.read(artifact)
    sidecar.write(artifact, found)
    assert sidecar.read(artifact) == found


def test_another_file_under_the_name_is_refused(artifact):
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)
    with pytest.raises(UserError, match=r"student\.onnx: SHA-256 \w{12}, but its sidecar names \w{12}"):
        sidecar.read(artifact)
    artifact.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{len(data) - 1} bytes, but its sidecar names {len(data)}"):
        sidecar.read(artifact)


def test_missing_files_are_named(artifact):
    with pytest.raises(UserError, match=r"nothing\.onnx: no such file"):
        sidecar.read(artifact.with_name("nothing.onnx"))
    sidecar.path_of(artifact).unlink()
    with pytest.raises(UserError, match=r"its sidecar student\.onnx\.json cannot be read"):
        sidecar.read(artifact)
    with pytest.raises(UserError, match=r"onnx\.json is missing.*onnx, input face float32 \[None, 3, 16, 16\]"):
        export.load(artifact)


def test_a_changed_file_is_opened_on_request_and_by_a_child_first(artifact, monkeypatch):
    before = export.load(artifact).embed(np.zeros((2, 16, 16, 3), np.uint8))
    proto = onnx.load(str(artifact))
    proto.doc_string = "simplified by another tool"
    onnx.save(proto, str(artifact))
    with pytest.raises(UserError, match="export it again"):
        export.load(artifact)
    probed, real = [], child.probe
    monkeypatch.setattr(child, "probe", lambda path: probed.append(path) or real(path))
    found = export.load(artifact, changed=True).embed(np.zeros((2, 16, 16, 3), np.uint8))
    assert np.array_equal(found, before)
    assert probed == [artifact]
    artifact.write_bytes(artifact.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"student\.onnx: not a usable onnx file"):
        export.load(artifact, changed=True)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"bytes": "many"}, "bytes"),
        ({"surprise": 1}, "surprise"),
        ({"embedding_dim": -1}, "embedding_dim"),
        ({"input": {"name": "face"}}, "input.shape"),
    ],
)
def test_a_wrong_field_is_named(artifact, change, where):
    file = sidecar.path_of(artifact)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=f"not a sidecar of schema 1: {where}"):
        sidecar.read(artifact)


def test_thresholds_hold_their_rate_or_say_why_not():
    rng = np.random.default_rng(0)
    roc = Roc(np.sort(rng.normal(0.7, 0.1, 300)), np.sort(rng.normal(0, 0.2, 12_000)))
    found = sidecar.thresholds(roc, "same@16", "noise")
    assert list(found) == ["1e-2", "1e-3", "1e-4"]
    for fmr in ("1e-2", "1e-3"):
        # Counted one by one: at the value the rate is kept, at the next lower impostor score it is not.
        matches = [score for score in roc.impostor if score >= found[fmr].value]
        assert len(matches) == int(float(fmr) * 12_000)
        assert found[fmr].reason is None
    assert found["1e-4"].value is None
    assert "1.2 false matches expected at FMR 1e-4, 10 are needed" in found["1e-4"].reason
    assert (found["1e-4"].genuine_pairs, found["1e-4"].impostor_pairs) == (300, 12_000)
    assert (found["1e-2"].protocol, found["1e-2"].data) == ("same@16", "noise")
