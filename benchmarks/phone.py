"""A phone over adb: push runtime and artifact, run pinned to a big core, read JSON back. Needs no app and no root."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import export
from export import sidecar as sidecars
from faces.errors import UserError

NATIVE = Path(__file__).parent / "native"
RUNTIME = "litert-lm-api==0.18.1"
"""The wheel whose Android library exports TensorFlow Lite's C interface and XNNPACK."""
_LIBRARY = "liblitert-lm.so"
_THERE = "/data/local/tmp/bridgeface"
_STUDENT = "student.tflite"
# Functions that the program takes from Android's C library: only their names are needed to link.
_LIBC = (
    "printf",
    "atoi",
    "malloc",
    "fopen",
    "fseek",
    "ftell",
    "fread",
    "fclose",
    "fflush",
    "_exit",
    "clock_gettime",
    "qsort",
    "__libc_init",
    "memcpy",
    "memset",
    "memmove",
)


def build(folder: Path) -> tuple[Path, Path]:
    """(program, runtime library) for Android on arm64, in `folder`; UserError where a tool or the wheel is missing."""
    compiler = next((one for one in ("clang-16", "clang") if shutil.which(one)), None)
    linker = next((one for one in ("ld.lld-16", "ld.lld") if shutil.which(one)), None)
    if compiler is None or linker is None:
        raise UserError("the phone's program is built with clang and lld: apt-get install clang-16 lld-16")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / _LIBRARY
    if not library.is_file():
        with tempfile.TemporaryDirectory(prefix="wheel-") as wheels:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            pip += ["--platform", "android_23_arm64_v8a", "--dest", wheels, RUNTIME]
            _run(pip, f"pip download of {RUNTIME} for Android")
            with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as archive:
                name = next(one for one in archive.namelist() if one.endswith(_LIBRARY))
                library.write_bytes(archive.read(name))
    stub, program = folder / "libc.so", folder / "phone"
    source = folder / "stub.c"
    source.write_text("".join(f"void {name}(void){{}}\n" for name in _LIBC))
    common = [compiler, "--target=aarch64-linux-android23", "-nostdlib", "-ffreestanding", "-fno-builtin", "-fPIC",
              "-w", f"--ld-path={shutil.which(linker)}"]  # fmt: skip
    _run([*common, "-shared", "-Wl,-soname,libc.so", "-o", str(stub), str(source)], "linking a stand-in for libc")
    _run([*common, "-O2", "-pie", "-Wl,--allow-shlib-undefined", "-Wl,-z,max-page-size=16384",
          "-Wl,--dynamic-linker=/system/bin/linker64", "-o", str(program), str(NATIVE / "phone.c"), str(stub),
          str(library)], "building the phone's program")  # fmt: skip
    return program, library


class Phone:
    """One device that adb sees."""

    def __init__(self, serial: str | None = None, adb: str = "adb") -> None:
        """UserError where adb is missing, no device is connected or allowed, or several are and none is named."""
        if shutil.which(adb) is None:
            raise UserError("a phone is reached through adb, which is not here: apt-get install adb")
        self._adb = [adb]
        states = dict(line.split()[:2] for line in self._said("devices").splitlines()[1:] if len(line.split()) > 1)
        if serial is None and len(states) != 1:
            found = f"{len(states)} are connected ({', '.join(states)}): name one with --serial" if states else (
                "none is connected: switch USB debugging on, plug it in, and allow this computer on its screen"
            )  # fmt: skip
            raise UserError(f"one phone is needed, {found}")
        self.serial = serial or next(iter(states))
        if states.get(self.serial) != "device":
            raise UserError(
                f"phone {self.serial} is {states.get(self.serial, 'not connected')}: allow it on its screen"
            )
        self._adb += ["-s", self.serial]

    def describe(self) -> dict[str, Any]:
        names = {"model": "ro.product.model", "soc": "ro.soc.model", "android": "ro.build.version.release",
                 "abi": "ro.product.cpu.abi"}  # fmt: skip
        return {name: self.shell(f"getprop {key}").strip() for name, key in names.items()}

    def big_cores(self) -> list[int]:
        """The cores with the highest top frequency; empty where the phone does not tell."""
        path = "/sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"
        found = {}
        for line in self.shell(f"for f in {path}; do echo $f $(cat $f); done").splitlines():
            name, *value = line.split()
            core = re.search(r"/cpu(\d+)/cpufreq/", name)
            if core and len(value) == 1 and value[0].isdigit():
                found[int(core[1])] = int(value[0])
        return [core for core, top in sorted(found.items()) if top == max(found.values())]

    def celsius(self) -> float | None:
        """The battery's temperature, which every phone tells; None where this one does not."""
        for line in self.shell("dumpsys battery").splitlines():
            name, _, value = line.strip().partition(": ")
            if name == "temperature" and value.strip().lstrip("-").isdigit():
                return int(value) / 10
        return None

    def measure(self, file: Path, program: Path, library: Path, runs: int, xnnpack: bool = True) -> dict[str, Any]:
        """One row; UserError where the phone fails or answers something else than JSON."""
        contract = sidecars.read(file)
        if contract.format != "tflite":
            raise UserError(f"{file}: a phone runs .tflite files here")
        px = contract.input.px
        bytes_ = np.random.default_rng(0).integers(0, 256, (64, px, px, 3), dtype=np.uint8)
        with tempfile.TemporaryDirectory(prefix="phone-") as work:
            inputs = Path(work, "faces.bin")
            inputs.write_bytes(export.load(file).prepare(bytes_).tobytes())
            self.shell(f"mkdir -p {_THERE}")
            for one in (program, library, inputs):
                self._said("push", str(one), f"{_THERE}/{one.name}")
            # By a name of ours: the phone's shell would read the file's own.
            self._said("push", str(file), f"{_THERE}/{_STUDENT}")
        cores, before = self.big_cores(), self.celsius()
        # taskset's mask is hexadecimal, bit n for core n; the last of the big cores is the least used by the system.
        pin = f"taskset {1 << cores[-1]:x} " if cores else ""
        command = f"{pin}./{program.name} {_STUDENT} faces.bin {runs} {int(xnnpack)}"
        said = self.shell(f"cd {_THERE} && chmod 755 {program.name} && LD_LIBRARY_PATH=. {command}")
        try:
            answer = json.loads(said.strip().splitlines()[-1])
        except (json.JSONDecodeError, IndexError):
            raise UserError(f"phone {self.serial} gave no JSON but {said.strip()[-200:]!r}") from None
        if "error" in answer:
            raise UserError(f"phone {self.serial}: {answer['error']}")
        return {
            "artifact": file.name,
            "runtime": f"LiteRT (TFLite {answer['tflite']}), {'XNNPACK' if xnnpack else 'no XNNPACK'}",
            "device": self.describe(),
            "core": cores[-1] if cores else None,
            "threads": 1,
            "batch": 1,
            "precision": contract.precision,
            "input_px": px,
            "preprocessing": False,
            **{name: answer[name] for name in ("faces_per_second", "p50_ms", "p95_ms", "runs")},
            "celsius": [before, self.celsius()],
        }

    def shell(self, command: str) -> str:
        return self._said("shell", command)

    def _said(self, *words: str) -> str:
        done = subprocess.run([*self._adb, *words], capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise UserError(f"adb {words[0]} failed: {said}")
        return done.stdout


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{what} failed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
