"""The protocols on photos whose embedding is known: their mean colour."""

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import accuracy, protocols
from benchmarks.embedders import Embedder
from faces import intervals
from faces.protocols.types import Member, PairList, Photo, Search, Templates
from faces.sources import open_faces

COLOURS = {"ann": (250, 5, 5), "bo": (5, 250, 5), "cy": (5, 5, 250)}
PEER = Embedder(
    "colour", "cosine", lambda faces, px: faces.images, lambda crops: crops.mean((1, 2)).astype(np.float32), 0, 0, 0
)


@pytest.fixture
def photo(tmp_path):
    made = iter(range(1000))

    def make(who):
        path = tmp_path / f"{next(made)}.png"
        rng = np.random.default_rng(next(made))
        noise = rng.integers(-4, 5, (112, 112, 3))
        cv2.imwrite(str(path), np.clip(np.array(COLOURS[who])[::-1] + noise, 0, 255).astype(np.uint8))
        return Photo(path)

    return make


@pytest.fixture
def gone(tmp_path):
    return Photo(tmp_path / "gone.png")


def test_pairs_with_a_missing_photo_are_counted(photo, gone):
    photos, people, pairs = [], [], []
    for fold in range(4):
        first = len(photos)
        photos += [photo("ann"), photo("ann"), photo("bo")]
        people += ["ann", "ann", "bo"]
        pairs += [(first, first + 1, True, fold), (first, first + 2, False, fold)]
    photos.append(gone)
    people.append("ann")
    pairs.append((0, len(photos) - 1, True, 0))
    found = protocols.verify(
        PairList(tuple(photos), tuple(people), tuple(pairs)), protocols.Reader("dlib", True), PEER, (16,)
    )
    assert (found["pairs"], found["pairs_used"]) == (9, 8)
    assert found["images"] == {"read": 12, "missing": 1}
    assert {name: one["value"] for name, one in found["figures"].items()} == {
        "full": 100,
        "same@16": 100,
        "cross@16": 100,
    }


def test_intervals_draw_people(photo):
    """One person of two is never recognised: with so few people that says little, however many pairs there are."""
    photos, people, pairs = [], [], []
    for number in range(40):
        who, other = ("ann", "bo")[:: 1 if number % 2 else -1]
        first = len(photos)
        photos += [photo(who), photo(who if who == "ann" else "cy"), photo(other)]
        people += [who, who, other]
        pairs += [(first, first + 1, True, number % 4), (first, first + 2, False, number % 4)]
    found = protocols.verify(
        PairList(tuple(photos), tuple(people), tuple(pairs)), protocols.Reader("dlib", True), PEER, ()
    )
    figure = found["figures"]["full"]
    assert figure["value"] == pytest.approx(75, abs=3)
    # With the 40 pairs for 40 people: 16.
    assert figure["high"] - figure["low"] > 40


