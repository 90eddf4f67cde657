"""tflite-runtime needs numpy < 2: it runs in an environment of its own, without torch."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

import export
from export.sidecar import Input, path_of
from export.tflite import export_tflite

pytestmark = pytest.mark.slow
ROOT = Path(export.__file__).parents[1]
_RUN = """
import sys
import numpy as np
import export
for name in ("torch", "ai_edge_litert", "tensorflow"):
    assert name not in sys.modules, name
artifact = export.load(sys.argv[1])
crops = np.load(sys.argv[2])
found = [artifact.embed(crops, batch) for batch in (1, 3, 256)]
np.save(sys.argv[3], np.stack(found))
print(artifact.runtime)
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory) -> str:
    """An interpreter that has tflite-runtime: that of BRIDGEFACE_TFLITE_PYTHON, or one made here by pip."""
    if given := os.environ.get("BRIDGEFACE_TFLITE_PYTHON"):
        return given
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime has no wheel for Python 3.12 and later; set BRIDGEFACE_TFLITE_PYTHON")
    folder = tmp_path_factory.mktemp("tflite-runtime")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = ["tflite-runtime==2.14.0", "numpy<2", "pydantic>=2.7"]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot get tflite-runtime: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    return str(python)


def _artifact(exported: Path, folder: Path, student, noise, precision: str) -> Path:
    """A file and a sidecar that fits it, made of the session's fp32 one."""
    file = folder / f"student-{precision}.tflite"
    said = export_tflite(student("tiny16"), file, 16, precision, noise(128, 16))
    fp32 = export.load(exported / "student.tflite").sidecar
    fed = fp32.input.model_dump()
    if said is not None:
        fed |= {"dtype": said.dtype, "scale": said.scale, "zero_point": said.zero_point}
    data = {"file": file.name, "precision": precision, "input": Input(**fed), "bytes": file.stat().st_size}
    from faces.files import sha256

    sidecar = fp32.model_copy(update={**data, "sha256": sha256(file)})
    path_of(file).write_text(sidecar.model_dump_json())
    return file


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_gives_what_litert_gives(exported, tmp_path, student, noise, embed, python, precision):
    file = _artifact(exported, tmp_path, student, noise, precision)
    crops = noise(300, 16)
    np.save(tmp_path / "crops.npy", crops)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-c", _RUN, file, tmp_path / "crops.npy", tmp_path / "found.npy"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tflite-runtime 2.14.0"
    # Here no tflite-runtime is at hand: LiteRT runs it.
    artifact = export.load(file)
    assert artifact.runtime.startswith("ai-edge-litert")
    expected, model = artifact.embed(crops), embed(student("tiny16"), crops)
    for found in np.load(tmp_path / "found.npy"):
        for other, least in (
            (expected, 0.9999 if precision != "int8" else 0.995),
            (model, 0.9999 if precision != "int8" else 0.98),
        ):
            cosines = (found * other).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(other, axis=1)
            assert cosines.min() > least
