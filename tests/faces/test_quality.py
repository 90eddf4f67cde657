"""Quality in [0, 1], its map, its files, alpha and the CNN-IQA, each against something independent."""

import copy
import hashlib
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import uniform_filter
from scorers import Sharpness, tensor
from torch import nn
from torch.nn import functional as F

from faces.cnniqa import CNNIQA, load_plain, local_normalise
from faces.degrade import reduce, resize
from faces.errors import UserError
from faces.quality import (
    Alpha,
    Quality,
    alpha,
    alpha_percentiles,
    create_quality,
    fit_map,
    read_report,
    save,
    threshold,
)
from faces.quality_cli import main

# ---- the network


@torch.no_grad()
def test_the_network_is_the_published_one_patch_by_patch(network, crops):
    # The faces are grey: coloured, a mixed-up channel is seen.
    images = (crops[:6, :101, :90] * [1.0, 0.8, 0.3]).round().astype(np.uint8)
    x = tensor(images)
    scores = network.patch_scores(x)
    assert scores.shape == (6, 6, 5)
    state = {name: value.double() for name, value in network.state_dict().items()}
    for i in range(6):
        image = np.array(Image.fromarray(images[i]).convert("L")) / 255
        mean = uniform_filter(image, 3, mode="nearest")
        deviation = np.sqrt(np.maximum(uniform_filter(image**2, 3, mode="nearest") - mean**2, 0))
        normal = torch.from_numpy((image - mean) / (deviation + 0.05))
        for row, column in [(0, 0), (2, 3), (5, 4)]:
            patch = normal[13 * row : 13 * row + 32, 13 * column : 13 * column + 32]
            h = F.conv2d(patch[None, None], state["conv1.weight"], state["conv1.bias"])[0].flatten(1)
            pooled = torch.cat([h.max(1).values, h.min(1).values])
            hidden = torch.relu(state["fc1.weight"] @ pooled + state["fc1.bias"])
            hidden = torch.relu(state["fc2.weight"] @ hidden + state["fc2.bias"])
            # Pillow rounds the luminance to whole levels.
            wanted = float(state["fc3.weight"][0] @ hidden + state["fc3.bias"])
            assert float(scores[i, row, column]) == pytest.approx(wanted, abs=5e-3)
    np.testing.assert_allclose(network(x), scores.mean((1, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="32 px"):
        network(x[:, :, :31])


def test_normalisation_keeps_a_faint_texture_on_a_bright_ground():
    rng = np.random.default_rng(0)
    image = 0.9 + 1e-3 * rng.standard_normal((40, 40))
    x = torch.from_numpy(image).float()[None, None]
    exact = x[0, 0].double().numpy()
    mean = uniform_filter(exact, 3, mode="nearest")
    deviation = np.sqrt(np.maximum(uniform_filter(exact**2, 3, mode="nearest") - mean**2, 0))
    wanted = (exact - mean) / (deviation + 1e-3)
    np.testing.assert_allclose(local_normalise(x, 1e-3)[0, 0], wanted, atol=2e-3)


def test_training_sees_the_same_scores_and_gradients_as_a_dense_convolution(network, greys):
    patches = local_normalise(greys, 0.05)[:20, :, 40:72, 30:62]
    network.patches(patches).square().sum().backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    h = network.conv1(patches).flatten(2)
    pooled = torch.cat([h.max(2).values, h.min(2).values], 1)
    scores = network._regress(pooled)
    torch.testing.assert_close(network.patches(patches), scores)
    scores.square().sum().backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5 * float(p.grad.abs().max()))


def test_bare_weights_are_read_and_their_polarity_must_be_said(network, tmp_path, crops):
    file = tmp_path / "weights.pt"
    torch.save(network.state_dict(), file)
    torch.testing.assert_close(load_plain(file).conv1.weight, network.conv1.weight)
    with pytest.raises(UserError, match=r"quality fit --metric FILE with --lower-better \(DMOS"):
        create_quality(file)
    up, down = create_quality(file, lower_better=False), create_quality(file, lower_better=True)
    torch.testing.assert_close(up.scores(crops[:3]), -down.scores(crops[:3]))


def test_a_metric_without_a_map_sees_a_photo_as_it_is(crops):
    photo = resize(crops[:2], 64)[:, 8:48, :56]
    quality = Quality(Sharpness(), "sharpness", False)
    torch.testing.assert_close(quality.scores(photo), Sharpness()(tensor(photo)))
    # What is smaller than the metrics take is enlarged, side by side.
    assert quality.scores(photo[:, :20]).isfinite().all()


class _Hostile:
    def __reduce__(self):
        return (print, ("this code ran",))


@pytest.mark.parametrize("kind", ["other", "code", "cut", "nan", "list", "missing"])
def test_weights_of_another_kind_are_refused(kind, network, tmp_path, capsys):
    file, state = tmp_path / "weights.pt", network.state_dict()
    if kind == "other":
        torch.save({**state, "conv1.weight": torch.zeros(50, 3, 7, 7)}, file)
    elif kind == "code":
        file.write_bytes(pickle.dumps(_Hostile(), protocol=2))
    elif kind == "cut":
        torch.save(state, file)
        file.write_bytes(file.read_bytes()[:1000])
    elif kind == "nan":
        torch.save({**state, "fc3.bias": torch.tensor([math.nan])}, file)
    elif kind == "list":
        torch.save([1, 2], file)
    with pytest.raises(UserError, match=r"weights\.pt"):
        load_plain(file)
    assert "ran" not in capsys.readouterr().out


def test_the_live_weights_see_resolution(shared, crops):
    quality = create_quality(shared / "weights" / "cnniqa_live.pt", lower_better=True)
    dmos = [-float(quality.scores(reduce(crops[:40], px, 112)).mean()) for px in (None, 56, 32, 16, 7)]
    assert dmos == sorted(dmos)
    assert 15 < dmos[0] < 40
    assert 60 < dmos[3] < 80
    assert fit_map(quality, crops, 0)["separation"] > 0.95
    with pytest.raises(UserError, match="wrong way round"):
        fit_map(create_quality(shared / "weights" / "cnniqa_live.pt", lower_better=False), crops, 0)


# ---- quality and its map


def test_the_map_puts_the_medians_at_ninety_and_ten_percent(crops):
    for sign, lower_better in ((1.0, False), (-1.0, True)):
        quality = Quality(Sharpness(sign), "sharpness", lower_better)
        facts = fit_map(quality, crops[:51], 0)
        low = reduce(crops[:51], 16, 112)
        assert float(quality.of(crops[:51]).median()) == pytest.approx(0.9, abs=1e-4)
        assert float(quality.of(low).median()) == pytest.approx(0.1, abs=1e-4)
        assert facts["median_full"] == pytest.approx(float(Sharpness()(tensor(crops[:51])).median()))
        full, small = (Sharpness()(tensor(images)).numpy() for images in (crops[:51], low))
        assert facts["separation"] == pytest.approx((full[:, None] > small).mean())
    same = [quality.of(reduce(crops[:9], px, 112)) for px in (8, 12, 24, 48, None)]
    assert all((worse < better).all() for worse, better in itertools.pairwise(same))


def test_a_wrong_polarity_and_a_blind_metric_are_refused(crops):
    with pytest.raises(UserError, match="low scores taken as good: its polarity seems declared the wrong way"):
        fit_map(Quality(Sharpness(), "sharpness", lower_better=True), crops, 0)

    class Brightness(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))

    with pytest.raises(UserError, match="does not see resolution"):
        fit_map(Quality(Brightness(), "brightness", lower_better=False), crops, 0)
    with pytest.raises(UserError, match="no map"):
        Quality(Sharpness(), "sharpness", lower_better=False)(torch.zeros(1, 3, 112, 112))
    with pytest.raises(UserError, match="at least one face"):
        fit_map(Quality(Sharpness(), "sharpness", lower_better=False), crops[:0], 0)


