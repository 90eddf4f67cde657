"""Time by operator of one file, and what bounds it: `python -m benchmarks profile FILE...`."""

import json
import shlex
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import lite_operators
from benchmarks.cpu_runtimes import OpenVino, Runner, installed, open_runner
from benchmarks.latency import full_row
from benchmarks.machine import describe, pinned, sentence
from benchmarks.output import publish
from benchmarks.timing import arithmetic_of, peak_of, random_faces
from export import sidecar as sidecars
from faces.cli import Output, run_cli
from faces.errors import UserError

Row = dict[str, Any]
_CALLS = 50


def conv_macs(file: Path) -> dict[str, int]:
    """Multiply-accumulates of each Conv and Gemm of an ONNX file, one face, by the name of its output."""
    import onnx
    from onnx import numpy_helper, shape_inference

    model = onnx.load(str(file))
    weights = {one.name: numpy_helper.to_array(one).shape for one in model.graph.initializer}
    for given in model.graph.input:
        # Files of IR version 3 list their weights among the inputs.
        if given.name not in weights:
            given.type.tensor_type.shape.dim[0].dim_value = 1
    model = shape_inference.infer_shapes(model, data_prop=True)
    for node in model.graph.node:
        # Weights of an int8 file come through a DequantizeLinear.
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    shapes = {
        one.name: [d.dim_value for d in one.type.tensor_type.shape.dim]
        for one in (*model.graph.value_info, *model.graph.output)
    }
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights:
            area = int(np.prod(shapes.get(node.output[0], [1, 1])[2:], dtype=np.int64)) if node.op_type == "Conv" else 1
            found[node.name] = area * int(np.prod(weights[node.input[1]]))
    return found


