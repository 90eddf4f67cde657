import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_as_torchrun
from trainings import Brightness, people, small_teacher, train, train_as_rank

from faces.errors import UserError
from teachers import loop, lora
from teachers.checkpoint import Checkpoint
from teachers.fabric import block_classes, create_fabric
from teachers.loop import finetune, spread
from teachers.methods.base import kind_of
from teachers.optimise import rate_at
from teachers.settings import finetune_settings

SCRATCH = {"train_batch_norm": True, "head_from": "random", "optimiser": "sgd", "lr": 0.05}
CASES = [
    ("dlib_resnet", "octuplet", {"average": 0.7, "interpolate": 0.8}),
    ("dlib_resnet", "octuplet", {"anchor": 0.0}),
    ("dlib_resnet", "octuplet", {"unlabelled": 4, "relational": 1.0}),
    ("dlib_resnet", "petalface", {"center": 0.01}),
    ("dlib_resnet", "full", {"head": "arcface", "accumulate": 2}),
    ("mobilefacenet", "qgface", SCRATCH),
    ("mobilefacenet", "qgface", SCRATCH | {"contrastive": "momentum", "augmentation": "adaface"}),
]
NAMES = [f"{method}-{'-'.join(map(str, changes.values()))}" for _, method, changes in CASES]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert list(a) == list(b)
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def moved(state: dict[str, torch.Tensor], kind: str) -> float:
    before = small_teacher(kind).backbone.state_dict()
    return max(
        float((state[name] - before[name]).abs().max()) if name in before else float(state[name].abs().max())
        for name in state
        if state[name].is_floating_point() and (name in before or name.endswith("up.weight"))
    )


@pytest.mark.parametrize(("kind", "method", "changes"), CASES, ids=NAMES)
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(kind, method, changes, tmp_path) -> None:
    whole = train(str(tmp_path / "whole"), kind, method, **changes)
    assert moved(whole, kind) > 1e-4, "training changes the teacher"
    train(str(tmp_path / "cut"), kind, method, stop_after=3, **changes)
    resumed = train(str(tmp_path / "cut"), kind, method, **changes)
    assert largest_difference(whole, resumed) == 0


