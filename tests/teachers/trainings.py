"""Small trainings that the tests of the loop run, also in other processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from small_teachers import SMALL
from torch import Tensor, nn

from faces.align import template_landmarks
from faces.dataset import CROP_PX, Faces
from teachers.backbones.dlib_resnet import DlibResNet
from teachers.backbones.mobilefacenet import MobileFaceNet
from teachers.backbones.swin import Swin
from teachers.fabric import create_fabric
from teachers.loop import finetune
from teachers.settings import finetune_settings
from teachers.teacher import Teacher


class Brightness(nn.Module):
    """Stands where an alpha stands: the mean of each image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)).clamp(0, 1)


def people(count: int = 10, each: int = 4, seed: int = 0) -> Faces:
    """Made faces: each person has a coarse pattern of colours, each image noise and light of its own."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        pattern = cv2.resize(rng.uniform(40, 215, (6, 6, 3)).astype(np.float32), (CROP_PX, CROP_PX))
        for _ in range(each):
            noisy = pattern * rng.uniform(0.8, 1.2) + rng.normal(0, 12, pattern.shape)
            images.append(noisy.clip(0, 255).astype(np.uint8))
    return Faces(
        images=np.stack(images),
        landmarks=np.tile(template_landmarks(CROP_PX), (count * each, 1, 1)).astype(np.float32),
        identities=np.repeat(np.arange(count), each),
        names=tuple(f"p{i}" for i in range(count)),
        keys=tuple(str(i) for i in range(count * each)),
        source="made",
    )


def small_teacher(kind: str = "dlib_resnet") -> Teacher:
    torch.manual_seed(5)
    build = {"dlib_resnet": DlibResNet, "mobilefacenet": MobileFaceNet, "swin_b": Swin}[kind]
    backbone = build(**SMALL[kind])
    if kind == "dlib_resnet":
        # It has no layer of a fixed size, and float64 has no fast convolution.
        backbone.input_px = 70
    template, metric = ("dlib", "euclidean") if kind == "dlib_resnet" else ("arcface", "cosine")
    teacher = Teacher(backbone, name=kind, template=template, metric=metric, licence="none", source="test")
    return teacher.requires_grad_(False).eval()


def train(folder: str, kind: str, method: str, stop_after: int | None = None, **changes: Any) -> dict[str, Tensor]:
    """Fine-tune a small teacher on made faces; its weights afterwards."""
    device, strategy, precision = (
        changes.pop(*one) for one in (("device", "cpu"), ("strategy", "auto"), ("precision", "32"))
    )
    options = {"steps": 6, "batch": 8, "lr": 1e-3, "dropout": 0.0, "clip": 5.0} | changes
    teacher = small_teacher(kind)
    if method == "petalface":
        teacher.alpha = Brightness()
    how = finetune_settings(method, **options)
    fabric = create_fabric(device, strategy=strategy, precision=precision, backbone=teacher.backbone)
    faces = people()
    if how.unlabelled:
        faces = replace(faces, identities=np.where(faces.identities < 8, faces.identities, -1))
    finetune(teacher, faces, how, 3, fabric, Path(folder), checkpoint_every=2, stop_after=stop_after)
    return {name: value.detach().cpu().clone() for name, value in teacher.backbone.state_dict().items()}


def train_as_rank(folder: str, kind: str, method: str, changes: dict[str, Any]) -> dict[str, Tensor]:
    """`train` as one of the processes of an initialised group."""
    return train(folder, kind, method, **changes)
