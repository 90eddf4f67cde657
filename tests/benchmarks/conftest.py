import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """tiny16's ONNX and TFLite files in fp32 and int8, random weights, sidecars beside them."""
    import shutil

    from benchmarks.students import artifacts_of

    folder = tmp_path_factory.mktemp("tiny16")
    with artifacts_of("tiny16", ("fp32", "int8")) as files:
        for file in files:
            shutil.copy(file, folder)
            shutil.copy(f"{file}.json", folder)
    return {
        "fp32": folder / "tiny16.onnx",
        "int8": folder / "tiny16-int8-cpu.onnx",
        "tflite": folder / "tiny16.tflite",
        "tflite-int8": folder / "tiny16-int8.tflite",
    }


@pytest.fixture
def some_faces():
    return np.random.default_rng(7).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
