"""One model in every GPU backend: each is a row, or a row that says why it was not run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu_clock import faces_per_second
from export import parity
from export import sidecar as sidecars
from export.engines import EngineRunner
from export.runtimes import Artifact
from export.stage import How, Subject, export_model, reference_embeddings
from faces.errors import UserError

Row = dict[str, Any]
BATCHES = (1, 32, 256)


def attempt(row: Row, work: Callable[[], list[Row]]) -> list[Row]:
    """The rows of `work`, or `row` with `not_run`: its reason. One backend's failure never ends the others'."""
    try:
        return work()
    # Every backend has its own exceptions, out of memory among them; all of them are the answer here.
    except Exception as problem:
        said = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        return [row | {"not_run": said if isinstance(problem, UserError) else f"{type(problem).__name__}: {said}"}]


def torch_rows(model: nn.Module, px: int, device: str, batches: Sequence[int] = BATCHES) -> Iterator[Row]:
    """torch eager, compiled, and in a CUDA graph, in fp32 and under autocast; faces already on the device."""
    model = model.to(device).eval()
    kinds: dict[str, Callable[[nn.Module, torch.Tensor], Callable[[], object]]] = {
        "torch eager": _eager, "torch.compile": _compiled, "torch CUDA graph": _graph,
    }  # fmt: skip
    low = torch.float16 if device == "cuda" else torch.bfloat16
    for kind, make in kinds.items():
        if kind == "torch CUDA graph" and device != "cuda":
            yield {"runtime": kind, "not_run": "CUDA graphs need CUDA"}
            continue
        for precision, dtype in (("fp32", None), (str(low).removeprefix("torch."), low)):
            for batch in batches:
                row: Row = {"runtime": kind, "device": device, "batch": batch, "precision": precision, "input_px": px}

                def work(make: Any = make, dtype: Any = dtype, batch: int = batch, row: Row = row) -> list[Row]:
                    x = torch.rand(batch, 3, px, px, device=device)
                    with (
                        torch.inference_mode(),
                        torch.autocast(device, dtype=dtype or low, enabled=dtype is not None),
                    ):
                        return [row | faces_per_second(make(model, x), batch, device)]

                yield from attempt(row, work)


def _eager(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    return lambda: model(x)


def _compiled(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    compiled = torch.compile(model)
    return lambda: compiled(x)


def _graph(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    # Warmed up on another stream, as a capture must not see the first calls' allocations.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x)
    return graph.replay


def onnxruntime_rows(file: Path, batches: Sequence[int] = BATCHES) -> list[Row]:
    """onnxruntime's CUDA provider, inputs and outputs bound on the GPU; UserError where this build has none."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError("onnxruntime is installed without CUDA: pip install onnxruntime-gpu in its place")
    contract = sidecars.read(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CUDAExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise UserError("onnxruntime fell back to the CPU: its CUDA libraries do not fit this driver")
    rows = []
    for batch in batches:
        faces = np.random.default_rng(0).random((batch, *contract.input.shape[1:]), dtype=np.float32)
        given = onnxruntime.OrtValue.ortvalue_from_numpy(faces, "cuda", 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input(contract.input.name, given)
        binding.bind_output(contract.output, "cuda", 0)
        # Its own stream: events on torch's would not see it, so each call waits and the wall clock counts.
        found = faces_per_second(lambda binding=binding: session.run_with_iobinding(binding), batch, "wall")  # type: ignore[misc]
        rows.append({"runtime": f"onnxruntime {onnxruntime.__version__} CUDA", "device": "cuda", "artifact": file.name,
                     "batch": batch, "precision": contract.precision, "input_px": contract.input.px,
                     "clock": "wall"} | found)  # fmt: skip
    return rows


def engine_rows(
    subject: Subject, folder: Path, backend: str, precision: str, capability: str, batches: Sequence[int] = BATCHES
) -> list[Row]:
    """Build an engine of one precision for this GPU, hold it to its model's embeddings, and time it."""
    how = How((backend,), (precision,), allow_failure=True, capabilities=(capability,), batch=(1, 32, max(batches)))
    exported, _ = export_model(subject, folder, how)
    made = next(row for row in exported if row["format"] == backend)
    file = folder / made["path"]
    contract = sidecars.read(file)
    artifact = Artifact(file, contract)
    verdict = parity.judge(parity.run(artifact, subject.trial.images), _reference(subject), precision)
    held = {"passed": verdict.passed, "cosine_min": verdict.cosine_min, "reason": verdict.reason}
    # A second context, whose calls can be queued without waiting for each.
    runner = EngineRunner(file, contract)
    rows = []
    for batch in batches:
        faces = artifact.prepare(np.resize(subject.trial.images, (batch, *subject.trial.images.shape[1:])))
        call, stream = runner.enqueue(faces)
        found = faces_per_second(call, batch, "cuda", stream)
        copied = faces_per_second(lambda faces=faces: artifact.run(faces), batch, "wall")  # type: ignore[misc]
        rows.append({"runtime": artifact.runtime, "device": "cuda", "artifact": file.name, "batch": batch,
                     "precision": precision, "input_px": contract.input.px, "build_seconds": made["seconds"],
                     "bytes": made["bytes"], "parity": held,
                     "faces_per_second_with_copies": copied["faces_per_second"]} | found)  # fmt: skip
    return rows


def _reference(subject: Subject) -> np.ndarray:
    if subject.reference is not None:
        return subject.reference
    return reference_embeddings(subject.model, subject.trial.images)
