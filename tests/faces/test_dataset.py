"""Subsets, joins, splits, leaks and files of face sets."""

import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faces.dataset import (
    Faces,
    Integrity,
    add_virtual_faces,
    check_strangers,
    concatenate,
    find_leaks,
    split_identities,
    told_together,
    virtual_faces,
)
from faces.errors import UserError


def _named(faces):
    return [faces.names[i] if i >= 0 else None for i in faces.identities]


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=20), st.data())
@settings(max_examples=40, deadline=None)
def test_a_subset_keeps_who_is_who_and_names_only_those_present(identities, data):
    count = len(identities)
    faces = Faces(
        images=np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
        landmarks=np.arange(count, dtype=np.float32)[:, None, None] * np.ones((1, 5, 2), np.float32),
        identities=np.array(identities),
        names=tuple("abcdef"),
        keys=tuple(map(str, range(count))),
    )
    chosen = data.draw(st.lists(st.integers(0, count - 1), max_size=10))
    part = faces.subset(chosen)
    whole_names = _named(faces)
    assert _named(part) == [whole_names[i] for i in chosen]
    assert set(part.names) == {name for name in _named(part) if name is not None}
    assert part.keys == tuple(str(i) for i in chosen)
    assert part.images[:, 0, 0, 0].tolist() == chosen
    assert part.landmarks[:, 0, 0].tolist() == chosen
    assert len(part) == len(chosen)
    assert part.labelled.tolist() == [i for i, one in enumerate(chosen) if identities[one] >= 0]


def test_joined_sets_share_people_by_name(noise_faces):
    one = replace(
        noise_faces([0, 1, -1], "one"),
        licence="free",
        integrity=Integrity(5, {"unreadable image": 2}, ("one/x",)),
    )
    two = replace(
        noise_faces([0, 1, 1], "two", 1),
        names=("person-1", "zoe"),
        licence="free",
        integrity=Integrity(4, {"unreadable image": 1, "exact duplicate": 3}, ("two/y",)),
    )
    both = concatenate([one, two])
    assert _named(both) == ["person-0", "person-1", None, "person-1", "zoe", "zoe"]
    assert both.names == ("person-0", "person-1", "zoe")
    assert both.keys == one.keys + two.keys
    np.testing.assert_array_equal(both.images, np.concatenate([one.images, two.images]))
    assert (both.source, both.licence) == ("one + two", "free")
    assert both.integrity == Integrity(
        9, {"unreadable image": 3, "exact duplicate": 3}, ("one/x", "two/y"),
        ("1 identity names occur in several --data parts: each counts as one person",),
    )  # fmt: skip
    assert told_together([one, two], both) == both.integrity.warnings
    with pytest.raises(UserError, match="given twice"):
        concatenate([one, one])


def test_a_photo_of_two_sets_is_taken_once(noise_faces):
    """Who is left with one face is alone; a person whom another part shows too is not."""
    photos = np.arange(6, dtype=np.uint8)[:, None].repeat(16, 1)
    one = replace(noise_faces([0, 0], "one"), photos=photos[:2], names=("ann",))
    two = replace(
        noise_faces([0, 0, 1, 1, 2, 2, 2], "two", 1), names=("bob", "ann", "cy"), photos=photos[[1, 2, 0, 3, 4, 0, 5]]
    )
    both = concatenate([one, two])
    assert _named(both) == ["ann", "ann", None, "ann", "cy", "cy"]
    assert both.alone == {2: "bob"}
    assert both.keys == one.keys + tuple(two.keys[i] for i in (1, 3, 4, 6))
    np.testing.assert_array_equal(both.photos, photos[[0, 1, 2, 3, 4, 5]])
    assert both.integrity.skipped == {"exact duplicate": 3, "label of an identity with one face": 1}
    assert told_together([one, two], both)[0] == "3 photos occur in several --data parts: each is taken once"
    assert concatenate([one, replace(two, photos=None)]).photos is None


