import ast
import shutil
from pathlib import Path

import pytest

from compress import pipeline
from compress import run as run_module
from compress.config import load_config
from compress.run import ROOT, Run

PACKAGES = ("faces", "teachers", "students", "compress", "export", "benchmarks")


def names(stages):
    return [stage.name for stage in stages]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the packages that fingerprints are taken from."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(run_module, "ROOT", tmp_path)
    return tmp_path


def fingerprints(*settings, **top):
    run = Run(Path("nowhere"), load_config("quick", None, {}, settings, **top))
    return {stage.name: run.fingerprint(stage) for stage in pipeline.STAGES}


def changed(before, after):
    return [name for name in before if before[name] != after[name]]


ALL = ["data", "teacher", "adapt", "distill", "export", "evaluate", "benchmark", "report"]
REACH = {name: ALL[ALL.index(name) :] for name in ALL} | {
    "evaluate": ["evaluate", "report"],
    "benchmark": ["benchmark", "report"],
}
"""What must run again when a stage's own settings or sources change."""


def test_the_stages_are_in_their_order():
    assert names(pipeline.STAGES) == ALL


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("data.test_share=0.3", "data"),
        ("seed=1", "data"),
        ("teacher.views=100", "teacher"),
        ("teacher.mirror=true", "teacher"),
        ("adapt.steps=7", "adapt"),
        ("distill.samples=7", "distill"),
        ("distill.samples=0", "data"),
        ("distill.class_loss=arcface", "distill"),
        ("distill.degradation.jpeg=0", "distill"),
        ("export.allow_parity_failure=true", "export"),
        ("evaluate.folds=5", "evaluate"),
        ("benchmark.threads=2", "benchmark"),
    ],
)
def test_a_setting_runs_its_stage_and_those_after_it(setting, first):
    assert changed(fingerprints(), fingerprints(setting)) == REACH[first]


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("faces/sources/folder.py", "data"),
        ("faces/align.py", "data"),
        ("teachers/backbones/swin.py", "teacher"),
        ("compress/adapt.py", "adapt"),
        ("students/train.py", "distill"),
        ("faces/degrade.py", "teacher"),
        ("faces/losses/margin.py", "teacher"),
        ("export/tflite.py", "export"),
        ("faces/verification.py", "export"),
        ("compress/strip.py", "evaluate"),
        ("benchmarks/timing.py", "benchmark"),
        ("compress/report.py", "report"),
        ("compress/templates/report.html.j2", "report"),
    ],
)
def test_a_source_runs_its_stage_and_those_after_it(sources, file, first):
    before = fingerprints()
    with (sources / file).open("a") as source:
        source.write("\n# changed\n")
    assert changed(before, fingerprints()) == REACH[first]


def test_a_file_of_weights_that_changes_counts(tmp_path):
    file = tmp_path / "weights.safetensors"
    for key, first in (("teacher.weights", "teacher"), ("distill.weights", "distill")):
        file.write_bytes(b"1")
        before = fingerprints(f"{key}={file}")
        file.write_bytes(b"22")
        assert changed(before, fingerprints(f"{key}={file}")) == REACH[first]


def test_a_face_that_is_added_counts(tmp_path):
    (tmp_path / "ann").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    setting = f'data.public=["{tmp_path}"]'
    before = fingerprints(setting)
    assert fingerprints(setting) == before
    (tmp_path / "ann" / "1.png").touch()
    assert changed(before, fingerprints(setting)) == ALL


# Nothing that a stage computes depends on these.
PLUMBING = {
    "faces/errors.py",
    "faces/files.py",
    "faces/cli.py",
    "compress/config.py",
    "compress/run.py",
    *(f"{p}/__init__.py" for p in PACKAGES),
}


# Imports that no result of the stage depends on: whether the test faces form pairs, the pairs of a .bin, the
# accuracies along a fine-tuning, counts of parameters, 128.
UNREAD = {
    "faces/sources/verification_bin.py": {"faces/verification.py"},
    "teachers/evaluate.py": {"faces/intervals.py", "faces/verification.py"},
    "teachers/finetune.py": {"faces/verification.py"},
    "compress/tune.py": {"faces/verification.py"},
    "compress/data.py": {"faces/verification.py"},
    "compress/teach.py": {"students/student.py"},
    "compress/adapt.py": {"students/student.py"},
}


def _imported(file):
    """First-party source files that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if module.split(".")[0] in PACKAGES:
                path = module.replace(".", "/")
                found |= {name for name in (f"{path}.py", f"{path}/__init__.py") if (ROOT / name).is_file()}
    return found - UNREAD.get(file, set())


@pytest.mark.parametrize("stage", pipeline.STAGES, ids=names(pipeline.STAGES))
def test_every_source_that_a_stage_imports_is_among_those_it_depends_on(stage):
    above, declared = [stage], []
    while above:
        one = above.pop()
        declared += one.modules
        above += one.after
    assert all((ROOT / module).exists() for module in declared)
    reached, todo = (
        set(),
        [module for module in stage.modules if module.startswith("compress/") and module.endswith("py")],
    )
    while todo:
        file = todo.pop()
        if file not in reached | PLUMBING:
            reached.add(file)
            todo += _imported(file)
    assert len(reached) > 1
    missing = {file for file in reached if not any(file == m or file.startswith(f"{m}/") for m in declared)}
    assert not missing
