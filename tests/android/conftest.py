"""The demo's Java on this machine's JVM, beside LiteRT's Linux library; what is absent skips with its reason."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from needs import JAVA, need

from android_demo import compile, pins, student
from export import runtimes
from export.vectors import vectors
from faces.errors import UserError


@pytest.fixture(scope="session")
def artifacts() -> dict[str, Path]:
    """The package's trained student as TFLite, by precision."""
    return {precision: student.artifact(None, precision) for precision in student.PRECISIONS}


@pytest.fixture(scope="session")
def vectors_file(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.json"
    path.write_text(json.dumps(vectors([runtimes.load(one) for one in artifacts.values()], 6)))
    return path


@pytest.fixture(scope="session")
def finder_file() -> Path:
    need("face-detection")
    return pins.finder_file()


@pytest.fixture(scope="session")
def jvm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """jvm("Class", arguments...) runs a test program of tests/android/java and reads the JSON that it prints."""
    need("litert-linux", tools=("javac", "clang-16"))
    out = tmp_path_factory.mktemp("jvm")
    try:
        glue = compile.host_glue(out)
        classes = compile.java(out / "classes", [*compile.java_files("core"), *sorted(JAVA.glob("*.java"))])
    except UserError as problem:
        pytest.fail(str(problem))
    path = f"{glue.parent}:{pins.litert_library('linux').parent}"

    def run(program: str, *arguments: object) -> Any:
        command = ["java", "-Xss4m", "-cp", str(classes), program, *map(str, arguments)]
        env = os.environ | {"LD_LIBRARY_PATH": path}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