def test_photos_without_a_face_or_broken_are_counted(photo, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    reader = protocols.Reader("dlib", False)
    usable, _ = protocols.embed([photo("ann"), Photo(broken)], reader, PEER, (None,))
    assert not usable.any()
    assert reader.counts == {"without a face found": 1, "unreadable": 1}


def test_ranks_with_distractors_and_a_missing_probe(photo, gone):
    test = Search(
        gallery=((photo("ann"), "ann"), (photo("bo"), "bo")),
        probes=((photo("ann"), "ann"), (photo("cy"), "bo"), (gone, "ann")),
        distractors=(photo("cy"),),
    )
    found = protocols.search(test, protocols.Reader("dlib", True), PEER)
    # The first is found; the second is nearest to the distractor, then to one of the others; the third is not there.
    assert found["figures"]["rank-1"]["value"] == pytest.approx(100 / 3)
    assert found["figures"]["rank-5"]["value"] == pytest.approx(200 / 3)
    # Two people are too few for an interval.
    assert "low" not in found["figures"]["rank-1"]
    assert (found["probes"], found["probes_used"]) == (3, 2)
    assert found["gallery"] == 3


@pytest.mark.parametrize(("there", "why"), [(True, "there is no probe"), (False, "no gallery image is left")])
def test_what_a_search_lacks_is_named(photo, gone, there, why):
    test = Search(gallery=((photo("ann") if there else gone, "ann"),), probes=() if there else ((photo("bo"), "bo"),))
    found = protocols.search(test, protocols.Reader("dlib", True), PEER)
    assert (found["figures"], found["reason"]) == ({}, why)


def test_a_closed_set_by_means(photo):
    test = Search(
        tuple((photo(who), who) for who in COLOURS for _ in range(2)), tuple((photo(who), who) for who in COLOURS)
    )
    found = protocols.search(test, protocols.Reader("dlib", True), PEER, closed_set=True)
    assert {name: one["value"] for name, one in found["figures"].items()} == {"top-1": 100, "top-5": 100}
    assert found["gallery"] == 3


def test_templates_are_means_over_media(photo, gone):
    members = [Member(photo("ann"), "1", "m1"), Member(photo("bo"), "1", "m2"), Member(photo("bo"), "1", "m2"),
               Member(photo("ann"), "2", "m3"), Member(gone, "3", "m4"), Member(photo("cy"), "4", "m5")]  # fmt: skip
    test = Templates(tuple(members), (("1", "2", True), ("4", "2", False), ("3", "2", True)), ("1", "4"), ("2", "3"),
                     {"1": "ann", "2": "ann", "3": "bo", "4": "cy"})  # fmt: skip
    found = protocols.templates(test, protocols.Reader("dlib", True), PEER)
    assert (found["templates"], found["templates_used"], found["comparisons_left_out"]) == (4, 3, 1)
    assert found["figures"]["rank-1"]["value"] == 50
    # One impostor pair cannot carry any rate: null with the reason, never a number.
    assert found["figures"]["TAR@1e-01"]["value"] is None
    assert "needed" in found["figures"]["TAR@1e-01"]["reason"]


def test_tar_by_hand(photo):
    people = [("ann", "bo", "cy")[i % 3] for i in range(24)]
    members = [Member(photo(who), str(i), str(i)) for i, who in enumerate(people)]
    compared = tuple((str(i), str(j), people[i] == people[j]) for i in range(24) for j in range(i))
    found = protocols.templates(Templates(tuple(members), compared), protocols.Reader("dlib", True), PEER)
    # Three people are too few for an interval.
    assert found["figures"]["TAR@1e-01"] == {"value": 100}
    assert found["figures"]["TAR@1e-06"]["value"] is None


def test_templates_of_a_person_are_those_that_genuine_pairs_connect():
    compared = (("1", "2", True), ("3", "2", True), ("4", "5", True), ("1", "4", False), ("6", "1", False))
    found = protocols._owners([pair[:2] for pair in compared], np.array([pair[2] for pair in compared]))
    assert found.shape == (2, 5)
    person = dict(zip("12324514" + "61", [*found[:, :4].T.ravel(), *found[:, 4]], strict=True))
    assert person["1"] == person["2"] == person["3"]
    assert person["4"] == person["5"]
    assert len({person[name] for name in "146"}) == 3


def test_the_interval_of_a_tar_stands_beside_it(photo, monkeypatch):
    monkeypatch.setattr(intervals, "FEWEST", 3)
    people = [("ann", "bo", "cy")[i % 3] for i in range(24)]
    members = [Member(photo("cy" if i == 0 else who), str(i), str(i)) for i, who in enumerate(people)]
    compared = tuple((str(i), str(j), people[i] == people[j]) for i in range(24) for j in range(i))
    test = Templates(tuple(members), compared)
    figure = protocols.templates(test, protocols.Reader("dlib", True), PEER)["figures"]["TAR@1e-01"]
    # One of ann's eight faces shows cy: of 84 genuine pairs her 7 with it are refused, or 6.
    assert figure["value"] == pytest.approx(100 * 77 / 84, abs=2)
    # Where ann and cy are all who is drawn, that face's 8 pairs with cy's are more than a tenth of 64: with a threshold
    # above them next to nobody is accepted.
    assert (figure["low"] < 5, figure["high"]) == (True, 100)


def test_one_command_fills_the_table(tiny_files, tmp_path):
    faces = open_faces("orl")
    for i in range(60):
        name = f"P{faces.identities[i]}"
        path = tmp_path / name / f"{name}_{i + 1:04d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), faces.images[i][..., ::-1])
    rows = ["10\t1"]
    for fold in range(10):
        who = f"P{faces.identities[6 * fold % 50]}"
        at = 6 * fold % 50
        other = (at + 10) % 60
        rows.append(f"{who} {at + 1} {at // 10 * 10 + (at + 1) % 10 + 1}")
        rows.append(f"{who} {at + 1} P{faces.identities[other]} {other + 1}")
    (tmp_path / "pairs.txt").write_text("\n".join(rows))
    out = tmp_path / "out.json"
    command = ["protocols", "--artifact", str(tiny_files["fp32"]), "--lfw", str(tmp_path), str(tmp_path / "pairs.txt"),
               "--aligned", "--json", str(out)]  # fmt: skip
    done = CliRunner().invoke(accuracy.main, command)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(out.read_text())["protocols"]
    assert (row["pairs"], row["pairs_used"], row["test"]) == (20, 20, "lfw")
    assert set(row["figures"]) == {"full", "same@32", "cross@32", "same@16", "cross@16"}
    assert "85.88 (bridge distillation" in done.stdout
    assert "0 of 20 pairs" in done.stdout


def test_a_test_that_fails_loses_no_other_and_equal_names_are_told_apart(tiny_files, tmp_path):
    draw = np.random.default_rng(0).integers
    images = [cv2.imencode(".png", draw(0, 256, (112, 112, 3), np.uint8))[1].tobytes() for _ in range(40)]
    for name, some in (("good", images), ("bad", images[:-2])):
        (tmp_path / f"{name}.bin").write_bytes(pickle.dumps((some, [True, False] * 10)))
    again = tmp_path / "again" / tiny_files["fp32"].name
    again.parent.mkdir()
    for suffix in ("", ".json"):
        shutil.copy(f"{tiny_files['fp32']}{suffix}", f"{again}{suffix}")
    command = ["protocols", "--px", "16", "--json", tmp_path / "p"]
    command += [part for file in (tiny_files["fp32"], again) for part in ("--artifact", file)]
    command += [part for name in ("bad", "good") for part in ("--bin", tmp_path / f"{name}.bin")]
    done = CliRunner().invoke(accuracy.main, [str(one) for one in command])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    rows = json.loads((tmp_path / "p").read_text())["protocols"]
    assert [(row["test"], bool(row["figures"])) for row in rows] == [("bad", False), ("good", True)] * 2
    assert rows[0]["reason"] in done.stdout
    assert len({row["model"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no test was given"),
        (["--tinyface", "nowhere"], "Gallery_Distractor"),
        (["--lfw", "a", "b"], "cannot be read"),
        (["--bin", "a/lfw.bin", "--bin", "b/lfw.bin"], "another test is called lfw already: rename the file"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = CliRunner().invoke(accuracy.main, ["protocols", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