def test_quality_takes_any_size_and_gives_no_gradient(sharpness, crops):
    x = tensor(crops[:5]).requires_grad_()
    q = sharpness(x)
    assert (q.shape, q.dtype, q.requires_grad) == ((5,), torch.float32, False)
    assert not any(p.requires_grad for p in sharpness.parameters())
    for size in ((150, 150), (120, 120), (32, 32), (16, 20)):
        other = F.interpolate(x, size, mode="bicubic", antialias=True).detach()
        found = sharpness(other.clamp(0, 1))
        assert ((found >= 0) & (found <= 1)).all()
        # Enlarged, a face is as good as it was; reduced, it is worse, however sharp its few pixels are.
        assert (((found - q).abs() < 0.1) if size[0] > 112 else (found < q - 0.2)).all()
    assert sharpness(torch.rand(2, 3, 112, 112, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_metric_that_fails_is_told(crops):
    class Broken(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3)) / 0

    class Short(nn.Module):
        def forward(self, x):
            return x.mean()

    with pytest.raises(UserError, match="not finite"):
        fit_map(Quality(Broken(), "broken", lower_better=False), crops, 0)
    with pytest.raises(UserError, match="1 scores for 64 images"):
        fit_map(Quality(Short(), "short", lower_better=False), crops, 0)


def test_quality_stays_in_evaluation_mode(network, crops):
    quality = Quality(network, "n", lower_better=False)
    holder = nn.Sequential(quality)
    holder.train()
    assert not network.dropout.training
    torch.testing.assert_close(quality.scores(crops[:4]), quality.scores(crops[:4]), rtol=0, atol=0)


# ---- files


def test_a_written_score_is_read_back(network, crops, tmp_path):
    quality = Quality(network, "mine", lower_better=True)
    quality.centre.fill_(0.3)
    quality.slope.fill_(5.0)
    quality.side.fill_(96)
    file = tmp_path / "q.safetensors"
    save(quality, file, {"steps": 3})
    again = create_quality(file)
    assert (again.name, again.lower_better, again.scorer.stride, again.scorer.constant) == ("mine", True, 13, 0.05)
    torch.testing.assert_close(again.of(crops[:4]), quality.of(crops[:4]), rtol=0, atol=0)
    assert read_report(file)["report"] == {"steps": 3}
    with pytest.raises(UserError, match=r"\.safetensors"):
        save(quality, tmp_path / "q.pt")


def test_a_map_belongs_to_the_weights_it_was_fitted_to(sharpness, tmp_path, monkeypatch, crops):
    monkeypatch.setattr("faces.quality.create_metric", lambda name, weights, low: (Sharpness(), False))
    own, other, file = tmp_path / "own.pth", tmp_path / "other.pth", tmp_path / "q.safetensors"
    own.write_bytes(b"one")
    other.write_bytes(b"another")
    quality = create_quality("some metric", own)
    fit_map(quality, crops, 0)
    save(quality, file)
    assert read_report(file)["weights_sha256"] == hashlib.sha256(b"one").hexdigest()
    again = create_quality(file, own)
    torch.testing.assert_close(again.of(crops[:2]), quality.of(crops[:2]), rtol=0, atol=0)
    save(again, tmp_path / "again.safetensors")
    assert read_report(tmp_path / "again.safetensors") == read_report(file)
    digest = hashlib.sha256(b"one").hexdigest()[:12]
    with pytest.raises(UserError, match=f"some metric with the weights file of SHA-256 {digest}, and none was given"):
        create_quality(file)
    with pytest.raises(UserError, match=rf"{digest}, and .*other\.pth is another one"):
        create_quality(file, other)
    with pytest.raises(UserError, match=r"no weights file .*none\.pth"):
        create_quality(file, tmp_path / "none.pth")

    Image.fromarray(crops[0]).save(tmp_path / "face.png")
    done = CliRunner().invoke(main, ["score", str(file), str(tmp_path / "face.png")])
    assert (done.exit_code, done.stderr.startswith("error: "), digest in done.stderr) == (2, True, True)
    done = CliRunner().invoke(main, ["score", str(file), str(tmp_path / "face.png"), "--weights", str(own)])
    assert (done.exit_code, done.stdout.split()[0]) == (0, f"{float(quality.of(crops[:1])[0]):.4f}")

    save(sharpness, file)
    create_quality(file)
    with pytest.raises(UserError, match=r"with pyiqa's own weights: leave out .*own\.pth"):
        create_quality(file, own)
    about = read_report(file)
    del about["weights_sha256"]
    save_file(load_file(file), file, {"format": "bridgeface quality 1", "about": json.dumps(about)})
    assert create_quality(file, own).weights_sha256 == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("kind", ["cut", "foreign", "lacking", "nan", "shape", "stride", "about", "side"])
def test_a_damaged_score_is_one_message(kind, network, sharpness, tmp_path):
    file = tmp_path / "q.safetensors"
    quality = Quality(network, "mine", lower_better=False)
    quality.side.fill_(112)
    save(quality, file)
    tensors, about = load_file(file), read_report(file)
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif kind == "foreign":
        save_file(tensors, file)
    else:
        if kind == "lacking":
            del tensors["slope"]
        elif kind == "nan":
            tensors["centre"] = torch.tensor(math.nan)
        elif kind == "shape":
            tensors["scorer.fc3.bias"] = torch.zeros(2)
        elif kind == "side":
            tensors["side"] = torch.tensor(10**9)
        about = [1] if kind == "about" else {**about, "stride": "x" if kind == "stride" else 13}
        save_file(tensors, file, {"format": "bridgeface quality 1", "about": json.dumps(about)})
    with pytest.raises(UserError, match=r"q\.safetensors is (damaged|no quality score)") as problem:
        create_quality(file)
    assert ("of this program" in str(problem.value)) == (kind in ("foreign", "about"))


def test_pyiqa_metrics_by_name(tmp_path, crops):
    pytest.importorskip("pyiqa")
    with pytest.raises(UserError, match="did you mean cnniqa"):
        create_quality("cniqa")
    with pytest.raises(UserError, match="no no-reference metric"):
        create_quality("psnr")
    with pytest.raises(UserError, match="no weights file"):
        create_quality("cnniqa", tmp_path / "none.pth")
    torch.manual_seed(0)
    plain = {
        "conv1.weight": torch.randn(50, 3, 7, 7) * 0.1,
        "conv1.bias": torch.zeros(50),
        **{name: value for name, value in CNNIQA().state_dict().items() if name.startswith("fc")},
    }
    torch.save(plain, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="cannot make cnniqa"):
        create_quality("cnniqa", tmp_path / "bare.pth")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"params": _Hostile()}, protocol=2))
    with pytest.raises(UserError, match="plain tensors"):
        create_quality("cnniqa", tmp_path / "code.pth")
    weights = tmp_path / "weights.pth"
    torch.save({"params": plain}, weights)
    with pytest.raises(UserError, match="high is good"):
        create_quality("cnniqa", weights, lower_better=True)
    quality = create_quality("cnniqa", weights)
    assert not quality.lower_better
    h = F.conv2d(tensor(crops[:2]), plain["conv1.weight"])
    h = torch.relu(F.linear(torch.cat([h.amax((2, 3)), h.amin((2, 3))], 1), plain["fc1.weight"], plain["fc1.bias"]))
    h = torch.relu(F.linear(h, plain["fc2.weight"], plain["fc2.bias"]))
    wanted = F.linear(h, plain["fc3.weight"], plain["fc3.bias"])[:, 0]
    torch.testing.assert_close(quality.scores(crops[:2]), wanted, rtol=1e-3, atol=1e-4)

    quality.slope.fill_(2.0)
    quality.side.fill_(112)
    save(quality, tmp_path / "map.safetensors")
    assert set(load_file(tmp_path / "map.safetensors")) == {"centre", "slope", "side"}
    again = create_quality(tmp_path / "map.safetensors", weights)
    torch.testing.assert_close(again.of(crops[:2]), quality.of(crops[:2]))


