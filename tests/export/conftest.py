"""Students with random weights and random batch-norm statistics, and their exports, made once a session."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export import engines, stage
from export.onnx import export_onnx
from export.parity import Trial
from export.sidecar import Card, Engine
from export.stage import How, Subject, export_model
from export.tensorrt import build_engine
from students import create_student
from students.student import count_macs, count_parameters
from teachers.tuned import digest


def _student(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = create_student(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.3, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


@pytest.fixture(scope="session")
def student() -> Callable[..., nn.Module]:
    return _student


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int], np.ndarray]:
    def draw(count: int, px: int) -> np.ndarray:
        return np.random.default_rng(count).integers(0, 256, (count, px, px, 3), dtype=np.uint8)

    return draw


@pytest.fixture(scope="session")
def embed() -> Callable[[nn.Module, np.ndarray], np.ndarray]:
    """Plain torch in eval mode: the oracle."""

    @torch.no_grad()
    def run(model: nn.Module, images: np.ndarray) -> np.ndarray:
        model.eval()
        faces = torch.tensor(images / 255.0, dtype=torch.float32).permute(0, 3, 1, 2)
        return torch.cat([model(part) for part in faces.split(32)]).numpy()

    return run


@pytest.fixture(scope="session")
def card() -> Card:
    model = _student("tiny16")
    return Card(
        model="tiny16",
        template="arcface",
        metric="cosine",
        teacher={"name": "dlib_resnet", "bootstrap": False, "licence": "CC0"},
        data={"name": "noise", "licence": "none needed"},
        parameters=count_parameters(model),
        macs=count_macs(model, 16),
    )


def _subject(model: nn.Module, images: np.ndarray, card: Card, **more) -> Subject:
    nobody = Trial(images, np.full(len(images), -1), None, f"same@{images.shape[1]}", "noise")
    return Subject("student", model, card, nobody, **more)


@pytest.fixture(scope="session")
def subject() -> Callable[..., Subject]:
    """A model with images of nobody: no accuracy, no thresholds."""
    return _subject


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, card: Card, noise: Callable) -> Path:
    """A folder with student.onnx, student.tflite and their sidecars, of `student("tiny16")`."""
    folder = tmp_path_factory.mktemp("exported")
    export_model(_subject(_student("tiny16"), noise(256, 16), card), folder, How())
    return folder


@pytest.fixture(scope="session")
def student_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    export_onnx(_student("tiny16"), path, 16)
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, student_onnx: Path) -> tuple[Path, Engine]:
    """A TensorRT-RTX engine of `student("tiny16")`, and what its sidecar says of it."""
    path = tmp_path_factory.mktemp("engine") / "student-fp32.tensorrt-rtx.engine"
    return path, build_engine(student_onnx, path, "tensorrt_rtx", (2, 4, 8), ["SM80", "SM89"])


@pytest.fixture
def written_once(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The stage's ONNX files, each by the exporter once a session, which takes seconds: it writes the same bytes again.

    For models that their weights tell apart."""
    folder = tmp_path_factory.getbasetemp() / "onnx-files"
    folder.mkdir(exist_ok=True)

    def write(model: nn.Module, path: Path, px: int, **options) -> None:
        name = f"{type(model).__name__}-{digest(model.state_dict())}-{px}-{sorted(options.items())}.onnx"
        if not (folder / name).is_file():
            export_onnx(model, folder / name, px, **options)
        shutil.copy(folder / name, path)

    monkeypatch.setattr(stage, "export_onnx", write)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """gpu("SM89") puts one there, gpu(None) takes it away."""

    from tensorrt_stand_ins import Driver

    def put(capability: str | None) -> None:
        found = None if capability is None else Driver(int(capability[2:-1]), int(capability[-1]))
        monkeypatch.setattr(engines, "driver", lambda: found)

    return put
