import numpy as np
import pytest
import torch
from torch.nn import functional as F
from trainings import people, small_teacher

from faces.errors import UserError
from teachers import augment, lora
from teachers.losses.octuplet import margin_for, octuplet_loss
from teachers.losses.partial_fc import PartialFC
from teachers.losses.relational import relational_anchor
from teachers.methods import qgface
from teachers.methods.base import create_method, kind_of
from teachers.optimise import create_head_optimiser
from teachers.settings import DEFAULTS, finetune_settings

METHODS = [name for name in DEFAULTS if name != "none"]


def method_of(name: str, classes: int = 5, **changes):
    torch.manual_seed(0)
    changes = ({"anchor": 0.0, "copies": 1} if name == "octuplet" else {}) | changes
    how = finetune_settings(name, **changes)
    return create_method(how, 16, classes, small_teacher("mobilefacenet").backbone)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def draws() -> torch.Tensor:
    return augment.keyed_draws(0, 0, np.arange(4))


@pytest.mark.parametrize("name", METHODS)
def test_views_losses_and_gradients(name, images, draws) -> None:
    method = method_of(name)
    method.start(torch.randn(20, 16), torch.arange(20) % 5)
    views = method.see(images, draws)
    assert all(view.shape == images.shape and view.min() >= 0 and view.max() <= 1 for view in views)
    labels = torch.tensor([0, 0, 3, 3])
    features = [torch.randn(4, 16, requires_grad=True) for _ in views]
    losses = method(features, labels, views)
    total = sum(value for value in losses.values() if value.requires_grad)
    total.backward()
    assert torch.isfinite(total)
    assert features[0].grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in method.parameters() if parameter.requires_grad)


def test_octuplet_sees_each_face_and_its_low_copy_in_the_same_light(images, draws) -> None:
    method = method_of("octuplet", sizes=(12,))
    high, low = method.see(images, draws)
    assert torch.allclose(low, augment.low_resolution(high, torch.full((4,), 12)), atol=1e-6)
    assert not torch.equal(high, images)


def test_a_term_alone_computes_what_it_needs(images, draws) -> None:
    high, low = method_of("octuplet").see(images, draws)
    labels = torch.tensor([0, 0, 3, 3])
    features = [torch.randn(4, 16) for _ in range(2)]
    for terms, needed in ((("hhh",), [0]), (("lll",), [1]), (("hhh", "lll"), [0, 1])):
        method = method_of("octuplet", terms=terms, triplet_margin=1.0)
        views = method.see(images, draws)
        assert all(torch.equal(view, (high, low)[i]) for view, i in zip(views, needed, strict=True))
        both = method_of("octuplet", triplet_margin=1.0)(features, labels, [])
        alone = method([features[i] for i in needed], labels, [])
        assert {name: float(value) for name, value in alone.items()} == {name: float(both[name]) for name in terms}


def test_each_copy_has_another_size_and_the_losses_are_their_mean(images, draws) -> None:
    one, three = method_of("octuplet", triplet_margin=1.0), method_of("octuplet", triplet_margin=1.0, copies=3)
    high, *low = three.see(images, draws)
    assert torch.equal(low[0], one.see(images, draws)[1])
    sizes = torch.stack([augment.mixed_px(draws, (7, 14, 28), copy) for copy in range(3)], 1)
    assert (sizes.sort(1).values == torch.tensor([7, 14, 28])).all()
    assert all(
        torch.equal(view, augment.low_resolution(high, px)) for view, px in zip(low, sizes.unbind(1), strict=True)
    )
    labels, features = torch.tensor([0, 0, 3, 3]), [torch.randn(4, 16) for _ in range(4)]
    found = three(features, labels, [])
    for term, value in found.items():
        alone = [float(one([features[0], features[i]], labels, [])[term]) for i in (1, 2, 3)]
        assert float(value) == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_the_anchor_is_the_distance_from_the_feature_before(images, draws) -> None:
    backbone = small_teacher("mobilefacenet").backbone
    how = finetune_settings("octuplet", anchor=3.0, copies=1, triplet_margin=1.0)
    method = create_method(how, 16, 5, backbone)
    views = [torch.rand(4, 3, 112, 112) for _ in range(2)]
    with torch.no_grad():
        held = backbone(views[0])
        for parameter in backbone.parameters():
            parameter.add_(0.1)
    features = [torch.randn(4, 16, requires_grad=True) for _ in range(2)]
    losses = method(features, torch.tensor([0, 0, 3, 3]), views)
    expected = 3 * sum((feature - held).norm(dim=1).mean() for feature in features)
    assert torch.allclose(losses["anchor"], expected)
    losses["anchor"].backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features)


