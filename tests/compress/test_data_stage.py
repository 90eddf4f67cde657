"""The data stage on folders of aligned faces (noise stands in for them, as nothing is recognised here)."""

import cv2
import numpy as np
import pytest

from compress import data
from compress.config import load_config
from compress.run import Run
from faces.errors import UserError


def people(root, names, seed, corner=0):
    """Six images of 112 px for each name; the same seed gives the same images, but for what is added in a corner."""
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(6):
            coarse = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (112, 112))
            image[0, 0] ^= corner
            cv2.imwrite(str(root / name / f"{i}.png"), image)


def stage(tmp_path, *specs, **options):
    given = {"data.public": [str(spec) for spec in specs], "data.aligned": True, "data.virtual": 0, **options}
    run = Run(tmp_path / "run", load_config("quick", None, given, []), quiet=True)
    return data.run(run), *data.load_parts(run)


def test_an_image_under_two_names_is_not_on_both_sides(tmp_path):
    people(tmp_path / "a", "pqrst", seed=1)
    people(tmp_path / "b", "uvwxy", seed=1, corner=1)
    facts, train, test = stage(tmp_path, tmp_path / "a", tmp_path / "b")
    twins = {tuple(image.ravel()[::997]) for image in train.images} & {
        tuple(image.ravel()[::997]) for image in test.images
    }
    assert not twins
    assert facts["skipped"]["training face nearly the same as a test face"] > 0
    allowed, train, _ = stage(tmp_path, tmp_path / "a", tmp_path / "b", **{"data.allow_leaks": True})
    assert "training face nearly the same as a test face" not in allowed["skipped"]
    assert len(train) == allowed["split"]["train_faces"] > facts["split"]["train_faces"]
    assert facts["split"]["leaks"] == 0 < allowed["split"]["leaks"]
    assert ("unseen people" in facts["summary"], "unseen people" in allowed["summary"]) == (True, False)


def test_what_changes_the_stages_key(tmp_path):
    people(tmp_path / "a", "pq", seed=1)
    detector = tmp_path / "yunet.onnx"
    detector.write_text("one")
    given = {"data.public": [str(tmp_path / "a")], "data.detector": f"yunet:{detector}"}
    config = load_config("quick", None, given, [])
    first = data.settings(config)
    (tmp_path / "a/.lock").touch()
    (tmp_path / "a/p/.half.png").touch()
    assert data.settings(config) == first
    detector.write_text("another")
    second = data.settings(config)
    (tmp_path / "a/p/0.png").write_bytes(b"another")
    assert len({str(one) for one in (first, second, data.settings(config))}) == 3


def test_a_linked_persons_new_face_counts(tmp_path):
    people(tmp_path / "store", "pq", seed=1)
    (tmp_path / "a").mkdir()
    for name in "pq":
        (tmp_path / "a" / name).symlink_to(tmp_path / "store" / name)
    config = load_config("quick", None, {"data.public": [str(tmp_path / "a")]}, [])
    first = data.settings(config)
    (tmp_path / "store/p/new.png").write_bytes((tmp_path / "store/p/0.png").read_bytes())
    assert data.settings(config) != first


def test_blue_faces_are_told(tmp_path):
    rng = np.random.default_rng(0)
    for name in "pqrst":
        (tmp_path / "a" / name).mkdir(parents=True)
        for i in range(4):
            # Red first, where OpenCV writes blue first.
            image = np.full((112, 112, 3), (200, 120, 90), np.int64) + rng.integers(0, 40, (112, 112, 3))
            cv2.imwrite(str(tmp_path / "a" / name / f"{i}.png"), image.astype(np.uint8))
    given = {"data.public": [str(tmp_path / "a")], "data.aligned": True, "data.virtual": 0, "data.allow_leaks": True}
    config = load_config("quick", None, given, [])
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        data.run(run)
    told = (tmp_path / "run/run.log").read_text()
    assert "looks like BGR" in told
    assert "pack it with python -m faces.shards make --colour bgr" in told


def test_people_of_several_parts_are_told(tmp_path):
    for part, names, seed in (("a", "pqrst", 1), ("b", "puvwx", 2), ("c", "pyz", 3)):
        people(tmp_path / part, names, seed)
    # One face in each of two parts.
    for part, seed in (("a", 4), ("b", 5)):
        people(tmp_path / part, ["once"], seed)
        for i in range(1, 6):
            (tmp_path / part / "once" / f"{i}.png").unlink()
    given = {"data.public": [str(tmp_path / part) for part in "abc"], "data.aligned": True, "data.virtual": 0}
    with Run.open(tmp_path / "run", load_config("quick", None, given, []), quiet=True) as run:
        facts = data.run(run)
    assert facts["public"]["identities"] == 12
    told = (tmp_path / "run/run.log").read_text()
    assert "2 identity names occur in several --data parts" in told


