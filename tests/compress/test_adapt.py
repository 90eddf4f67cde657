import numpy as np
import pytest
import torch

from compress.adapt import Adapter, bridge_loss, fit_adapter, similarity_loss
from compress.config import Adapt
from students.student import EMBEDDING_DIM

QUICK = Adapt(steps=60, batch=32)


def people(count, shots, width, seed=0, noise=0.5):
    """Features of `count` people, `shots` each, around a centre of their own: (N, width) float32, labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count, width))
    features = np.repeat(centres, shots, 0) + noise * rng.standard_normal((count * shots, width))
    return features.astype(np.float32) + 3, np.repeat(np.arange(count), shots)


def others(count):
    return ~np.eye(count, dtype=bool)


def cosines(x):
    """Cosines of all ordered pairs of two different rows."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (x @ x.T)[others(len(x))]


def naive_loss(logits, teacher, labels, balance, temperature):
    """Eqs. 1-3 face by face and class by class, in float64."""

    def softmax(row):
        raised = [np.exp(np.float64(value)) for value in row]
        return [value / sum(raised) for value in raised]

    hard, soft = [], []
    for row, wanted, label in zip(logits, teacher, labels, strict=True):
        if label >= 0:
            hard.append(-np.log(softmax(row)[label]))
        p, q = softmax(np.float64(wanted) / temperature), softmax(np.float64(row) / temperature)
        soft.append(-sum(a * np.log(b) for a, b in zip(p, q, strict=True)))
    classification = sum(hard) / len(hard) if hard else 0.0
    return classification + balance * temperature**2 * sum(soft) / len(soft)


@pytest.mark.parametrize("labels", [[0, 2, 1, 2, 0], [0, -1, 1, -1, -1], [-1] * 5])
@pytest.mark.parametrize(("balance", "temperature"), [(1.0, 4.0), (0.3, 1.0), (0.0, 2.0)])
def test_the_loss_is_that_of_equations_one_to_three(labels, balance, temperature):
    rng = np.random.default_rng(1)
    logits, teacher = 3 * rng.standard_normal((2, 5, 3))
    found = bridge_loss(torch.tensor(logits), torch.tensor(teacher), torch.tensor(labels), balance, temperature)
    assert found.item() == pytest.approx(naive_loss(logits, teacher, labels, balance, temperature), rel=1e-12)


def test_an_unlabelled_face_takes_no_part_in_the_class_term():
    generator = torch.Generator().manual_seed(2)
    logits, teacher = torch.randn(2, 6, 4, generator=generator)
    logits.requires_grad_()
    bridge_loss(logits, teacher, torch.tensor([0, 1, -1, 3, -1, 2]), 0.0, 4.0).backward()
    assert (logits.grad.abs().sum(1) > 0).tolist() == [True, True, False, True, False, True]


def test_the_loss_without_labels_is_least_where_the_cosines_are_kept():
    rng = np.random.default_rng(4)
    features = rng.standard_normal((5, 3))
    wider = np.concatenate([2 * features, np.zeros((5, 4))], 1)  # the same cosines in another space
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    entropy = []
    for i in range(5):
        raised = np.exp([10 * cosines[i, j] for j in range(5) if j != i])
        p = raised / raised.sum()
        entropy.append(-(p * np.log(p)).sum())
    least = similarity_loss(torch.tensor(wider), torch.tensor(features)).item()
    assert least == pytest.approx(np.mean(entropy), rel=1e-9)
    for _ in range(5):
        other = torch.tensor(wider + 0.3 * rng.standard_normal(wider.shape))
        assert similarity_loss(other, torch.tensor(features)).item() > least