def test_the_relational_anchor_sees_the_sample_and_every_batch_since() -> None:
    method = method_of("octuplet", relational=0.5, copies=2, triplet_margin=1.0)
    sample = torch.randn(20, 16)
    method.start(sample, torch.arange(20) % 5)
    spread, crowd = float((sample - sample.mean(0)).square().sum(1).mean()), sample
    labels = torch.tensor([0, 0, 3, 3, -1, -1])
    for _ in range(2):
        views = [torch.rand(6, 3, 112, 112) for _ in range(3)]
        features = [torch.randn(6, 16, requires_grad=True) for _ in views]
        losses = method(features, labels, views)
        assert set(losses) == {"hhh", "hll", "lhh", "lll", "relational"}
        with torch.no_grad():
            held = method.before(views[0])
        crowd = torch.cat([crowd, held])
        high, *low = (relational_anchor(feature, held, crowd, spread) for feature in features)
        assert torch.allclose(losses["relational"], 0.5 * (high + sum(low) / 2), rtol=1e-4)
    losses["relational"].backward()
    assert all(feature.grad.any(1).all() for feature in features)


def test_without_singles_faces_without_a_label_have_the_anchor_alone() -> None:
    method = method_of("octuplet", triplet_margin=9.0, singles=False)
    features = [torch.randn(6, 16, requires_grad=True) for _ in range(2)]
    losses = method(features, torch.tensor([0, 0, 3, 3, -1, -1]), [])
    known = method([feature[:4] for feature in features], torch.tensor([0, 0, 3, 3]), [])
    assert {name: value.item() for name, value in losses.items()} == {
        name: value.item() for name, value in known.items()
    }
    sum(losses.values()).backward()
    assert all(feature.grad[:4].any() and not feature.grad[4:].any() for feature in features)


def test_with_singles_each_face_without_a_label_is_someone() -> None:
    method = method_of("octuplet", triplet_margin=9.0)
    features = [torch.randn(6, 16, requires_grad=True) for _ in range(2)]
    labels = torch.tensor([0, 0, 3, 3, -1, -1])
    losses = method(features, labels, [])
    expected = octuplet_loss(*features, labels, margin=9.0)
    assert {name: value.item() for name, value in losses.items()} == {n: v.item() for n, v in expected.items()}
    sum(losses.values()).backward()
    assert all(feature.grad.any(1).all() for feature in features)


def test_the_anchor_holds_faces_without_a_label_too() -> None:
    method = method_of("octuplet", anchor=2.0, triplet_margin=9.0)
    features = [torch.randn(6, 16, requires_grad=True) for _ in range(2)]
    views = [torch.rand(6, 3, 112, 112) for _ in range(2)]
    method(features, torch.tensor([0, 0, 3, 3, -1, -1]), views)["anchor"].backward()
    # Of a mean of lengths, each row's gradient has the length weight / rows.
    for feature in features:
        assert torch.allclose(feature.grad.norm(dim=1), torch.full((6,), 2 / 6))


def test_the_triplet_margin_follows_the_teacher_unless_it_is_given() -> None:
    features = torch.randn(40, 16)
    for distance in ("euclidean", "squared", "cosine"):
        method = method_of("octuplet", distance=distance)
        method.start(features, torch.arange(40))
        assert float(method.margin) == pytest.approx(margin_for(features, distance))
    given = method_of("octuplet", triplet_margin=0.7)
    given.start(features, torch.arange(40))
    assert float(given.margin) == pytest.approx(0.7)


@pytest.mark.parametrize("head", ["softmax", "cosface", "arcface", "sphereface", "adaface"])
def test_class_weights_start_at_each_persons_mean_direction(head) -> None:
    method = method_of("full", head=head)
    before = method.head.proxies.detach().clone()
    labels = torch.tensor([0, 0, 1, 3])
    features = torch.randn(4, 16) * 3
    features = features + 5  # what all faces share
    method.start(features, labels)
    features = features - features.median(0).values
    proxies = method.head.proxies.detach()
    mean = F.normalize(F.normalize(features[:2]).sum(0), dim=0)
    assert torch.allclose(F.normalize(proxies[0], dim=0), mean, atol=1e-5)
    assert torch.allclose(proxies[2], before[2]), "nobody of class 2 was in the sample"
    random = method_of("full", head=head, head_from="random")
    random.start(features, labels)
    assert torch.equal(random.head.proxies.detach(), before)


