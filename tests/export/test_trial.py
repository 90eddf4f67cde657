"""Which unseen faces and pairs an export is tried on."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from export.trial import choose_faces
from faces.dataset import Faces
from faces.errors import UserError


@pytest.fixture
def faces():
    """40 people, ten images each."""
    identities = np.repeat(np.arange(40), 10)
    keys = tuple(f"s{i // 10}/{i % 10}" for i in range(400))
    images, landmarks = np.zeros((400, 128, 128, 3), np.uint8), np.zeros((400, 5, 2), np.float32)
    return Faces(images, landmarks, identities, tuple(f"s{i}" for i in range(40)), keys)


@pytest.fixture
def fixed(faces, tmp_path):
    """A CSV of the first two images of each of `people` people, with each other and with those of a neighbour."""

    def write(people):
        shots = [np.flatnonzero(faces.identities == person)[:2] for person in range(people)]
        pairs = [(*shot, 1, fold % 5) for fold, shot in enumerate(shots)]
        pairs += [(shots[i][0], shots[i - 1][1], 0, i % 5) for i in range(people)]
        with (tmp_path / "pairs.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["key_a", "key_b", "same", "fold"])
            rows.writerows((faces.keys[a], faces.keys[b], same, fold) for a, b, same, fold in pairs)
        return tmp_path / "pairs.csv", {(faces.keys[a], faces.keys[b], same) for a, b, same, _ in pairs}

    return write


def keys_of(chosen, pairs):
    listed = zip(pairs.a, pairs.b, pairs.same, strict=True)
    return {(chosen.keys[a], chosen.keys[b], int(same)) for a, b, same in listed}


@pytest.mark.parametrize("most", [400, 100, 80])
def test_the_fixed_pairs_are_compared_where_their_faces_fit(faces, fixed, most):
    file, wanted = fixed(40)
    chosen, pairs, said = choose_faces(faces, file, most, 0)
    assert len(chosen) == most
    assert keys_of(chosen, pairs) == wanted
    assert said == ""


def test_where_they_do_not_fit_others_are_drawn_and_that_is_said(faces, fixed):
    file, _ = fixed(40)
    chosen, pairs, said = choose_faces(faces, file, 79, 0)
    assert (len(chosen), len(chosen.names)) == (79, 8)
    assert pairs.same.sum() == 7 * 45 + 36
    assert said == "; pairs drawn from 79 faces, as the fixed ones need 80"


@pytest.mark.parametrize("seed", range(4))
def test_people_come_before_unlabelled_faces(faces, seed):
    few = replace(faces, identities=np.where(faces.identities < 5, faces.identities, -1), names=faces.names[:5])
    chosen, pairs, _ = choose_faces(few, None, 100, seed)
    assert np.bincount(chosen.identities[chosen.identities >= 0]).tolist() == [10] * 5
    assert pairs.same.sum() == 5 * 45


def test_one_person_of_many_faces_does_not_take_the_place_of_the_others(faces):
    crowd = replace(faces, identities=np.where(faces.identities < 20, 0, faces.identities - 19), names=faces.names[:21])
    for seed in range(4):
        chosen, pairs, _ = choose_faces(crowd, None, 210, seed)
        assert np.bincount(chosen.identities).tolist() == [10] * 21
        assert pairs.same.sum() == 21 * 45
    # Where there is room for all of the people, the further faces of one come before nobody's.
    more = replace(crowd, identities=np.where(crowd.identities > 10, -1, crowd.identities), names=crowd.names[:11])
    chosen, _, _ = choose_faces(more, None, 300, 0)
    assert np.bincount(chosen.identities).tolist() == [200, *[10] * 10]


def test_faces_that_nobody_named_have_no_pairs(faces):
    nobody = replace(faces, identities=np.full(400, -1), names=())
    chosen, pairs, _ = choose_faces(nobody, None, 100, 0)
    assert (len(chosen), pairs) == (100, None)


def test_whole_people_are_drawn_by_seed(faces):
    drawn = [choose_faces(faces, None, 100, seed)[0].keys for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({key.rsplit("/", 1)[0] for key in drawn[0]}) == 10


def test_pairs_of_another_set_are_refused(faces, fixed):
    file, _ = fixed(40)
    with pytest.raises(UserError, match="names 2 faces that the test set lacks"):
        choose_faces(faces.subset(np.arange(2, 400)), file, 100, 0)
