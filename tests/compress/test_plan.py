import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compress import plan
from compress.config import load_config
from compress.pipeline import STAGES
from faces.errors import UserError
from teachers.ensemble import Ensemble
from teachers.registry import create_teacher

OUT = Path("runs/none")


def names(wanted):
    return [stage.name for stage in plan.choose(STAGES, wanted)]


def test_stages_are_chosen_in_their_own_order():
    assert names(None) == [stage.name for stage in STAGES]
    assert names("report, export") == ["export", "report"]
    assert names("report,report,") == ["report"]


@pytest.mark.parametrize("wanted", ["", ",", "train", "data,,trian", "Data"])
def test_no_stage_or_an_unknown_one_is_the_users_mistake(wanted):
    with pytest.raises(UserError, match="Known: data, teacher, adapt"):
        plan.choose(STAGES, wanted)


def test_a_run_among_the_faces_is_refused(tmp_path):
    (tmp_path / "faces/p").mkdir(parents=True)
    for key, given in (("data.public", [str(tmp_path / "faces")]), ("data.val", str(tmp_path / "faces"))):
        config = load_config("quick", None, {"teacher.name": "dlib_resnet", key: given}, [])
        for out in ("faces", "faces/p/../run"):
            with pytest.raises(UserError, match=r"--out .* lies in the faces' folder .*faces: choose one outside it"):
                plan.check(config, tmp_path / out)
    (tmp_path / "faces/p/0.png").write_bytes(b"a face")
    plan.check(config, tmp_path / "faces of mine")


def test_a_good_configuration_passes():
    plan.check(load_config("quick", None, {"teacher.name": "dlib_resnet"}, []), OUT)
    plan.check(load_config("quick", None, {"teacher.name": "swin_b", "distill.student": "tiny96"}, []), OUT)
    plan.check(load_config("quick", None, {"distill.student": "small32"}, ["distill.sizes=[32]"]), OUT)


def test_where_nothing_is_trained_no_virtual_face_is_counted():
    rooms = {
        (samples, virtual): plan._room(
            load_config("quick", None, {"distill.samples": samples, "data.virtual": virtual}, []), 100
        )
        for samples in (0, 512)
        for virtual in (0, 2000)
    }
    assert rooms[0, 0] == rooms[0, 2000]
    assert rooms[512, 0] < rooms[512, 2000]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("teacher.name=swin_c", "unknown teacher 'swin_c'"),
        ("distill.student=tiny", "unknown student 'tiny'"),
        ('data.public=["orl","/nowhere"]', "no face data at '/nowhere'"),
        ("data.val=/nowhere", "no face data at '/nowhere'"),
        ("distill.weights=/nowhere", "no file /nowhere"),
        ("distill.samples=0", "trains nothing: give trained weights, --student-weights FILE or zoo"),
        ("teacher.weights=/nowhere", "no weights file /nowhere"),
        ("device=cuda:99", "cuda:99"),
        ("distill.versions=4 distill.sizes=[16,32]", "one size"),
        ("distill.student=small16 distill.sizes=[16,32]", "faces of 16 px alone"),
        ("teacher.name=dlib_resnet+onnx:b.onnx export.teacher=true", "is an ensemble"),
    ],
)
def test_what_can_be_known_to_be_wrong_is_said_before_any_work(setting, words):
    config = load_config("quick", None, {}, setting.split())
    with pytest.raises(UserError, match=words):
        plan.check(config, OUT)


def test_a_batch_that_the_processes_cannot_share_is_refused_before_any_work(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"not fine-tuning \(full\): first torchrun -m teachers.finetune"):
        plan.check(load_config("quick", None, {}, ["distill.batch=300", "teacher.finetune.method=full"]), OUT)
    with pytest.raises(UserError, match="256 faces cannot be shared by 3"):
        plan.check(load_config("quick", None, {}, ["distill.batch=256"]), OUT)


def test_fresh_forgets_nothing_that_no_stage_makes_again():
    plan.check_fresh(plan.choose(STAGES, None))
    plan.check_fresh(plan.choose(STAGES, "data,teacher,adapt,distill"))
    with pytest.raises(UserError, match=r"--fresh forgets .* adapt too"):
        plan.check_fresh(plan.choose(STAGES, "distill"))


