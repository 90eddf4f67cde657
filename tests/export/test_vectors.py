import base64
import json

import numpy as np
import pytest
from click.testing import CliRunner

import export
from export.__main__ import main
from export.vectors import vectors_command
from faces import align


@pytest.fixture(scope="module")
def written(exported, tmp_path_factory):
    out = tmp_path_factory.mktemp("vectors") / "vectors.json"
    result = CliRunner().invoke(main, ["vectors", str(exported / "student.tflite"), "--out", str(out), "--people", "3"])
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text())


def _image(text, height, width):
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(height, width, 3)


def test_a_reader_of_the_file_alone_gets_the_same_crops_and_embeddings(written, exported):
    artifact = export.load(exported / "student.tflite")
    seen = []
    for face in written["faces"]:
        image = _image(face["image"]["rgb"], face["image"]["height"], face["image"]["width"])
        landmarks = np.array([point or (np.nan, np.nan) for point in face["landmarks"]])
        loose, moved = align.loose_crop(image, landmarks)
        assert (loose == _image(face["loose"]["rgb"], 128, 128)).all()
        known = [point for point in face["loose"]["landmarks"] if point]
        np.testing.assert_allclose(known, moved[np.isfinite(moved[:, 0])], atol=1e-5)
        aligned = align.crop(loose[None], moved[None], "arcface", 112)[0]
        assert (aligned == _image(face["aligned"], 112, 112)).all()
        seen.append(_image(face["crop"], 16, 16))
        assert (seen[-1] == _image(face["reduced"]["16"], 16, 16)).all()
        assert (seen[-1] != _image(face["reduced"]["32"], 16, 16)).any()
    (by_file,) = written["artifacts"]
    assert by_file["sha256"] == artifact.sidecar.sha256
    np.testing.assert_allclose(by_file["embeddings"], artifact.embed(np.stack(seen)), atol=1e-4, rtol=1e-5)
    scores = np.array(by_file["scores"]["cosine"])
    np.testing.assert_allclose(np.diag(scores), 1, atol=1e-9)
    np.testing.assert_allclose(np.diag(by_file["scores"]["euclidean"]), 0, atol=1e-6)


def test_photos_are_of_each_kind_and_people_come_twice(written):
    people = [face["identity"] for face in written["faces"]]
    assert sorted(people) == sorted([*set(people)] * 2)
    assert len(set(people)) == 3
    known = {sum(point is not None for point in face["landmarks"]) for face in written["faces"]}
    assert known == {3, 5}
    assert {face["image"]["width"] for face in written["faces"]} == {92, 230}


def test_mistakes_are_one_line(exported, tmp_path):
    runner = CliRunner()
    file = str(exported / "student.tflite")
    result = runner.invoke(vectors_command, [file, "--out", str(tmp_path / "v.txt")])
    assert result.exit_code == 2
    assert "v.json" in result.output
    result = runner.invoke(vectors_command, [str(tmp_path / "no.tflite"), "--out", str(tmp_path / "v.json")])
    assert result.exit_code == 2
    assert "no such file" in result.output
    assert not list(tmp_path.iterdir())