# ---- alpha


def test_alpha_is_the_papers_and_its_cut_is_counted(sharpness, crops):
    images = np.concatenate([crops[:30], reduce(crops[:30], 16, 112)])
    q = sharpness.of(images).numpy().astype(np.float64)
    module = Alpha.of(sharpness, images, 0)
    assert float(module.t) == pytest.approx(q.mean() + q.std(), abs=1e-5)
    assert threshold(torch.tensor([0.0, 1.0])) == pytest.approx(1.0)
    assert alpha(torch.tensor([0.0, 0.35, 0.7, 1.0]), 0.7).tolist() == pytest.approx([0, 0.15, 0.5, 0.8])
    assert module.describe()["clamped"] is None
    found = module(tensor(images))
    raw = 0.5 + q - float(module.t)
    np.testing.assert_allclose(found, np.clip(raw, 0, 1), atol=1e-4)
    cut = ((raw < 0) | (raw > 1)).mean()
    assert 0 < cut < 1
    assert module.describe() == {
        "quality": "sharpness", "t": float(module.t), "seen": 60, "clamped": pytest.approx(cut),
    }  # fmt: skip
    percentiles = alpha_percentiles(module, crops[:30])
    np.testing.assert_allclose(percentiles["16"], np.percentile(np.clip(raw[30:], 0, 1), [5, 50, 95]), atol=1e-3)
    assert module.describe()["seen"] == 60
    other = Alpha(copy.deepcopy(sharpness), 0.0)
    other.load_state_dict(module.state_dict())
    assert other.describe() == module.describe()