def test_a_test_set_of_ones_own_takes_its_time(monkeypatch):
    monkeypatch.setattr(plan, "_seconds_a_face", lambda teacher: 0.5)
    monkeypatch.setattr(plan, "_seconds_a_step", lambda config: 0.0)
    options = {"teacher.name": "dlib_resnet", "distill.student": "tiny64"}
    split, val = (
        plan._measured(load_config("quick", None, options | more, []), 400, 40) for more in ({}, {"data.val": "orl"})
    )
    sizes = len({*load_config("quick", None, {}, []).evaluate.px, 64})
    assert (split["evaluate"], val["evaluate"]) == (100 * (1 + sizes) * 0.5, 400 * (1 + sizes) * 0.5)
    assert val["data"] == 2 * split["data"]


@pytest.mark.parametrize(("ensemble", "words"), [(True, "each member"), (False, "is frozen")])
def test_a_teacher_that_cannot_be_fine_tuned_is_refused_before_any_work(monkeypatch, ensemble, words):
    teacher = create_teacher("dlib_resnet")
    teacher.trainable = False
    monkeypatch.setattr(plan, "create_teacher", lambda *_: Ensemble([teacher]) if ensemble else teacher)
    plan.check(load_config("quick", None, {"teacher.name": "dlib_resnet"}, []), OUT)
    with pytest.raises(UserError, match=words):
        plan.check(
            load_config("quick", None, {"teacher.name": "dlib_resnet", "teacher.finetune.method": "full"}, []), OUT
        )


def test_expected_times_grow_with_the_work():
    def seconds(*settings, count=400):
        options = {"teacher.name": "dlib_resnet", "distill.batch": 32}
        return plan._measured(load_config("quick", None, options, settings), count, 40)

    short, long = seconds("distill.samples=3200"), seconds("distill.samples=3200000")
    assert set(short) | set(plan._FIXED) == {stage.name for stage in STAGES}
    assert all(value > 0 for value in short.values())
    assert long["distill"] > 100 * short["distill"]
    assert seconds(count=4000)["data"] == pytest.approx(10 * short["data"])


def test_expected_time_to_adapt_grows_with_steps_and_people():
    def seconds(steps, people):
        return plan._seconds_to_adapt(load_config("quick", None, {"adapt.steps": steps}, []), 128, people)

    few = seconds(600, 40)
    assert seconds(60000, 40) > 20 * few
    assert seconds(600, 5000) > 2 * few
    assert seconds(600, 0) > 0


def test_mirror_images_double_the_teachers_time(monkeypatch):
    monkeypatch.setattr(plan, "_seconds_a_face", lambda teacher: 0.5)
    monkeypatch.setattr(plan, "_seconds_a_step", lambda config: 0.0)
    once, twice = (
        plan._measured(load_config("quick", None, {"teacher.name": "dlib_resnet"}, [setting]), 400, 40)["teacher"]
        for setting in ("teacher.mirror=false", "teacher.mirror=true")
    )
    assert once == 0.5 * 2400
    assert twice == 2 * once


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        (["method=full", "steps=50", "batch=10"], 50 * 10 * 3),
        (["method=qgface", "steps=50", "batch=10"], 50 * 10 * 6),
        (["method=qgface", "steps=50", "batch=10", "both_views=false"], 50 * 10 * 3),
        (["method=octuplet", "steps=50", "batch=10", "copies=3", "anchor=0"], 50 * 10 * 12),
        (["method=octuplet", "steps=50", "batch=10", "copies=1", "unlabelled=5"], 50 * 15 * 7),
        (["method=octuplet", "steps=50", "batch=10", "copies=1", "anchor=0", "relational=1"], 50 * 10 * 7),
        (["method=full", "steps=50", "batch=10", "accumulate=2"], 50 * 20 * 3),
    ],
)
def test_fine_tuning_takes_its_time(monkeypatch, settings, passes):
    monkeypatch.setattr(plan, "_seconds_a_face", lambda teacher: 0.5)
    monkeypatch.setattr(plan, "_seconds_a_step", lambda config: 0.0)
    before, found = (
        plan._measured(load_config("quick", None, {"teacher.name": "dlib_resnet"}, some), 400, 40)["teacher"]
        for some in ([], [f"teacher.finetune.{one}" for one in settings])
    )
    # At the start and once more: 20 genuine pairs and as many impostors, at five resolutions.
    assert found - before == 0.5 * (passes + 2 * 5 * 40)


