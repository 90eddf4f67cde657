"""What a student is given, step by step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from few_faces import SHORT, few_examples, fresh_student

from faces.degrade import Degradation, degrade
from faces.errors import UserError
from students.batches import Batches
from students.train import train_student


def _seen(monkeypatch, examples, how, seed=0):
    """The images, targets and labels that the student was given, in order."""
    seen, plain = [], Batches.at

    def record(batches, step):
        seen.append(plain(batches, step))
        return seen[-1]

    monkeypatch.setattr(Batches, "at", record)
    train_student(fresh_student(), examples, how, seed)
    monkeypatch.undo()
    return [torch.cat(part) for part in zip(*seen, strict=True)]


def _bytes(images):
    return [image.contiguous().numpy().tobytes() for image in images]


def test_a_fixed_set_of_versions_is_shuffled_epoch_by_epoch(monkeypatch):
    how = replace(SHORT, samples=2 * 3 * 48, batch=24, versions=3)
    images, _, _ = _seen(monkeypatch, few_examples(), how)
    epochs = _bytes(images[: 3 * 48]), _bytes(images[3 * 48 :])
    assert len(set(epochs[0])) == 3 * 48
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]
    assert set(_bytes(_seen(monkeypatch, few_examples(), how, 1)[0])).isdisjoint(epochs[0])
    assert torch.equal((images * 255).round() / 255, images)


def test_without_a_fixed_set_each_version_is_new_and_each_epoch_has_each_face_once(monkeypatch):
    examples = replace(few_examples(), targets=np.arange(48, dtype=np.float32)[:, None] * np.ones((1, 128), np.float32))
    images, targets, labels = _seen(monkeypatch, examples, replace(SHORT, samples=3 * 48, batch=16))
    assert len(set(_bytes(images))) == 3 * 48
    faces = targets[:, 0].long()
    for epoch in faces.split(48):
        assert sorted(epoch.tolist()) == list(range(48))
    assert not torch.equal(faces[:48], faces[48:96])
    assert torch.equal(labels, torch.from_numpy(examples.labels)[faces])
    # Each image is its own face: nearest to that face's plain reduction among all people's.
    how = Degradation(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    plain = degrade(torch.from_numpy(examples.crops).permute(0, 3, 1, 2), 16, 0.1, how, torch.Generator())
    mild = replace(SHORT, samples=48, batch=16, degradation=Degradation(0, 0, 0, 0, 0, 0, 0.02, 0.01, 0, 0, 0))
    images, targets, _ = _seen(monkeypatch, examples, mild)
    nearest = torch.cdist(images.flatten(1), plain.flatten(1)).argmin(1)
    assert torch.equal(nearest, targets[:, 0].long())


def test_sizes_are_mixed_and_the_student_serves_them_all(monkeypatch):
    seen, plain = [], Batches.at
    monkeypatch.setattr(Batches, "at", lambda *given: seen.append(plain(*given)) or seen[-1])
    how = replace(SHORT, samples=40 * 20, sizes=(8, 16, 24))
    train_student(fresh_student(), few_examples(), how, 0)
    found = [images.shape[2] for images, _, _ in seen]
    assert set(found) == {8, 16, 24}
    assert min(map(found.count, (8, 16, 24))) > 5
    again = Batches(few_examples(), 16, how, 0, "cpu")
    assert [again.at(step)[0].shape[2] for step in range(5)] == found[:5]
    with pytest.raises(UserError, match="a fixed set of versions has one size"):
        train_student(fresh_student(), few_examples(), replace(how, versions=2), 0)


def test_batches_that_reach_over_an_epochs_end_lose_no_face(monkeypatch):
    examples = replace(few_examples(), targets=np.arange(48, dtype=np.float32)[:, None] * np.ones((1, 128), np.float32))
    for batch in (20, 100):
        _, targets, _ = _seen(monkeypatch, examples, replace(SHORT, samples=300, batch=batch))
        for epoch in targets[:, 0].long().split(48)[:-1]:
            assert sorted(epoch.tolist()) == list(range(48))
