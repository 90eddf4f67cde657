"""The app's own Java, on this machine's JVM and LiteRT's Linux library of the version inside the APK."""

import base64
import json
import re

import numpy as np
import pytest
from needs import JAVA

from android_demo import finder
from export import crops, runtimes
from faces import align

_TESTS = re.findall(r"void (test\w+)\(", (JAVA / "CoreTest.java").read_text())


@pytest.fixture(scope="module")
def differences(jvm, vectors_file, artifacts):
    return jvm("CheckVectors", vectors_file, next(iter(artifacts.values())).parent)


@pytest.fixture(scope="module")
def looks(jvm, vectors_file, artifacts, finder_file):
    return jvm("CheckLook", vectors_file, artifacts["fp32"], finder_file)


@pytest.fixture(scope="module")
def results(jvm, artifacts, finder_file):
    return jvm("CoreTest", artifacts["fp32"], finder_file)


def test_crops_are_pythons_within_one_level(differences):
    for what in ("loose", "aligned", "crop", "reduced"):
        assert differences[what] <= 1, what
        assert differences[f"{what} share"] < 0.01, what
    assert differences["landmarks"] < 1e-4


def test_embeddings_are_pythons(differences, vectors_file):
    assert differences["student.tflite embedding"] < 1e-5 * max(1, differences["student.tflite largest value"])
    # An int8 network's outputs lie on a grid: exact, or one step of it.
    rows = {one["file"]: np.array(one["embeddings"]) for one in json.loads(vectors_file.read_text())["artifacts"]}
    levels = np.unique(np.abs(rows["student-int8.tflite"]))
    assert differences["student-int8.tflite embedding"] <= np.diff(levels).min() * 1.01
    for file in rows:
        assert differences[f"{file} 1 - cosine from the photo"] < 0.01
        assert differences[f"{file} cosine"] < 1e-9
        assert differences[f"{file} euclidean"] < 1e-4


def test_the_runtime_is_the_one_inside_the_apk(differences):
    assert differences["runtime"] == "LiteRT (TFLite 2.23.0)"


def test_the_finder_finds_what_pythons_finds_and_the_embedding_follows(looks, vectors_file, artifacts):
    assert looks.pop() == "no face"
    faces = json.loads(vectors_file.read_text())["faces"]
    artifact = runtimes.load(artifacts["fp32"])
    assert len(looks) == len(faces)
    for look, face in zip(looks, faces, strict=True):
        photo = _photo(face["image"])
        expected = finder.detect(photo)
        assert expected is not None
        # A pixel that rounds the other way moves a point by hundredths of its width; photos smaller than the finder's
        # 128 px are also enlarged by another rule on each side.
        np.testing.assert_allclose(look["points"], expected, atol=0.2 if photo.shape[0] < finder.SIDE else 0.1)
        known = np.array([point or (np.nan, np.nan) for point in face["landmarks"]])
        eyes = np.hypot(*(known[1] - known[0]))
        # Two finders never agree to the pixel, but they mean the same eyes.
        assert np.hypot(*(np.array(look["points"])[:2] - known[:2]).T).max() < 0.25 * eyes
        loose, moved = align.loose_crop(photo, np.array(look["points"]))
        aligned = align.crop(loose[None], moved[None], "arcface", 112)
        embedding = artifact.embed(crops.resize(crops.resize(aligned, 96), 16))[0]
        assert _cosine(embedding, np.array(look["embedding"])) > 0.999


def test_good_photos_get_no_hint(looks):
    assert [look["hint"] for look in looks if isinstance(look, dict)] == [None] * 12


@pytest.mark.parametrize("name", _TESTS)
def test_core(results, name):
    assert results[name] == "ok"


def _photo(image):
    data = np.frombuffer(base64.b64decode(image["rgb"]), dtype=np.uint8)
    return data.reshape(image["height"], image["width"], 3)


def _cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