def test_a_share_of_the_faces_is_small(images) -> None:
    many = images[:1].expand(300, -1, -1, -1)
    draws = augment.keyed_draws(0, 0, np.arange(300))
    (seen,) = method_of("full", low_share=0.75, low_px=(7.0, 20.0)).see(many, draws)
    straight = augment.flip(many, draws)
    small = (seen - straight).abs().amax((1, 2, 3)) > 1e-3
    assert abs(float(small.float().mean()) - 0.75) < 0.08


def test_qgface_parts_images_by_their_norm() -> None:
    """Equation 3: an image of low quality has no classification loss; equations 2 and 4: its pair has a contrastive
    one."""
    method = method_of("qgface", contrastive="batch")
    method.eval()
    method.head.statistics.started.fill_(True)
    method.head.statistics.mean.fill_(10.0)
    method.head.statistics.std.fill_(1.0)
    # zhat = .333 (norm - 10) / 1.001; the gate of .2 is zhat = -.6, a norm of 8.2.
    norms = torch.tensor([12.0, 11.0, 9.0, 7.0])
    query = (F.normalize(torch.randn(4, 16)) * norms[:, None]).requires_grad_()
    key = (F.normalize(torch.randn(4, 16)) * 11).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3])
    losses = method([query, key], labels, [torch.zeros(1)] * 2)
    assert float(losses["high_share"]) == pytest.approx(7 / 8)
    losses["class"].backward(retain_graph=True)
    assert query.grad[3].abs().sum() == 0
    assert (query.grad[:3].abs().sum(1) > 0).all()
    query.grad = key.grad = None
    losses["contrastive"].backward()
    assert (query.grad[:3] == 0).all()
    assert query.grad[3].abs().sum() > 0
    assert key.grad is None


def test_qgface_without_partition_gives_everything_both_losses() -> None:
    method = method_of("qgface", contrastive="batch", partition=False)
    query, key = (torch.randn(4, 16, requires_grad=True) for _ in range(2))
    losses = method([query, key], torch.tensor([0, 1, 2, 3]), [torch.zeros(1)] * 2)
    assert float(losses["high_share"]) == 1
    losses["contrastive"].backward()
    assert (query.grad.abs().sum(1) > 0).all()


def test_the_baselines_see_a_face_once(images, draws) -> None:
    for changes, different in (({"augmentation": "none"}, False), ({"augmentation": "ours"}, True)):
        method = method_of("qgface", both_views=False, **changes)
        views = method.see(images, draws)
        assert len(views) == 1
        assert method.pool is None
        assert (not torch.equal(views[0], augment.flip(images, draws))) == different
    assert len(method_of("qgface", contrastive="none").see(images, draws)) == 2


def test_qgface_refuses_another_head() -> None:
    with pytest.raises(UserError, match="head=adaface"):
        method_of("qgface", head="cosface")


def test_the_queue_is_as_long_as_there_are_people_and_moves_on() -> None:
    method = method_of("qgface", classes=9)
    features = [torch.randn(4, 16) for _ in range(2)]
    method(features, torch.tensor([0, 1, 2, 3]), [torch.zeros(1)] * 2)
    assert method.pool.features.shape == (9, 16)
    assert int(method.pool.filled) == 8


@pytest.mark.parametrize("name", ["lora", "petalface"])
def test_adapters_alone_train(name) -> None:
    teacher = small_teacher()
    kind_of(name).adapt(teacher.backbone, finetune_settings(name, rank=2))
    trained = {n for n, p in teacher.backbone.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in teacher.backbone.named_parameters() if lora.is_adapter(n)}
    twins = [n for n in trained if "low_quality" in n or "high_quality" in n]
    assert bool(twins) == (name == "petalface")
    # At step 0 the adapted teacher is the frozen one.
    x = torch.rand(2, 3, 150, 150)
    with torch.no_grad():
        assert torch.equal(teacher.backbone.eval()(x), small_teacher().backbone(x))


def test_adapters_that_find_no_layer_are_the_users_mistake() -> None:
    how = finetune_settings("petalface", twin="nothing", single="nothing")
    with pytest.raises(UserError, match="no layer matches 'nothing' or 'nothing': choose other layers"):
        kind_of("petalface").adapt(small_teacher().backbone, how)


