import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import export
from export import crops
from export.runtimes import Artifact
from export.sidecar import Alpha, Threshold
from export.verify import verify, verify_command
from faces.align import crop
from faces.degrade import reduce, resize
from faces.errors import UserError
from faces.sources import open_faces, orl


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photos each of five people of ORL, PERSON/IMAGE.pgm."""
    folder = tmp_path_factory.mktemp("photos")
    for record in orl.read():
        _, person, image = record.key.split("/")
        if person in ("s1", "s2", "s3", "s4", "s5") and image in ("1", "2"):
            (folder / person).mkdir(exist_ok=True)
            (folder / person / f"{image}.pgm").write_bytes(record.data)
    return folder


def _with_thresholds(artifact, values):
    thresholds = {
        fmr: Threshold(
            value=value,
            reason=None if value is not None else "too few pairs",
            genuine_pairs=5,
            impostor_pairs=40,
            protocol="same@16",
            data="orl",
        )
        for fmr, value in values.items()
    }
    return Artifact(artifact.path, artifact.sidecar.model_copy(update={"thresholds": thresholds}))


@pytest.mark.parametrize(("side", "size"), [(112, 16), (112, 32), (112, 96), (150, 64), (112, 112), (112, 160), (5, 1)])
def test_resizes_as_torch_does(side, size):
    images = np.random.default_rng(size).integers(0, 256, (20, side, side, 3), dtype=np.uint8)
    images[:2] = [[[[0]]], [[[255]]]]
    found, expected = crops.resize(images, size), resize(images, size)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 5e-4
    assert crops.resize(images[:0], size).shape == (0, size, size, 3)


def test_the_crop_is_the_one_that_export_writes(exported):
    crops.check(export.load(exported / "student.onnx").sidecar)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("name", ["student.onnx", "student.tflite"])
def test_scores_are_those_of_the_pipeline(exported, photos, student, embed, name, aligned):
    faces = open_faces(str(photos), aligned=aligned)
    # The other way to the crop, with torch.
    seen = reduce(crop(faces.images, faces.landmarks, "arcface"), None, 16)
    ours = crops.model_crops(faces.images, faces.landmarks, export.load(exported / name).sidecar)
    assert np.abs(seen.astype(int) - ours).max() <= 1
    reference = torch.nn.functional.normalize(torch.from_numpy(embed(student("tiny16"), ours))).numpy()
    place = {key.split("/", 1)[1]: i for i, key in enumerate(faces.keys)}
    artifact = export.load(exported / name)
    for a, b in (("s1/1.pgm", "s1/2.pgm"), ("s1/1.pgm", "s2/1.pgm"), ("s3/2.pgm", "s3/2.pgm")):
        found = verify(artifact, photos / a, photos / b, aligned=aligned)
        assert found.score == pytest.approx(float(reference[place[a]] @ reference[place[b]]), abs=1e-5)
        assert found.metric == "cosine"


def test_the_same_person_scores_higher(exported, photos):
    # Even with random weights, on average: the two photos of a person were taken in one session.
    artifact = export.load(exported / "student.onnx")
    people = sorted(path.name for path in photos.iterdir())
    score = {
        (a, b): verify(artifact, photos / a / "1.pgm", photos / b / "2.pgm", aligned=True).score
        for a in people
        for b in people
    }
    same = np.mean([score[a, a] for a in people])
    assert same > np.mean([score[a, b] for a in people for b in people if a != b])
    assert verify(artifact, photos / "s1/1.pgm", photos / "s1/1.pgm").score == pytest.approx(1, abs=1e-6)


def test_decisions_against_a_naive_oracle(exported, photos):
    artifact = export.load(exported / "student.onnx")
    first, second = photos / "s1/1.pgm", photos / "s2/1.pgm"
    score = verify(artifact, first, second, aligned=True).score
    above, below = float(np.nextafter(score, 2)), float(np.nextafter(score, -2))
    values = {"1e-2": below, "1e-3": score, "1e-4": above, "1e-5": None}
    judged = _with_thresholds(artifact, values)
    for fmr, value in values.items():
        found = verify(judged, first, second, fmr, aligned=True)
        expected = None if value is None else ("different" if score < value else "same")
        assert (found.score, found.threshold, found.decision, found.fmr) == (score, value, expected, fmr)
        assert found.reason == (None if value is not None else "too few pairs")
        assert found.measured == "same@16 on orl, 40 impostor pairs"
    assert [verify(judged, first, second, fmr, aligned=True).decision for fmr in values] == [
        "same", "same", "different", None,
    ]  # fmt: skip
    # The same rate in other words.
    for fmr in ("0.001", "1E-3", "10e-4"):
        assert verify(judged, first, second, fmr, aligned=True).fmr == "1e-3"
    none = verify(_with_thresholds(artifact, {}), first, second, aligned=True)
    assert (none.threshold, none.decision, none.reason) == (None, None, "the sidecar holds no thresholds")


def test_the_euclidean_metric(exported, photos):
    artifact = export.load(exported / "student.onnx")
    contract = artifact.sidecar.model_copy(update={"metric": "euclidean"})
    euclidean = Artifact(artifact.path, contract)
    found = verify(euclidean, photos / "s1/1.pgm", photos / "s2/1.pgm", aligned=True)
    assert found.score < 0
    assert found.metric == "euclidean"
    assert verify(euclidean, photos / "s1/1.pgm", photos / "s1/1.pgm", aligned=True).score == 0


@pytest.mark.parametrize(
    ("passed", "said"),
    [(True, None), (False, "student.onnx differs from its model and was kept on request: far off"),
     (None, "student.onnx was never compared with its model: far off")],
)  # fmt: skip
def test_a_file_that_missed_its_gate_is_not_used_in_silence(exported, photos, passed, said):
    artifact = export.load(exported / "student.onnx")
    parity = artifact.sidecar.parity.model_copy(update={"passed": passed, "reason": "far off"})
    artifact = Artifact(artifact.path, artifact.sidecar.model_copy(update={"parity": parity}))
    assert verify(artifact, photos / "s1/1.pgm", photos / "s1/2.pgm", aligned=True).caution == said


@pytest.mark.parametrize("fmr", ["2e-3", "0", "1", "-1", "nan", "inf", "x", ""])
def test_unknown_rates(exported, photos, fmr):
    artifact = _with_thresholds(export.load(exported / "student.onnx"), {"1e-3": 0.5})
    with pytest.raises(
        UserError, match=r"no threshold at FMR 2e-3\. It has: 1e-3|a false match rate lies between 0 and 1"
    ):
        verify(artifact, photos / "s1/1.pgm", photos / "s1/2.pgm", fmr)


def test_a_threshold_whose_rate_is_no_number_is_passed_over(exported, photos):
    artifact = _with_thresholds(export.load(exported / "student.onnx"), {"low": 0.5})
    with pytest.raises(UserError, match=r"no threshold at FMR 1e-3\. It has: low"):
        verify(artifact, photos / "s1/1.pgm", photos / "s1/2.pgm", "1e-3", aligned=True)


def test_images_that_cannot_be_compared_are_named(exported, photos, tmp_path):
    artifact = export.load(exported / "student.onnx")
    good = photos / "s1/1.pgm"
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "wall.pgm").write_bytes(b"P5 100 100 255\n" + bytes([128]) * 10_000)
    for name, told in (
        ("text.jpg", "no image that can be read"),
        ("empty.jpg", "no image that can be read"),
        ("none.jpg", "No such file"),
        ("wall.pgm", "no face found"),
    ):
        for pair in ((good, tmp_path / name), (tmp_path / name, good)):
            with pytest.raises(UserError, match=f"{name}: {told}"):
                verify(artifact, *pair)


def test_crops_of_another_kind_are_refused(exported, photos):
    artifact = export.load(exported / "student.onnx")
    for update, told in (({"template": "mine"}, "template 'mine'"), ({"resampling": "nearest"}, "resampled 'nearest'")):
        other = artifact.sidecar.model_copy(update={"crop": artifact.sidecar.crop.model_copy(update=update)})
        with pytest.raises(UserError, match=f"student.onnx: .*{told}"):
            verify(Artifact(artifact.path, other), photos / "s1/1.pgm", photos / "s1/2.pgm")


def test_a_file_that_takes_an_alpha_is_refused_before_any_face_is_looked_for(exported, photos):
    alpha = Alpha(policy="input", value=None, input="alpha", source="", price=())
    contract = export.load(exported / "student.onnx").sidecar.model_copy(update={"alpha": alpha})
    with pytest.raises(UserError, match=r"student\.onnx takes an alpha with each face"):
        verify(SimpleNamespace(sidecar=contract), photos / "s1/1.pgm", photos / "s1/2.pgm", detector="none is asked")


def test_the_command(exported, photos, monkeypatch):
    artifact = _with_thresholds(export.load(exported / "student.onnx"), {"1e-2": -1.0, "1e-3": None})
    monkeypatch.setattr("export.verify.runtimes.load", lambda path: artifact)
    arguments = ["x.onnx", str(photos / "s1/1.pgm"), str(photos / "s1/2.pgm")]
    done = CliRunner().invoke(verify_command, [*arguments, "--fmr", "1e-2", "--detector", "dlib"])
    assert done.exit_code == 0, done.output
    score, *rest = done.output.splitlines()
    assert score.startswith("score      0.")
    assert rest == [
        "threshold  -1.000000",
        "decision   same person",
        "FMR        1e-2 (same@16 on orl, 40 impostor pairs)",
    ]
    done = CliRunner().invoke(verify_command, [*arguments, "--aligned"])
    assert done.output.splitlines()[1:3] == ["threshold  none: too few pairs", "decision   none: too few pairs"]
    done = CliRunner().invoke(verify_command, [*arguments, "--json"])
    said = json.loads(done.output)
    assert (said["decision"], said["threshold"], said["reason"], said["fmr"]) == (None, None, "too few pairs", "1e-3")
    for wrong in (["--detector", "magic"], ["--detector", "yunet:none.onnx"], ["--fmr", "5"]):
        done = CliRunner().invoke(verify_command, [*arguments, *wrong])
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert done.output.startswith("error: ")


def test_the_commands_need_no_torch(exported, photos, tmp_path):
    code = (
        "import sys\n"
        "from export.verify import verify_command\n"
        "from export.embed import embed_command\n"
        f"verify_command([{str(exported / 'student.onnx')!r}, {str(photos / 's1/1.pgm')!r}, "
        f"{str(photos / 's1/2.pgm')!r}], standalone_mode=False)\n"
        f"embed_command([{str(exported / 'student.tflite')!r}, {str(photos)!r}, '--out', "
        f"{str(tmp_path / 'e.npz')!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "decision   none: the sidecar holds no thresholds" in done.stdout
    assert np.load(tmp_path / "e.npz")["embeddings"].shape[1] == 128
