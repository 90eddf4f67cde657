import sys

import pytest

from compress import plan
from compress.config import load_config
from compress.pipeline import STAGES
from faces.errors import UserError
from teachers.ensemble import Ensemble
from teachers.registry import create_teacher


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


def test_a_good_configuration_passes():
    plan.check(load_config("quick", None, {"teacher.name": "dlib_resnet"}, []))
    plan.check(load_config("quick", None, {"teacher.name": "swin_b", "distill.student": "tiny96"}, []))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("teacher.name=swin_c", "unknown teacher 'swin_c'"),
        ("distill.student=tiny", "unknown student 'tiny'"),
        ('data.public=["orl", "/nowhere"]', "no face data at '/nowhere'"),
        ("data.val=/nowhere", "no face data at '/nowhere'"),
        ("distill.weights=/nowhere", "no file /nowhere"),
        ("teacher.weights=/nowhere", "no weights file /nowhere"),
        ("device=cuda:99", "cuda:99"),
    ],
)
def test_what_can_be_known_to_be_wrong_is_said_before_any_work(setting, words):
    with pytest.raises(UserError, match=words):
        plan.check(load_config("quick", None, {}, [setting]))


@pytest.mark.parametrize(("ensemble", "words"), [(True, "each member"), (False, "is frozen")])
def test_a_teacher_that_cannot_be_fine_tuned_is_refused_before_any_work(monkeypatch, ensemble, words):
    teacher = create_teacher("dlib_resnet")
    teacher.trainable = False
    monkeypatch.setattr(plan, "create_teacher", lambda *_: Ensemble([teacher]) if ensemble else teacher)
    plan.check(load_config("quick", None, {"teacher.name": "dlib_resnet"}, []))
    with pytest.raises(UserError, match=words):
        plan.check(load_config("quick", None, {"teacher.name": "dlib_resnet", "teacher.finetune.method": "full"}, []))


def test_expected_times_grow_with_the_work():
    def seconds(*settings, count=400):
        options = {"teacher.name": "dlib_resnet", "distill.batch": 32}
        return plan._measured(load_config("quick", None, options, settings), count)

    short, long = seconds("distill.samples=3200"), seconds("distill.samples=3200000")
    assert set(short) | set(plan._FIXED) == {stage.name for stage in STAGES}
    assert all(value > 0 for value in short.values())
    assert long["distill"] > 100 * short["distill"]
    assert seconds(count=4000)["data"] == pytest.approx(10 * short["data"])


def test_mirror_images_double_the_teachers_time(monkeypatch):
    monkeypatch.setattr(plan, "_seconds_a_face", lambda teacher: 0.5)
    monkeypatch.setattr(plan, "_seconds_a_step", lambda config: 0.0)
    once, twice = (
        plan._measured(load_config("quick", None, {"teacher.name": "dlib_resnet"}, [setting]), 400)["teacher"]
        for setting in ("teacher.mirror=false", "teacher.mirror=true")
    )
    assert once == 0.5 * 2400
    assert twice == 2 * once


def test_an_optimiser_without_its_package_is_refused_before_any_work(monkeypatch):
    config = load_config("quick", None, {"teacher.name": "dlib_resnet"}, ["distill.optimiser=muon"])
    plan.check(config)
    monkeypatch.setitem(sys.modules, "timm.optim.muon", None)
    with pytest.raises(UserError, match=r"bridgeface\[timm\]"):
        plan.check(config)


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


def test_the_expected_time_is_of_the_optimiser_and_precision_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(plan, "train_student", lambda student, examples, how, *rest, progress: seen.append(how) or [
        progress(1) for _ in range(plan._STEPS)])  # fmt: skip
    chosen = ["distill.optimiser=muon", "distill.precision=bf16", "distill.batch=8"]
    plan._seconds_a_step(load_config("quick", None, {"teacher.name": "dlib_resnet"}, chosen))
    assert (seen[0].optimiser, seen[0].precision, seen[0].steps) == ("muon", "bf16", plan._STEPS)