def test_bfloat16_is_near_float32_and_resumes_like_it(tmp_path) -> None:
    def run(name: str, precision: str, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        # Adam would turn a gradient that is zero but for rounding into a whole step, up or down.
        options = {"precision": precision, "relational": 1.0, "optimiser": "sgd"}
        return train(str(tmp_path / name), "dlib_resnet", "octuplet", stop_after, **options)

    exact, whole = run("exact", "32"), run("whole", "bf16")
    assert 0 < largest_difference(exact, whole) < 0.3 * moved(exact, "dlib_resnet")
    assert all(value.is_contiguous() for value in whole.values())
    run("cut", "bf16", 3)
    assert largest_difference(whole, run("cut", "bf16")) == 0


@pytest.mark.parametrize("method", ["lora", "petalface"])
def test_the_seed_alone_decides_how_adapters_start(method, tmp_path) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        teacher, how = small_teacher(), finetune_settings(method, steps=1, batch=8, lr=1e-9)
        teacher.alpha = Brightness()
        torch.rand(number)  # Whatever was drawn before in this process.
        finetune(teacher, people(), how, seed, create_fabric("cpu"), tmp_path / str(number))
        found.append({name: value for name, value in teacher.backbone.state_dict().items() if "down" in name})
    assert largest_difference(found[0], found[1]) == 0
    assert largest_difference(found[0], found[2]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method", "changes"), CASES, ids=NAMES)
def test_two_processes_give_the_weights_of_one(kind, method, changes, tmp_path) -> None:
    # Adam would turn a gradient that is zero but for rounding into a whole step, up or down; and in float32 rounding
    # alone parts the runs with batch norms of eight faces.
    changes = changes | {"steps": 20, "optimiser": "sgd", "lr": 0.005, "precision": "64"}
    alone = train(str(tmp_path / "one"), kind, method, **changes)
    both = run_as_torchrun(2, train_as_rank, str(tmp_path / "two"), kind, method, changes)
    assert largest_difference(both[0], both[1]) == 0
    assert moved(alone, kind) > 1e-3
    assert largest_difference(alone, both[0]) < 1e-6


def test_two_processes_in_a_few_steps(tmp_path) -> None:
    alone = train(str(tmp_path / "one"), "dlib_resnet", "octuplet", steps=3, optimiser="sgd")
    changes = {"steps": 3, "optimiser": "sgd"}
    both = run_as_torchrun(2, train_as_rank, str(tmp_path / "two"), "dlib_resnet", "octuplet", changes)
    assert largest_difference(alone, both[0]) < 1e-5


def test_frozen_weights_stay_and_batch_norms_do_not_drift(tmp_path) -> None:
    before = small_teacher("mobilefacenet").backbone.state_dict()
    state = train(str(tmp_path), "mobilefacenet", "lora", low_share=0.5)
    changed = [name for name in before if not torch.equal(before[name], state[name])]
    assert not changed
    assert any(lora.is_adapter(name) for name in state)


def test_features_that_collapse_stop_the_run_and_say_so(tmp_path) -> None:
    with pytest.raises(UserError, match=r"collapsed to one point at step \d+ .* Lower lr"):
        train(str(tmp_path), "dlib_resnet", "octuplet", steps=60, lr=0.05, clip=0.0, warmup=0.0, anchor=0.0)


def test_a_loss_that_is_not_finite(tmp_path) -> None:
    with pytest.raises(UserError, match=r"the loss became nan.*lower lr"):
        train(str(tmp_path), "dlib_resnet", "full", lr=1e30, clip=0.0, warmup=0.0)


def test_checkpoints_of_other_runs_and_damaged_ones(tmp_path) -> None:
    folder = str(tmp_path)
    train(folder, "dlib_resnet", "octuplet", stop_after=2)
    with pytest.raises(UserError, match=r"settings, precision, seed, teacher, .* differ"):
        train(folder, "dlib_resnet", "octuplet", lr=2e-3)
    with pytest.raises(UserError, match=r"settings, precision, seed, teacher, .* differ"):
        train(folder, "dlib_resnet", "octuplet", precision="bf16")
    # The same faces under other names, and other weights under the same name.
    mixed = replace(people(), identities=np.roll(people().identities, 2))
    heavier = small_teacher()
    for parameter in heavier.backbone.parameters():
        parameter.mul_(1.1)
    how = finetune_settings("octuplet", steps=6, batch=8, lr=1e-3, dropout=0.0, clip=5.0)
    for teacher, faces in ((small_teacher(), mixed), (heavier, people())):
        with pytest.raises(UserError, match=r"settings, precision, seed, teacher, .* differ"):
            finetune(teacher, faces, how, 3, create_fabric(), tmp_path)
    with pytest.raises(UserError, match=r"measured on other faces or pairs"):
        finetune(small_teacher(), people(), how, 3, create_fabric(), tmp_path, measured_on="others")
    pointer = tmp_path / "checkpoint.json"
    noted = json.loads(pointer.read_text())
    pointer.write_text(json.dumps(noted | {"world_size": 4}))
    with pytest.raises(UserError, match="written by 4 processes"):
        train(folder, "dlib_resnet", "octuplet")
    pointer.write_text(json.dumps(noted))
    model = tmp_path / noted["state"] / "model.ckpt"
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UserError, match="no checkpoint of this fine-tuning"):
        train(folder, "dlib_resnet", "octuplet")


def test_a_run_goes_on_with_its_own_quality_score_alone(tmp_path) -> None:
    how = finetune_settings("petalface", steps=2, batch=8)

    def run(threshold: float) -> None:
        teacher = small_teacher()
        teacher.alpha = Brightness()
        teacher.alpha.register_buffer("t", torch.tensor(threshold))
        finetune(teacher, people(), how, 3, create_fabric(), tmp_path)

    run(0.7)
    run(0.7)
    with pytest.raises(UserError, match="quality score or faces differ"):
        run(0.8)


def test_a_state_holds_what_trains(tmp_path) -> None:
    sizes = {}
    for method in ("full", "lora"):
        train(str(tmp_path / method), "dlib_resnet", method, stop_after=2, rank=1)
        sizes[method] = next((tmp_path / method).glob("step-*/model.ckpt")).stat().st_size
    assert sizes["lora"] < 0.5 * sizes["full"]


def test_the_weights_are_put_together_from_a_state(tmp_path) -> None:
    state = train(str(tmp_path), "dlib_resnet", "octuplet")
    held = Checkpoint(tmp_path, "", create_fabric(), lambda _: True).backbone()
    assert largest_difference(state, held) == 0


def test_only_the_newest_state_is_kept(tmp_path) -> None:
    train(str(tmp_path), "dlib_resnet", "octuplet", stop_after=5)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000005"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_state_to_go_on_from(tmp_path) -> None:
    """SIGKILL twice at moments of chance: the end is that of a run that was never killed."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(1); import trainings; "
        "trainings.train(sys.argv[2], 'dlib_resnet', 'octuplet', steps=40)"
    )
    here, folder = str(Path(__file__).parent), tmp_path / "killed"
    for wait in (0.4, 1.1):
        process = subprocess.Popen([sys.executable, "-c", code, here, str(folder)])
        while not (folder / "checkpoint.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    resumed = train(str(folder), "dlib_resnet", "octuplet", steps=40)
    assert largest_difference(resumed, train(str(tmp_path / "whole"), "dlib_resnet", "octuplet", steps=40)) == 0


def test_the_curve_has_losses_rates_and_checks(tmp_path) -> None:
    teacher, how = small_teacher(), finetune_settings("octuplet", steps=6, batch=8, lr=1e-3, anchor=0.0)
    measured: list[bool] = []

    def check(one: torch.nn.Module) -> dict[str, float]:
        measured.append(one.training)
        return {"full": 50.0}

    curve = finetune(teacher, people(), how, 0, create_fabric(), tmp_path, check=check, checks=2)
    assert measured == [False] * 3
    assert [row["step"] for row in curve if "full" in row] == [0, 3, 6]
    last = curve[-1]
    assert {"lr", "loss", "hhh", "hll", "lhh", "lll", "spread", "gradient"} <= set(last)
    assert last["loss"] == pytest.approx(sum(last[term] for term in ("hhh", "hll", "lhh", "lll")), rel=1e-5)
    assert not teacher.backbone.training


def test_a_centre_of_before_is_not_lost(tmp_path) -> None:
    how, centres, losses = finetune_settings("full", steps=1, batch=8, lr=1e-9), [], []
    for centre in (None, torch.full((128,), 5.0)):
        teacher = small_teacher()
        teacher.centre = centre
        losses.append(finetune(teacher, people(), how, 0, create_fabric(), tmp_path / str(centre is None))[-1]["loss"])
        centres.append(teacher.centre)
    torch.testing.assert_close(*centres)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_who_cannot_be_fine_tuned(tmp_path) -> None:
    adapted, how = small_teacher(), finetune_settings("octuplet", batch=8)
    kind_of("lora").adapt(adapted.backbone, finetune_settings("lora"))
    with pytest.raises(UserError, match="has adapters already"):
        finetune(adapted, people(), how, 0, create_fabric(), tmp_path)
    for faces in (people(1), replace(people(2), identities=np.full(8, -1), names=())):
        for method in ("full", "octuplet", "qgface"):
            with pytest.raises(UserError, match=r"[01] people have two faces or more in made"):
                finetune(small_teacher(), faces, finetune_settings(method, batch=8), 0, create_fabric(), tmp_path)


def test_the_rate_rises_then_falls_to_zero() -> None:
    how = finetune_settings("octuplet", steps=100, warmup=0.1)
    rates = [rate_at(step, how) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 90)


def test_the_average_is_that_of_the_weights_along_the_way(tmp_path) -> None:
    options = {"optimiser": "sgd", "lr": 0.02}
    along = [train(str(tmp_path / str(i)), "dlib_resnet", "octuplet", stop_after=i, **options) for i in range(1, 7)]
    averaged = train(str(tmp_path / "mean"), "dlib_resnet", "octuplet", average=0.5, **options)
    shares = [0.5 ** (6 - i) for i in range(1, 7)]
    for name, value in averaged.items():
        expected = sum(share * state[name].double() for share, state in zip(shares, along, strict=True)) / sum(shares)
        assert torch.allclose(value.double(), expected, atol=1e-6), name
    assert largest_difference(averaged, along[-1]) > 1e-5


@pytest.mark.parametrize(("method", "average"), [("full", 0.0), ("octuplet", 0.5), ("lora", 0.0)])
def test_interpolated_weights_lie_between_those_before_and_those_after(method, average, tmp_path) -> None:
    whole = train(str(tmp_path / "whole"), "dlib_resnet", method, average=average)
    drawn_back = train(str(tmp_path / "back"), "dlib_resnet", method, average=average, interpolate=0.75)
    # Adapters too: as the loop seeds them.
    before = train(str(tmp_path / "before"), "dlib_resnet", method, lr=1e-30)
    for name, value in drawn_back.items():
        expected = 0.25 * before[name].double() + 0.75 * whole[name].double()
        assert torch.allclose(value.double(), expected, atol=1e-6), name
    assert largest_difference(drawn_back, whole) > 1e-6


@pytest.mark.parametrize("changes", [{"average": 0.5}, {"interpolate": 0.5}])
def test_weights_that_need_the_whole_network_are_refused_where_it_is_sharded(changes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "is_sharded", lambda fabric: True)
    with pytest.raises(UserError, match=r"averaged or interpolated weights .* not with fsdp"):
        train(str(tmp_path), "dlib_resnet", "octuplet", **changes)


def test_spread_of_known_features() -> None:
    opposite = torch.tensor([[2.0, 0.0], [-5.0, 0.0]])
    assert spread(opposite) == pytest.approx(1.0)
    assert spread(torch.ones(4, 3)) == pytest.approx(0.0, abs=1e-6)


def test_a_batch_that_processes_cannot_share(tmp_path) -> None:
    with pytest.raises(Exception, match="does not divide among 2"):
        run_as_torchrun(2, train_as_rank, str(tmp_path), "dlib_resnet", "full", {"batch": 5})


def test_devices_that_are_not_there() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            create_fabric("cuda")
    with pytest.raises(UserError, match="unknown device"):
        create_fabric("tpu")
    with pytest.raises(UserError, match="fsdp shards over GPUs"):
        create_fabric("cpu", strategy="fsdp")
    with pytest.raises(UserError, match="unknown precision"):
        create_fabric("cpu", precision="fp8")


def test_fsdp_wraps_the_repeated_blocks() -> None:
    from teachers.backbones.dlib_resnet import DlibResNet
    from teachers.backbones.swin import Block, Swin

    assert Block in block_classes(Swin(depths=(2, 2, 1), dim=24, heads=(2, 2, 2), embedding_dim=16))
    assert {kind.__name__ for kind in block_classes(DlibResNet())} == {"Block"}
