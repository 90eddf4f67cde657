"""The training loop on a few synthetic faces."""

import copy
import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from few_faces import EACH, PEOPLE, SHORT, few_crops, few_examples, fresh_student

from faces.degrade import Degradation, degrade
from faces.errors import UserError
from students import create_student, train
from students.batches import Examples, Recipe
from students.heads import CLASS_LOSSES, Heads
from students.tiny import Tiny
from students.train import train_student


def _digest(student):
    state = student.state_dict()
    return hashlib.sha256(b"".join(key.encode() + state[key].numpy().tobytes() for key in sorted(state))).hexdigest()


@pytest.mark.parametrize("loss", ["relational", "regression"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon", "sgd"])
def test_the_losses_fall_and_people_are_told_apart(loss, optimiser):
    how = Recipe(samples=120 * 32, batch=32, loss=loss, optimiser=optimiser)
    if optimiser == "sgd":
        how = replace(how, lr=3e-3)
    examples, student, steps = few_examples(), fresh_student(), []
    curve = train_student(student, examples, how, 0, progress=steps.append)
    assert steps == [0] + [1] * 120
    assert [row["step"] for row in curve] == list(range(1, 121))
    for row in curve:
        assert row["loss"] == pytest.approx(row["class"] + row["mimic"], rel=1e-5)
    for name in ("class", "mimic"):
        first, last = (np.mean([row[name] for row in part]) for part in (curve[:10], curve[-10:]))
        assert last < 0.8 * first, name
    assert not student.training
    assert next(student.parameters()).is_contiguous()
    images = degrade(
        torch.from_numpy(examples.crops).permute(0, 3, 1, 2), 16, 0.1, Degradation(), torch.Generator().manual_seed(9)
    )
    with torch.no_grad():
        feature = torch.nn.functional.normalize(student(images))
    same = torch.from_numpy(examples.labels[:, None] == examples.labels)
    scores = feature @ feature.T
    assert scores[same].mean() > scores[~same].mean() + 0.3


def test_no_step_is_no_training():
    with pytest.raises(UserError, match="trains nothing"):
        train_student(fresh_student(), few_examples(), Recipe(samples=0), 0)


def test_the_recipes_threads_train_and_the_callers_come_back():
    def threads():
        return torch.get_num_threads(), cv2.getNumThreads()

    before, seen = threads(), []
    torch.set_num_threads(1)
    cv2.setNumThreads(2)
    try:
        how = Recipe(samples=3 * 32, batch=32, threads=2)
        train_student(fresh_student(), few_examples(), how, 0, progress=lambda _: seen.append(threads()))
        # OpenCV's second thread would make no crop faster, and take a core of the training's.
        assert seen == [(1, 2), (2, 1), (2, 1), (2, 1)]
        assert threads() == (1, 2)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_people_are_told_apart_by_each_classification_loss(name):
    examples, student = replace(few_examples(width=0), labels=np.arange(PEOPLE).repeat(EACH)), fresh_student()
    # A fifth of the faces unlabelled.
    examples.labels[::5] = -1
    curve = train_student(student, examples, Recipe(samples=150 * 32, batch=32, class_loss=name), 0)
    assert set(curve[-1]) == {"step", "lr", "loss", "class"}
    assert np.mean([row["class"] for row in curve[-10:]]) < 0.8 * np.mean([row["class"] for row in curve[:10]])
    images = degrade(
        torch.from_numpy(examples.crops).permute(0, 3, 1, 2), 16, 0.1, Degradation(), torch.Generator().manual_seed(9)
    )
    with torch.no_grad():
        feature = torch.nn.functional.normalize(student(images))
    people = torch.arange(PEOPLE).repeat_interleave(EACH)
    same, scores = people[:, None] == people, feature @ feature.T
    assert scores[same].mean() > scores[~same].mean() + 0.2


def test_bf16_rounds_the_layers_and_nothing_else():
    curves, students = {}, {}
    for precision in ("fp32", "bf16"):
        students[precision] = fresh_student()
        curves[precision] = train_student(students[precision], few_examples(), replace(SHORT, precision=precision), 0)
    losses = {name: [row["loss"] for row in curve] for name, curve in curves.items()}
    assert losses["bf16"][:3] == pytest.approx(losses["fp32"][:3], rel=0.01)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"] != losses["fp32"]
    assert {value.dtype for name, value in students["bf16"].state_dict().items() if "num_batches" not in name} == {
        torch.float32
    }


def test_the_learning_rate_rises_then_falls_linearly():
    curve = train_student(fresh_student(), few_examples(), replace(SHORT, samples=40 * 20, lr=0.002, warmup=0.1), 0)
    expected = [0.002 * min(step / 4, (40 - step + 1) / 36, 1) for step in range(1, 41)]
    np.testing.assert_allclose([row["lr"] for row in curve], expected)
    how = replace(SHORT, samples=40 * 20, optimiser="muon", lr=0.002, warmup=0.1)
    np.testing.assert_allclose([row["lr"] for row in train_student(fresh_student(), few_examples(), how, 0)], expected)
    curve = train_student(fresh_student(), few_examples(), replace(SHORT, optimiser="sgd", lr=0.001), 0)
    assert {row["lr"] for row in curve} == {0.001}


def test_a_long_run_keeps_about_200_rows():
    assert replace(SHORT, samples=10, batch=20).steps == 1
    curve = train_student(fresh_student(), few_examples(), Recipe(samples=405 * 4, batch=4), 0)
    assert 200 <= len(curve) <= 205
    assert curve[-1]["step"] == 405


class _Killed(Exception):
    pass


def _killed_at(steps):
    done = 0

    def progress(count):
        nonlocal done
        done += count
        if done == steps:
            raise _Killed

    return progress


@pytest.mark.parametrize(
    "how",
    [
        SHORT,
        replace(SHORT, average=0.8, pretrain=0.4),
        replace(SHORT, optimiser="sgd", loss="regression", lr=1e-3, versions=3),
        replace(SHORT, class_loss="center"),
        replace(SHORT, class_loss="sphereface+"),
        replace(SHORT, precision="bf16"),
        replace(SHORT, optimiser="muon"),
    ],
    ids=["default", "averaged", "paper", "center", "sphereface+", "bf16", "muon"],
)
def test_killed_and_resumed_equals_never_killed(tmp_path, how):
    examples = few_examples(width=32)
    whole = fresh_student()
    curve = train_student(whole, examples, how, 5)
    checkpoint = tmp_path / "student.pt"
    for steps in (4, 5, 11):
        with pytest.raises(_Killed):
            train_student(fresh_student(), examples, how, 5, "cpu", checkpoint, _killed_at(steps), checkpoint_seconds=0)
        assert checkpoint.is_file()
    # What the dead process had drawn or initialised must not matter.
    resumed, counted = fresh_student(99), []
    torch.rand(7)
    again = train_student(resumed, examples, how, 5, "cpu", checkpoint, counted.append, checkpoint_seconds=0)
    assert counted == [10, 1, 1]
    assert _digest(resumed) == _digest(whole)
    assert again == curve
    # Killed after its last step: nothing is left to do.
    ended, counted = fresh_student(3), []
    assert train_student(ended, examples, how, 5, "cpu", checkpoint, counted.append) == curve
    assert counted == [12]
    assert _digest(ended) == _digest(whole)


def test_no_checkpoint_is_written_before_its_time(tmp_path):
    train_student(fresh_student(), few_examples(), SHORT, 0, checkpoint=tmp_path / "a.pt", checkpoint_seconds=1000)
    assert list(tmp_path.iterdir()) == []


def test_the_seed_decides_the_bytes():
    found = []
    for seed in (0, 0, 1):
        student = fresh_student()
        torch.rand(3)
        train_student(student, few_examples(), SHORT, seed)
        found.append(_digest(student))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_targets_and_labels_each_teach_alone_and_one_is_needed():
    targets_only = train_student(fresh_student(), few_examples(labels=False), SHORT, 0)
    assert set(targets_only[-1]) == {"step", "lr", "loss", "mimic"}
    labels_only = train_student(fresh_student(), few_examples(width=0), SHORT, 0)
    assert set(labels_only[-1]) == {"step", "lr", "loss", "class"}
    for labels in (None, np.full(48, -1)):
        with pytest.raises(UserError, match="no labelled face and no teacher target"):
            train_student(fresh_student(), Examples(few_crops(), 0.1, None, labels), SHORT, 0)
    unlabelled = replace(few_examples(), labels=np.full(48, -1))
    assert set(train_student(fresh_student(), unlabelled, SHORT, 0)[-1]) == {"step", "lr", "loss", "mimic"}
    with pytest.raises(UserError, match="no training face"):
        train_student(fresh_student(), Examples(few_crops()[:0], 0.1, np.zeros((0, 128), np.float32), None), SHORT, 0)


def test_the_parts_are_weighted():
    one = train_student(fresh_student(), few_examples(), replace(SHORT, samples=20), 0)[0]
    two = train_student(
        fresh_student(), few_examples(), replace(SHORT, samples=20, class_weight=3, mimic_weight=0.5), 0
    )[0]
    assert two["class"] == pytest.approx(3 * one["class"], rel=1e-5)
    assert two["mimic"] == pytest.approx(0.5 * one["mimic"], rel=1e-5)
    other = train_student(fresh_student(), few_examples(), replace(SHORT, samples=20, temperature=3.0), 0)[0]
    assert other["class"] == one["class"]
    assert other["mimic"] != one["mimic"]


def test_pretraining_uses_the_labels_only():
    curve = train_student(fresh_student(), few_examples(), replace(SHORT, pretrain=0.5), 0)
    assert ["mimic" in row for row in curve] == [False] * 6 + [True] * 6
    curve = train_student(fresh_student(), few_examples(labels=False), replace(SHORT, pretrain=0.5), 0)
    assert all("mimic" in row for row in curve), "without labels there is nothing else to learn from"


def test_unlabelled_faces_do_not_enter_the_class_term():
    torch.manual_seed(0)
    student, heads = create_student("tiny16").eval(), Heads(PEOPLE, 0)
    images = torch.rand(6, 3, 16, 16)
    labels = torch.tensor([0, -1, 3, -1, -1, 5])
    loss = train._losses(student(images), heads, None, labels, SHORT)["class"]
    known = labels >= 0
    logits = heads.identity.head.linear(student(images[known])).double()
    naive = sum(torch.logsumexp(row, 0) - row[y] for row, y in zip(logits, labels[known], strict=True)) / 3
    assert loss.item() == pytest.approx(naive.item(), rel=1e-5)
    loss.backward()
    expected = torch.autograd.grad(naive, heads.identity.head.linear.weight)[0]
    torch.testing.assert_close(heads.identity.head.linear.weight.grad, expected.float(), atol=1e-6, rtol=1e-4)
    nobody = train._losses(student(images), heads, None, torch.full((6,), -1), SHORT)["class"]
    nobody.backward()
    assert nobody == 0


def test_targets_of_another_width_go_through_a_linear_map():
    assert isinstance(Heads(0, 128).widen, torch.nn.Identity)
    assert isinstance(Heads(3, 0).widen, torch.nn.Identity)
    assert Heads(0, 512).widen.weight.shape == (512, 128)
    assert Heads(0, 512).identity is None
    student = fresh_student()
    curve = train_student(student, few_examples(width=512), replace(SHORT, samples=100 * 20), 0)
    assert curve[-1]["mimic"] < 0.8 * curve[0]["mimic"]
    assert student(torch.rand(2, 3, 16, 16)).shape == (2, 128)
    heads, images, targets = Heads(0, 512), torch.rand(5, 3, 16, 16), torch.rand(5, 512)
    found = train._losses(student(images), heads, targets, None, replace(SHORT, loss="regression"))["mimic"]
    wide = student(images) @ heads.widen.weight.T + heads.widen.bias
    assert found.item() == pytest.approx((wide - targets).square().sum(1).mean().item(), rel=1e-5)


def test_the_averaged_student_is_the_exponential_mean_of_its_steps(monkeypatch):
    states, plain = [], Tiny.forward

    def record(student, images):
        states.append({key: value.clone() for key, value in student.state_dict().items()})
        return plain(student, images)

    monkeypatch.setattr(Tiny, "forward", record)
    last, averaged = fresh_student(), fresh_student()
    train_student(last, few_examples(), SHORT, 0)
    afters = [*states[1:], copy.deepcopy(last.state_dict())]
    train_student(averaged, few_examples(), replace(SHORT, average=0.7), 0)
    found = averaged.state_dict()
    for key, first in afters[0].items():
        if not first.is_floating_point():
            continue
        weights = 0.7 ** np.arange(len(afters))[::-1]
        mean = sum(weight * state[key].double() for weight, state in zip(weights / weights.sum(), afters, strict=True))
        torch.testing.assert_close(found[key].double(), mean, atol=1e-5, rtol=1e-4)
    assert _digest(last) != _digest(averaged)


@pytest.mark.parametrize(
    "damage", ["empty", "text", "half", "flipped", "list", "tensor", "no_step", "network", "pickle"]
)
def test_a_corrupt_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path / "student.pt"
    train_student(fresh_student(), few_examples(), SHORT, 0, checkpoint=path, checkpoint_seconds=0)
    data = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("hello, this is no checkpoint at all")
    elif damage == "half":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:100] + bytes(byte ^ 0x55 for byte in data[100:1500]) + data[1500:])
    elif damage == "pickle":
        path.write_bytes(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.")
    else:
        state = torch.load(path, weights_only=True)
        if damage == "no_step":
            del state["step"]
        if damage == "network":
            state["both"]["0.fc1.weight"] = torch.zeros(3, 3)
        torch.save({"list": [1, 2], "tensor": torch.zeros(3)}.get(damage, state), path)
    with pytest.raises(UserError, match=r"(?s)student\.pt is no checkpoint of this run .* --fresh") as problem:
        train_student(fresh_student(), few_examples(), SHORT, 0, checkpoint=path)
    assert "weights_only" not in str(problem.value)


@pytest.mark.parametrize(
    ("how", "seed", "examples"),
    [
        (replace(SHORT, lr=1e-4), 0, few_examples()),
        (replace(SHORT, samples=6 * 20), 0, few_examples()),
        (SHORT, 1, few_examples()),
        (SHORT, 0, few_examples(width=64)),
        (SHORT, 0, few_examples(labels=False)),
    ],
    ids=["rate", "steps", "seed", "width", "labels"],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, how, seed, examples):
    path = tmp_path / "student.pt"
    train_student(fresh_student(), few_examples(), SHORT, 0, checkpoint=path, checkpoint_seconds=0)
    with pytest.raises(UserError, match="is no checkpoint of this run"):
        train_student(fresh_student(), examples, how, seed, checkpoint=path)


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "sgd"])
def test_a_loss_that_is_not_finite_stops_the_run(optimiser):
    examples = few_examples()
    examples.targets[5] = np.nan
    with pytest.raises(UserError, match=r"loss became nan at step \d+; lower distill\.lr"):
        train_student(fresh_student(), examples, replace(SHORT, optimiser=optimiser), 0)
    with pytest.raises(UserError, match="loss became"):
        train_student(fresh_student(), few_examples(), replace(SHORT, optimiser="sgd", loss="regression", lr=1e6), 0)