def test_a_bootstraps_reference_is_timed_too(monkeypatch):
    monkeypatch.setattr(plan, "_seconds_a_face", lambda teacher: 0.5 if teacher.bootstrap else 0.25)
    monkeypatch.setattr(plan, "_seconds_a_step", lambda config: 0.0)
    monkeypatch.setattr(plan, "_seconds_to_adapt", lambda *_: 2.0)
    found = plan._measured(load_config("quick", None, {"teacher.name": "swin_b"}, []), 400, 40)
    assert (found["teacher"], found["adapt"]) == ((2400 + 600) * 0.75, 4.0)


def test_a_gpu_has_done_its_work_when_the_clock_is_read(monkeypatch):
    done, zeros = [], torch.zeros
    monkeypatch.setattr(plan.torch, "zeros", lambda *shape, device: zeros(*shape))
    monkeypatch.setattr(plan.torch.cuda, "synchronize", lambda device: done.append("wait"))
    monkeypatch.setattr(plan.time, "perf_counter", lambda: done.append("clock") or 0.0)
    backbone = SimpleNamespace(features=lambda x: done.append("work"))
    teacher = SimpleNamespace(input_px=8, device=torch.device("cuda"), bootstrap=True, backbone=backbone)
    plan._seconds_a_crop(teacher, 2)
    assert done == ["work", "wait", "clock", "work", "wait", "clock"]


def test_fixed_versions_and_the_store_of_crops_take_room():
    def room(*settings):
        options = {"distill.student": "tiny16", "data.virtual": 0}
        return plan._room(load_config("quick", None, options, settings), 1000)

    (disk, memory), (_, fixed) = room(), room("distill.versions=16")
    assert fixed - memory == 16 * 1000 * 3 * 16**2
    # Crops of 48 px, stored images of 128 px, features and targets.
    assert disk - 50e6 == 1000 * (48**2 * 3 + 128**2 * 3 + 4 * (128 + 512))


def test_an_optimiser_without_its_package_is_refused_before_any_work(monkeypatch):
    config = load_config("quick", None, {"teacher.name": "dlib_resnet"}, ["distill.optimiser=muon"])
    plan.check(config, OUT)
    monkeypatch.setitem(sys.modules, "timm.optim.muon", None)
    with pytest.raises(UserError, match=r"bridgeface\[timm\]"):
        plan.check(config, OUT)


def test_bfloat16_is_noted_where_it_is_slow_alone(monkeypatch):
    def notes(*settings):
        return plan.notes(load_config("quick", None, {"teacher.name": "dlib_resnet"}, settings))

    monkeypatch.setattr(plan, "fast_bfloat16", lambda: False)
    assert notes() == []
    assert "distill.precision=bf16 computes in bfloat16" in notes("distill.precision=bf16")[0]
    both = notes("distill.precision=bf16", "distill.optimiser=muon")
    assert "distill.precision=bf16 and distill.optimiser=muon" in both[0]
    monkeypatch.setattr(plan, "fast_bfloat16", lambda: True)
    assert notes("distill.precision=bf16", "distill.optimiser=muon") == []


def test_int8_files_of_a_trained_student_need_faces_like_the_cameras():
    def notes(**options):
        given = {"teacher.name": "dlib_resnet", "distill.weights": "zoo", "distill.samples": 0}
        options = {key.replace("_", ".", 1): value for key, value in options.items()}
        return plan.notes(load_config("quick", None, given | {"export.precisions": ["fp32", "int8"]} | options, []))

    assert "ORL's few grey faces" in notes()[0]
    assert notes(distill_samples=64) == notes(export_precisions=["fp32"]) == notes(data_public=["faces"]) == []


def test_the_expected_time_is_of_the_optimiser_and_precision_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(plan, "train_student", lambda student, examples, how, *rest, progress: seen.append(how) or [
        progress(1) for _ in range(plan._STEPS)])  # fmt: skip
    chosen = ["distill.optimiser=muon", "distill.precision=bf16", "distill.batch=8"]
    plan._seconds_a_step(load_config("quick", None, {"teacher.name": "dlib_resnet"}, chosen))
    assert (seen[0].optimiser, seen[0].precision, seen[0].steps) == ("muon", "bf16", plan._STEPS)
