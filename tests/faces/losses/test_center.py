"""Center loss against loops in float64."""

import torch

from faces.losses.center import CenterLoss

LABELS = torch.tensor([0, 2, 2, 0, 2])


def test_value_gradient_and_the_centres_move() -> None:
    torch.manual_seed(0)
    loss = CenterLoss(3, 4, rate=0.5).double()
    loss.centres.normal_()
    before = loss.centres.clone()
    features = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    losses = loss(features, LABELS)
    for i, label in enumerate(LABELS.tolist()):
        naive = sum((float(features[i, d].detach()) - float(before[label, d])) ** 2 for d in range(3)) / 2
        torch.testing.assert_close(losses[i], torch.tensor(naive, dtype=torch.float64))
    losses.sum().backward()
    torch.testing.assert_close(features.grad, (features - before[LABELS]).detach())
    for label in range(4):
        rows = [i for i in range(5) if LABELS[i] == label]
        delta = sum((before[label] - features[i].detach() for i in rows), torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(loss.centres[label], before[label] - 0.5 * delta / (1 + len(rows)))


def test_evaluation_leaves_the_centres() -> None:
    loss = CenterLoss(3, 4).eval()
    features = torch.randn(5, 3)
    losses = loss(features, LABELS)
    assert not loss.centres.any()
    torch.testing.assert_close(losses, features.square().sum(1) / 2)
    assert list(loss.state_dict()) == ["centres"]
    assert list(loss.parameters()) == []


def test_centres_find_the_means() -> None:
    torch.manual_seed(0)
    loss, features = CenterLoss(3, 4), torch.randn(5, 3)
    for _ in range(60):
        loss(features, LABELS)
    torch.testing.assert_close(loss.centres[2], features[LABELS == 2].mean(0))