def test_a_folder_named_like_a_users_home_is_watched(tmp_path, monkeypatch):
    people(tmp_path / "~no such user", "pq", seed=1)
    monkeypatch.chdir(tmp_path)
    config = load_config("quick", None, {"data.public": ["~no such user"]}, [])
    first = data.settings(config)
    (tmp_path / "~no such user/p/0.png").unlink()
    assert data.settings(config) != first


def test_a_photo_of_two_parts_is_taken_once(tmp_path):
    people(tmp_path / "a", "pqrst", seed=1)
    people(tmp_path / "b", "uvwxy", seed=1)
    facts, train, test = stage(tmp_path, tmp_path / "a", tmp_path / "b")
    assert len(train) + len(test) == 30
    assert facts["skipped"] == {"exact duplicate": 30}


def test_one_face_is_nothing_to_learn_from(tmp_path):
    people(tmp_path / "val", "pqrst", seed=1)
    people(tmp_path / "a", "x", seed=2)
    for i in range(1, 6):
        (tmp_path / f"a/x/{i}.png").unlink()
    with pytest.raises(UserError, match="one face to learn from is too few"):
        stage(tmp_path, tmp_path / "a", **{"data.val": str(tmp_path / "val")})


def test_labels_alone_need_labels(tmp_path):
    people(tmp_path / "val", "pqrst", seed=1)
    people(tmp_path / "a", "uvwxyz", seed=2)
    # One image of each person: nobody is known.
    for file in (tmp_path / "a").glob("*/[1-5].png"):
        file.unlink()
    given = {"data.val": str(tmp_path / "val")}
    assert stage(tmp_path, tmp_path / "a", **given)[0]["public"]["unlabelled"] == 6
    with pytest.raises(UserError, match=r"distill\.mode=c learns from labels alone, and nobody is known in --data"):
        stage(tmp_path, tmp_path / "a", **given, **{"distill.mode": "c"})


def test_a_set_of_copies_is_refused(tmp_path):
    for i, name in enumerate("pqrstu"):
        people(tmp_path / f"part-{name}", [name], seed=1, corner=i)
    with pytest.raises(UserError, match=r"24 of 24 training faces.*leaves 0 people.*allow_leaks"):
        stage(tmp_path, *sorted(tmp_path.glob("part-*")))


def test_independent_people_lose_no_face(tmp_path):
    people(tmp_path / "a", "pqrstuvw", seed=1)
    facts, train, test = stage(tmp_path, tmp_path / "a")
    assert facts["skipped"] == {}
    assert len(train) + len(test) == 48


def test_what_a_test_set_of_ones_own_lost_is_counted(tmp_path):
    people(tmp_path / "a", "pqrst", seed=1)
    people(tmp_path / "b", "uvw", seed=2)
    (tmp_path / "b/u/broken.png").write_bytes(b"no image")
    facts, _, test = stage(tmp_path, tmp_path / "a", **{"data.val": str(tmp_path / "b")})
    assert facts["skipped"] == {"test: unreadable image": 1}
    assert len(test) == 18


def test_pairs_without_two_people_are_refused_before_any_training(tmp_path):
    people(tmp_path / "train", "pqr", seed=1)
    people(tmp_path / "val", "ab", seed=2)
    for left in list((tmp_path / "val/b").glob("*.png"))[1:]:
        left.unlink()  # one photo is nobody's second
    keys = data.open_faces(str(tmp_path / "val"), aligned=True).keys
    one, other = [key for key in keys if "a" in key.split("/")], [key for key in keys if "b" in key.split("/")]
    rows = [(one[i], one[i + 1], 1, i % 2) for i in range(4)] + [(one[i], other[0], 0, i % 2) for i in range(4)]
    text = "".join(f"{','.join(map(str, row))}\n" for row in [("key_a", "key_b", "same", "fold"), *rows])
    (tmp_path / "pairs.csv").write_text(text)
    options = {"data.val": str(tmp_path / "val"), "data.pairs": str(tmp_path / "pairs.csv")}
    with pytest.raises(UserError, match="compares no two people of whom --val has two faces"):
        stage(tmp_path, tmp_path / "train", **options)