@given(people=st.integers(4, 30), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_split_shares_no_person_and_leaves_two_on_each_side(people, share, seed):
    identities = np.concatenate([np.arange(people).repeat(3), [-1, -1]])
    faces = Faces(np.zeros((len(identities), 1, 1, 3), np.uint8), np.zeros(0), identities, (), ())
    train, test = split_identities(faces, share, seed)
    assert sorted([*train, *test]) == list(range(len(identities)))
    assert sorted(train) == train.tolist()
    assert sorted(test) == test.tolist()
    train_people, test_people = set(identities[train]) - {-1}, set(identities[test])
    assert not train_people & test_people
    assert {len(identities) - 2, len(identities) - 1} <= set(train)
    assert min(len(train_people), len(test_people)) >= 2
    if 2 <= round(share * people) <= people - 2:
        assert len(test_people) == round(share * people)
    again = split_identities(faces, share, seed)
    np.testing.assert_array_equal(test, again[1])


def test_another_seed_holds_out_other_people(noise_faces):
    faces = noise_faces(list(range(20)) * 2)
    tests = [frozenset(faces.identities[split_identities(faces, 0.25, seed)[1]]) for seed in range(5)]
    assert len(set(tests)) == 5
    assert {len(people) for people in tests} == {5}


@pytest.mark.parametrize(
    ("identities", "said"), [([0, 0, 0], "1 identity "), ([0, 0, 1, 1, 2, 2, -1], "3 identities ")]
)
def test_too_few_people_to_split_are_refused(noise_faces, identities, said):
    with pytest.raises(UserError, match=f"noise holds {said}.*at least 4"):
        split_identities(noise_faces(identities), 0.25, 0)


def test_different_people_are_no_leak(orl):
    train, test = split_identities(orl, 0.25, 0)
    assert find_leaks(orl.subset(train), orl.subset(test)) == []


def test_shared_names_and_nearly_the_same_images_are_leaks(orl):
    train_indices, test_indices = split_identities(orl, 0.25, 0)
    train, test = orl.subset(train_indices), orl.subset(test_indices)
    rng = np.random.default_rng(0)
    images = test.images.copy()
    source = train.images[[3, 50, 100, 150]].astype(float)
    images[0] = source[0]
    images[1] = (source[1] * 0.8 + 20).round()
    images[2] = (source[2] + rng.normal(0, 3, source[2].shape)).clip(0, 255)
    images[3] = cv2.resize(cv2.resize(source[3], (64, 64), interpolation=cv2.INTER_AREA), (128, 128))
    images[4] = source[3][:, ::-1]
    reasons = find_leaks(train, replace(test, images=images))
    assert reasons == [
        f"{test.keys[i]} and {train.keys[j]} show nearly the same image"
        for i, j in ((0, 3), (1, 50), (2, 100), (3, 150))
    ]
    renamed = replace(test, names=(train.names[4], *test.names[1:]))
    assert find_leaks(train, renamed) == [f"identity {train.names[4]!r} is in both sets"]
    assert find_leaks(train.subset([]), test) == []


def test_who_is_shown_once_is_known_in_other_sets(tmp_path, noise_faces):
    """A person with one photo is unlabelled in a set, and no stranger to another one that shows them too."""
    one, two, three = (noise_faces([0, 0, -1, -1]) for _ in range(3))
    one = replace(one, names=("ann",), keys=tuple("abcd"), alone={2: "bo", 3: "cy"}, source="one")
    two = replace(two, names=("bo",), keys=tuple("efgh"), alone={3: "di"}, source="two")
    three = replace(three, names=("ed",), keys=tuple("ijkl"), alone={2: "cy"}, source="three")
    assert find_leaks(one, replace(two, images=two.images[:, ::-1])) == ["identity 'bo' is in both sets"]
    check_strangers(two, three)
    with pytest.raises(UserError, match="1 people of three, 'cy' among them"):
        check_strangers(one, two.subset([2, 3]), three)
    both = concatenate([one, two, three])
    names = [both.names[i] if i >= 0 else None for i in both.identities]
    assert names == ["ann", "ann", "bo", "cy", "bo", "bo", None, None, "ed", "ed", "cy", None]
    assert both.alone == {7: "di"}
    both.save(tmp_path / "faces.npz")
    assert Faces.load(tmp_path / "faces.npz").alone == {7: "di"}
    assert both.subset([0, 7, 6]).alone == {1: "di"}
    assert add_virtual_faces(both, 5, 0).alone == {7: "di"}
    assert virtual_faces(both, 5, 0).alone == {}


def test_the_state_changes_with_keys_people_and_landmarks(noise_faces):
    faces = noise_faces([0, 0, 1, 1])
    others = [
        faces.subset([0, 1, 2]),
        faces.subset([1, 0, 2, 3]),
        replace(faces, keys=("x", *faces.keys[1:])),
        replace(faces, names=("x", *faces.names[1:])),
        replace(faces, identities=np.array([0, 1, 0, 1])),
        replace(faces, landmarks=faces.landmarks + 0.5),
    ]
    photos = [replace(faces, photos=np.full((4, 16), i, np.uint8)) for i in range(2)]
    assert len({one.state() for one in (faces, *others, *photos)}) == 9
    assert replace(faces, source="elsewhere").state() == faces.state()


def test_the_state_of_names_that_are_no_utf8(noise_faces):
    faces = replace(noise_faces([0, 0, 1, 1]), names=("ünï", "bob"))
    # What earlier runs kept is found by it.
    assert faces.state() == "d185e1d707128fb6"
    states = {replace(faces, names=(os.fsdecode(name), "bob")).state() for name in (b"\xff\xfeanna", b"\xfe\xffanna")}
    assert len(states | {faces.state()}) == 3


def test_a_saved_set_is_read_back(tmp_path, noise_faces):
    faces = replace(noise_faces([0, 1, -1, 0]), licence="free", source="here")
    faces.landmarks[1, 3:] = np.nan
    faces.save(tmp_path / "deep" / "faces.npz")
    again = Faces.load(tmp_path / "deep" / "faces.npz")
    for name in ("images", "landmarks", "identities"):
        one, other = getattr(faces, name), getattr(again, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for name in ("names", "keys", "source", "licence"):
        assert getattr(faces, name) == getattr(again, name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["faces.npz"]


def test_virtual_faces_are_unlabelled_means_of_two_people(noise_faces):
    faces = noise_faces([0, 0, 1, -1])
    more = add_virtual_faces(faces, 60, 0)
    assert len(more) == 64
    assert len(set(more.keys)) == 64
    np.testing.assert_array_equal(more.images[:4], faces.images)
    assert more.identities.tolist() == [0, 0, 1, -1] + [-1] * 60
    assert more.names == faces.names
    means = {
        (i, j): (faces.images[i].astype(int) + faces.images[j] + 1) // 2
        for i, j in ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    }
    seen = set()
    for image in more.images[4:]:
        match = [pair for pair, mean in means.items() if (mean == image).all()]
        assert len(match) == 1
        seen.add(match[0])
    assert seen == set(means)
    np.testing.assert_array_equal(add_virtual_faces(faces, 60, 0).images, more.images)
    assert (add_virtual_faces(faces, 60, 1).images != more.images).any()
    assert len(add_virtual_faces(noise_faces([0, 0, 0]), 5, 0)) == 3