def test_the_adapter_is_two_linear_layers_on_standardised_features():
    torch.manual_seed(3)
    adapter = Adapter(7)
    with torch.no_grad():
        adapter.mean.normal_()
        adapter.scale.fill_(2.5)
        adapter.centre.normal_()
        adapter.fc1.bias.normal_()
        adapter.fc2.bias.normal_()
    x = np.random.default_rng(3).standard_normal((4, 7)).astype(np.float32)
    weights = {name: tensor.double().numpy() for name, tensor in adapter.state_dict().items()}
    hidden = (x - weights["mean"]) / 2.5 @ weights["fc1.weight"].T + weights["fc1.bias"]
    adapted = hidden @ weights["fc2.weight"].T + weights["fc2.bias"]
    np.testing.assert_allclose(adapter(torch.from_numpy(x)).detach(), adapted, atol=1e-5)
    centred = adapted - weights["centre"]
    np.testing.assert_allclose(adapter.targets(x), centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-6)
    assert adapter.fc1.out_features == 512
    assert adapter.fc2.out_features == EMBEDDING_DIM == 128


def test_targets_are_of_length_one_around_the_public_mean():
    features, labels = people(6, 8, 32)
    adapter, _ = fit_adapter(features, labels, QUICK, 0)
    targets = adapter.targets(features)
    assert (targets.dtype, targets.shape) == (np.float32, (48, 128))
    np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(adapter(torch.from_numpy(features)).mean(0), adapter.centre, atol=1e-5)
    np.testing.assert_allclose(adapter.mean, features.mean(0), rtol=1e-4)
    spread = np.linalg.norm(features - features.mean(0), axis=1).mean() / 32**0.5
    assert adapter.scale.item() == pytest.approx(spread, rel=1e-4)


def test_the_fit_recognises_the_people_and_tightens_them():
    features, labels = people(10, 8, 64, noise=1.0)
    adapter, accuracy = fit_adapter(features, labels, Adapt(steps=200, batch=64, keep=0), 0)
    assert accuracy["refitted"] > 0.95
    assert accuracy["adapted"] > 0.95
    same = (labels[:, None] == labels[None])[others(len(labels))]

    def gap(cosines):
        return cosines[same].mean() - cosines[~same].mean()

    assert gap(cosines(adapter.targets(features))) > gap(cosines(features - features.mean(0))) + 0.1


def test_what_is_kept_of_the_teachers_similarities_grows_with_its_weight():
    features, labels = people(10, 8, 64, noise=1.0)
    wanted = cosines(features - features.mean(0))
    errors = []
    for keep in (0.0, 1.0, 10.0):
        adapter, _ = fit_adapter(features, labels, Adapt(steps=200, batch=64, keep=keep), 0)
        errors.append(np.abs(cosines(adapter.targets(features)) - wanted).mean())
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.05


def test_some_unlabelled_faces_are_adapted_like_the_others():
    features, labels = people(6, 8, 32)
    extra = people(5, 4, 32, seed=9)[0]
    both = np.concatenate([features, extra])
    unlabelled = np.concatenate([labels, np.full(len(extra), -1)])
    adapter, accuracy = fit_adapter(both, unlabelled, Adapt(steps=150, batch=64), 0)
    assert accuracy["adapted"] > 0.95  # the share is of the labelled faces
    assert np.isfinite(adapter.targets(both)).all()


def test_no_label_at_all_keeps_the_similarities_between_faces():
    features, labels = people(8, 6, 48)
    adapter, accuracy = fit_adapter(features, np.full(len(labels), -1), Adapt(steps=200, batch=48), 0)
    assert accuracy == {"refitted": 0.0, "adapted": 0.0}
    targets = adapter.targets(features)
    np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-6)
    nearest = (targets @ targets.T - 2 * np.eye(len(targets))).argmax(1)
    assert (labels[nearest] == labels).mean() > 0.95


def test_the_same_seed_gives_the_same_module_whatever_ran_before():
    features, labels = people(5, 6, 16)

    def fit(seed):
        return fit_adapter(features, labels, QUICK, seed)[0].targets(features)

    first = fit(4)
    torch.manual_seed(99)
    torch.randn(7)
    np.testing.assert_array_equal(fit(4), first)
    assert np.abs(fit(5) - first).max() > 1e-3


def test_progress_counts_the_steps_of_both_fits():
    features, labels = people(4, 4, 8)
    done = []
    fit_adapter(features, labels, Adapt(steps=5, batch=4), 0, done.append)
    assert sum(done) == 10
