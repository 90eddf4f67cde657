import sys

import pytest
import torch
from safetensors.torch import save_file
from small_teachers import SMALL

from faces.errors import UserError
from teachers import lora, weights
from teachers.backbones.swin import Swin


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Swin(**SMALL["swin_b"]).eval()


def test_both_formats_and_the_usual_wrappings_load(network, tmp_path) -> None:
    state = {name: value + 1 if value.is_floating_point() else value for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "c.pth")
    # A published file may hold the shifted-window masks, and leave out what the module computes itself.
    extra = {n: v for n, v in state.items() if not n.endswith(("position_index", "num_batches_tracked"))}
    torch.save(extra | {"layers.0.blocks.1.attn_mask": torch.zeros(16, 25, 25)}, tmp_path / "d.pt")
    for file in sorted(tmp_path.iterdir()):
        torch.manual_seed(5)
        other = Swin(**SMALL["swin_b"])
        weights.load_state(other, weights.read_state(file), file)
        assert all(
            torch.equal(value, state[name]) for name, value in other.state_dict().items() if value.is_floating_point()
        ), file


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_files_that_are_no_weights(network, tmp_path) -> None:
    torch.save(network.state_dict(), tmp_path / "good.pt")
    save_file({"a": torch.zeros(1000)}, tmp_path / "good.safetensors")
    for suffix in ("pt", "safetensors"):
        content = (tmp_path / f"good.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"byte.{suffix}").write_bytes(content[:1])
        (tmp_path / f"text.{suffix}").write_text("no weights, but words\n" * 100)
        (tmp_path / f"empty.{suffix}").write_bytes(b"")
    torch.save(Evil(), tmp_path / "evil.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"weights": "absent"}, tmp_path / "words.pt")
    (tmp_path / "folder.pt").mkdir()
    bad = [file for file in sorted(tmp_path.iterdir()) if file.stem != "good"] + [tmp_path / "absent.pt"]
    assert len(bad) == 13
    for file in bad:
        with pytest.raises(UserError, match=file.stem) as caught:
            weights.read_state(file)
        assert "\n" not in str(caught.value), file


def test_another_network_is_named_by_its_differences(network) -> None:
    state = network.state_dict()
    first, second, *_ = state
    state.pop(first)
    state[second] = torch.zeros(2, 2)
    state |= {"head.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        weights.load_state(network, state, "x.pt")
    message = str(caught.value)
    assert f"1 missing ({first})" in message
    assert "2 unexpected (head.weight, head.bias)" in message
    assert f"1 of another shape ({second} (2, 2) instead of" in message


def test_a_refused_checkpoint_leaves_the_network_alone(network) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: torch.full_like(value, 7) for name, value in before.items()}
    state["norm.bias"] = torch.full_like(state["norm.bias"], torch.nan)
    with pytest.raises(UserError, match=r"norm\.bias holds values that are not finite"):
        weights.load_state(network, state, "x.pt")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_adapted_checkpoint_does_not_fit_the_bare_network(network) -> None:
    other = Swin(**SMALL["swin_b"])
    lora.attach(other, 2)
    with pytest.raises(UserError, match="unexpected"):
        weights.load_state(network, other.state_dict(), "x.pt")


def test_the_hub_without_its_package_or_network(monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(UserError, match="bridgeface\\[hub\\]"):
            weights.hub_file("nobody/nothing", "model.pt")
    hub = pytest.importorskip("huggingface_hub")

    def fail(*_: object) -> str:
        raise hub.errors.LocalEntryNotFoundError("no connection\nmore words")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=r"cannot fetch model\.pt .*\(no connection\); download it elsewhere"):
        weights.hub_file("nobody/nothing", "model.pt")


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(UserError, match="pip install no_such_distribution_here"):
        weights.package_file("no_such_distribution_here", "x.dat")
    with pytest.raises(UserError, match=r"lacks absent\.dat"):
        weights.package_file("numpy", "absent.dat")