def test_many_people_get_a_sampled_head() -> None:
    method = method_of("full", sample_rate=0.5)
    assert isinstance(method.head, PartialFC)
    with pytest.raises(UserError, match="know cosface and arcface"):
        method_of("full", sample_rate=0.5, head="softmax")


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "adagrad"])
def test_a_sampled_head_learns_with_every_optimiser(optimiser) -> None:
    how = finetune_settings("full", sample_rate=0.2, optimiser=optimiser, lr=0.1)
    torch.manual_seed(0)
    head = PartialFC(4, 50, sample_rate=how.sample_rate)
    steps = create_head_optimiser(list(head.parameters()), how)
    features, labels = torch.randn(8, 4), torch.arange(8)
    before = head.proxies.detach().clone()
    for _ in range(2):
        steps.zero_grad()
        head(features, labels).backward()
        steps.step()
    changed = (head.proxies.detach() != before).any(1)
    assert changed[:8].all()
    assert not changed.all(), "those that took no part stay"


def test_the_momentum_queue_compares_what_is_centred(monkeypatch) -> None:
    """Its encoder is the network before any step: what it says of the same image is what the network says."""
    compared = []
    monkeypatch.setattr(qgface, "contrastive_loss", lambda *given: compared.append(given) or torch.zeros(len(given[0])))
    backbone = small_teacher("mobilefacenet").backbone.eval()
    method = create_method(finetune_settings("qgface", contrastive="momentum"), 16, 5, backbone)
    images, labels = torch.rand(10, 3, 112, 112, generator=torch.Generator().manual_seed(1)), torch.arange(5)
    with torch.no_grad():
        features = backbone(images)
        method.start(features, labels.repeat(2))
        assert method.centre.norm() > 0.1 * features.norm(dim=1).mean()
        method(list(features.chunk(2)), labels, list(images.chunk(2)))
    query, key = compared[0][:2]
    torch.testing.assert_close(query, features[:5] - method.centre)
    torch.testing.assert_close(key, features[5:] - method.centre)


def test_settings_that_are_wrong() -> None:
    with pytest.raises(UserError, match="octuplet alone"):
        finetune_settings("full", unlabelled=4)
    with pytest.raises(UserError, match="without singles"):
        finetune_settings("octuplet", unlabelled=4, singles=False, anchor=0.0)
    with pytest.raises(UserError, match=r"unknown teacher method 'octopus'.*octuplet"):
        finetune_settings("octopus")
    with pytest.raises(UserError, match=r"learning_rate.*known: .*lr"):
        finetune_settings("full", learning_rate=1)
    with pytest.raises(UserError, match="low_share = 2"):
        finetune_settings("full", low_share=2)
    for method in ("lora", "petalface"):
        with pytest.raises(UserError, match="train_batch_norm: adapters go with frozen weights"):
            finetune_settings(method, train_batch_norm=True)
    with pytest.raises(UserError, match="interpolate: the statistics that train_batch_norm learns"):
        finetune_settings("qgface", train_batch_norm=True, interpolate=0.9)


def test_alpha_is_fitted_on_the_training_faces(tmp_path) -> None:
    """On made faces: alpha tells full-size from small ones, is the same when read again, and was not fitted twice."""
    from faces.align import crop
    from faces.quality import alpha_percentiles
    from teachers.alpha import prepare_alpha
    from teachers.fabric import create_fabric

    teacher, faces = small_teacher(), people(24, 3)
    noisy = np.random.default_rng(0).normal(0, 25, faces.images.shape)
    sharp = (faces.images + noisy).clip(0, 255).astype(np.uint8)
    faces = faces.__class__(**{**faces.__dict__, "images": sharp})
    how = finetune_settings("petalface", quality_steps=40)
    one = prepare_alpha(teacher, faces, how, 0, tmp_path, create_fabric())
    (file,) = tmp_path.glob("quality-*.safetensors")
    written = file.stat().st_mtime_ns
    again = prepare_alpha(teacher, faces, how, 0, tmp_path, create_fabric())
    assert file.stat().st_mtime_ns == written
    assert torch.equal(one.t, again.t)
    how = finetune_settings("petalface", quality_steps=20)
    other = prepare_alpha(teacher, faces, how, 0, tmp_path, create_fabric())
    assert not torch.equal(one.t, other.t)
    crops = crop(faces.images[:40], faces.landmarks[:40], teacher.template, teacher.input_px)
    medians = {name: values[1] for name, values in alpha_percentiles(one, crops).items()}
    assert medians["full"] - medians["16"] > 0.3