def aliases(file: Path) -> dict[str, str]:
    """Names that a runtime may give a product: its node's, its output's, and those of what is fused behind it."""
    import onnx

    nodes = onnx.load(str(file)).graph.node
    found: dict[str, str] = {}
    for product in (node for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")):
        reached = {product.output[0]}
        found |= {product.name: product.name, product.output[0]: product.name}
        for node in nodes:
            if node.op_type in ("Relu", "Clip", "QuantizeLinear", "DequantizeLinear") and node.input[0] in reached:
                reached.add(node.output[0])
                found |= {node.name: product.name, node.output[0]: product.name}
    return found


def by_operator(file: Path, runtime: str, batch: int, threads: int = 1) -> list[Row]:
    """Rows (operator, kind, microseconds a call, share of the time), slowest first; `macs` of one face where the
    runtime kept the ONNX node's name. The profiler's own cost is in all of them. runtime: `openvino`, `onnxruntime`,
    or `litert` for TFLite files."""
    if runtime == "litert":
        return lite_operators.by_operator(file, batch, threads)
    calls: dict[tuple[str, str], list[float]] = defaultdict(list)
    if runtime == "openvino":
        runner = OpenVino(file, threads)
        faces = runner.prepare(random_faces(runner, batch))
        runner.compile(faces.shape, PERF_COUNT=True)
        for _ in range(5):
            runner.profile(faces)
        for _ in range(_CALLS):
            for name, kind, micros in runner.profile(faces):
                calls[name, kind].append(micros)
    else:
        for event in _onnxruntime_events(file, batch, threads):
            name = event["name"].removesuffix("_kernel_time")
            calls[name, event["args"]["op_name"]].append(event["dur"])
    # The median, as one call that lost its core would stand for all.
    totals = {name: float(np.median(found)) for name, found in calls.items()}
    whole, macs, names = sum(totals.values()), conv_macs(file), aliases(file)
    return [
        {
            "operator": name,
            "kind": kind,
            "micros": micros,
            "share": micros / whole,
            "macs": _macs(name, kind, macs, names),
        }
        for (name, kind), micros in sorted(totals.items(), key=lambda one: -one[1])
    ]


def _macs(name: str, kind: str, macs: dict[str, int], names: dict[str, str]) -> int | None:
    if not any(word in kind for word in ("Conv", "Gemm", "MatMul", "FullyConnected")):
        return None
    # A fused node keeps the name of one of its parts and adds to it; the longest name that begins it is the node's.
    name = name.removeprefix("fused ")
    fits = [one for one in names if one and (name == one or name.startswith((f"{one}_", f"{one}/", f"{one}:")))]
    return macs.get(names[max(fits, key=len)]) if fits else None


def _onnxruntime_events(file: Path, batch: int, threads: int) -> list[dict[str, Any]]:
    import onnxruntime

    usual = open_runner(file, "onnxruntime", threads)
    faces = usual.prepare(random_faces(usual, batch))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/run"
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for _ in range(_CALLS):
            session.run(None, {usual.sidecar.input.name: faces})
        events = json.loads(Path(session.end_profiling()).read_text())
    return [one for one in events if one.get("cat") == "Node" and one["name"].endswith("_kernel_time")]


def bound(rows: list[Row], batch: int, peak_gops: float) -> dict[str, Any]:
    """What the time goes into: products (operators with multiply-accumulates), their own share of the peak, and the
    rest; with a sentence."""
    products = [row for row in rows if row["macs"]]
    micros, rest = sum(row["micros"] for row in products), sum(row["micros"] for row in rows if not row["macs"])
    gops = sum(row["macs"] for row in products) * 2 * batch / max(micros, 1e-9) / 1e3
    slow = [row for row in products if row["macs"] * 2 * batch / 1e3 < 0.5 * gops * row["micros"]]
    lost = sum(row["micros"] - row["macs"] * 2 * batch / gops / 1e3 for row in slow)
    return {
        "products_share": micros / (micros + rest),
        "products_gops": gops,
        "products_of_peak": gops / peak_gops,
        "text": (
            f"convolutions and matrix products take {micros / (micros + rest):.0%} of the time and run at "
            f"{gops / peak_gops:.0%} of the peak of {peak_gops:,.0f} GOP/s; other operators take the rest"
            + (f"; {', '.join(row['operator'] for row in slow)} run below half of that, which costs "
               f"{lost / (micros + rest):.0%} of the time" if slow else "")
        ),
    }  # fmt: skip


def variants(file: Path, batch: int, batches: tuple[int, ...]) -> list[tuple[str, Runner, int]]:
    """(what is tried, runner, batch): as it is, without graph fusion or XNNPACK's kernels, blocks of the batch, bf16
    where there is one."""
    if file.suffix == ".tflite":
        blocks = [("litert", open_runner(file, "litert", 1), size) for size in dict.fromkeys((batch, *batches))]
        return [*blocks, ("litert, no XNNPACK", WithoutXnnpack(file), batch)]
    found: list[tuple[str, Runner, int]] = [("onnxruntime", open_runner(file, "onnxruntime", 1), batch)]
    found.append(("onnxruntime, no fusion", Unfused(file), batch))
    if installed("openvino") and sidecars.read(file).consumer != "tensorrt":
        found += [("openvino", open_runner(file, "openvino", 1), size) for size in dict.fromkeys((batch, *batches))]
        if sidecars.read(file).precision == "fp32":
            try:
                found.append(("openvino bf16", open_runner(file, "openvino", 1, "bf16"), batch))
            except UserError as problem:
                click.echo(f"not run: {problem}", err=True)
    return found


class Unfused:
    """An ONNX file in onnxruntime node by node: what operator fusion and blocked layouts are worth."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        usual = open_runner(file, "onnxruntime", 1)
        self.path, self.sidecar, self.threads, self.prepare = file, usual.sidecar, 1, usual.prepare
        self.runtime = usual.runtime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self._session.run([self.sidecar.output], {self.sidecar.input.name: batch})[0]


class WithoutXnnpack:
    """A TFLite file in LiteRT's own kernels: what XNNPACK's layout and blocking are worth."""

    def __init__(self, file: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        usual = open_runner(file, "litert", 1)
        self.path, self.sidecar, self.threads, self.prepare = file, usual.sidecar, 1, usual.prepare
        self.runtime = usual.runtime
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = Interpreter(str(file), num_threads=1, experimental_op_resolver_type=resolver)
        self._input, self._output = (
            found[0]["index"]
            for found in (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self._interpreter.get_input_details()[0]["shape"][0] != len(batch):
            self._interpreter.resize_tensor_input(self._input, batch.shape)
            self._interpreter.allocate_tensors()
        self._interpreter.set_tensor(self._input, batch)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--runtime", type=click.Choice(["onnxruntime", "openvino"]), default="openvino", show_default=True,
              help="Of ONNX files; LiteRT times TFLite files.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True)
@click.option("--try-batch", "batches", type=click.IntRange(1), multiple=True, default=(8, 32, 64, 1024),
              show_default=True, help="Other block sizes to try.")  # fmt: skip
@click.option("--json", "json_file", type=Output(), help="Write everything here.")
@click.option("--markdown", "markdown_file", type=Output(), help="Write the tables here.")
@run_cli
def main(
    files: tuple[Path, ...], runtime: str, batch: int, batches: tuple[int, ...], json_file: Path | None,
    markdown_file: Path | None,
) -> None:  # fmt: skip
    """Time by operator of ONNX and TFLite FILES on one core, what bounds it, and what raises it: fusion, kernels,
    blocks of the batch, bfloat16, another runtime."""
    machine, found = describe(), []
    for file in files:
        if file.suffix not in (".onnx", ".tflite"):
            raise UserError(f"{file}: operators are timed in ONNX and TFLite files")
        used = "litert" if file.suffix == ".tflite" else runtime
        with pinned(1) as cores:
            rows = by_operator(file, used, batch)
            runner = open_runner(file, used, 1)
            peak = peak_of(arithmetic_of(runner), 1)
            tried = [full_row(one, size, cores) | {"tried": name} for name, one, size in variants(file, batch, batches)]
        found.append({"artifact": file.name, "runtime": runner.runtime, "batch": batch, "peak_gops": peak,
                      "operators": rows, "bound": bound(rows, batch, peak), "tried": tried})  # fmt: skip
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    whole = {"profile": found, "machine": machine, "command": command}
    publish(whole, _page(whole), json_file, markdown_file)


def _page(whole: dict[str, Any]) -> str:
    parts = [f"```\n{whole['command']}\n```", sentence(whole["machine"])]
    for one in whole["profile"]:
        lines = ["| operator | kernel | microseconds | of the time | of peak |", "|---|---|--:|--:|--:|"]
        for row in one["operators"][:14]:
            gops = row["macs"] and row["micros"] and row["macs"] * 2 * one["batch"] / row["micros"] / 1e3
            of_peak = f"{gops / one['peak_gops']:.0%}" if gops else "-"
            lines.append(
                f"| {row['operator']} | {row['kind']} | {row['micros']:,.0f} | {row['share']:.1%} | {of_peak} |"
            )
        tried = ["| tried | batch | faces/s | iqr | of peak | faces/s, free core |", "|---|--:|--:|--:|--:|--:|"]
        tried += [
            f"| {row['tried']} | {row['batch']} | {row['faces_per_second']:,.0f} | {row['iqr']:,.0f} | "
            f"{row['share']:.1%} | {row['scaled']['faces_per_second']:,.0f} |"
            for row in one["tried"]
        ]
        head = f"{one['artifact']}, {one['runtime']}, batch {one['batch']}: {one['bound']['text']}."
        parts += [head, "\n".join(lines), "\n".join(tried)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
