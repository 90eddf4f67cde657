"""The two arm64 libraries of the APK, taken out of it, run under qemu: the same embeddings."""

import base64
import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from needs import need

from android_demo import build, compile
from export import runtimes

HERE = Path(__file__).parent / "arm64"
CROSS = Path("/usr/aarch64-linux-gnu")
GCC = Path("/usr/lib/gcc-cross/aarch64-linux-gnu/12")
# qemu's CPU, and what Linux says of it: qemu's own /proc/cpuinfo is this machine's, which LiteRT cannot read as one of
# arm64. A53: small cores since 2014; A76: since 2018; max: all that qemu 7.2 knows (i8mm, SVE) but SME, by which the
# int8 network comes out wrong there.
_OLD = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
CPUS = {
    "cortex-a53": (_OLD + " cpuid", "0xd03"),
    "cortex-a76": (_OLD + " atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp", "0xd0b"),
    "max,sme=off": (_OLD + " atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp", "0xd0b"),
}
CPUINFO = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: {}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {}
CPU revision\t: 1

"""


@pytest.fixture(scope="module")
def apk(tmp_path_factory, artifacts):
    tools = ("aapt", "aapt2", "apksigner", "zipalign", "clang-16", "ld.lld-16", "javac")
    need("android.jar", "dx.jar", "litert-arm64-v8a", "face-detection", tools=tools)
    out = tmp_path_factory.mktemp("apk") / "demo.apk"
    build.build(artifacts["fp32"], ["arm64-v8a"], None, None, out, out.with_name("work"))
    return out


@pytest.fixture(scope="module")
def embed(apk, tmp_path_factory):
    """embed(artifact, crops, cpu): the embeddings by the APK's own libraries."""
    need(tools=("qemu-aarch64", "clang-16"))
    if not (CROSS / "lib" / "crt1.o").is_file() or not GCC.is_dir():
        pytest.skip("not installed: libc6-dev-arm64-cross, libgcc-12-dev-arm64-cross")
    folder = tmp_path_factory.mktemp("arm64")
    with zipfile.ZipFile(apk) as archive:
        for name in ("liblitert-lm.so", "libfacejni.so"):
            (folder / name).write_bytes(archive.read(f"lib/arm64-v8a/{name}"))
    program = folder / "apk_libraries"
    command = ["clang-16", "--target=aarch64-linux-gnu", "-fuse-ld=lld", "-O1", "-Wall", "-Werror", f"-B{GCC}",
               f"-L{GCC}", f"-L{CROSS / 'lib'}", "-isystem", str(CROSS / "include"), *compile.jni_headers(),
               "-Wno-unused-parameter", "-o", str(program), str(HERE / "apk_libraries.c"), str(HERE / "elf_load.c"),
               "-lm", "-lpthread", "-lz" if (CROSS / "lib" / "libz.so").exists() else "-ldl"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    root = folder / "root"
    (root / "proc").mkdir(parents=True)
    os.symlink(CROSS / "lib", root / "lib")

    def run(file, crops, cpu):
        (root / "proc" / "cpuinfo").write_text(CPUINFO.format(*CPUS[cpu]))
        artifact = runtimes.load(file)
        (folder / "inputs").write_bytes(artifact.prepare(crops).tobytes())
        parts = [folder / "liblitert-lm.so", folder / "libfacejni.so", file, folder / "inputs", folder / "outputs"]
        command = ["qemu-aarch64", "-cpu", cpu, "-L", str(root), str(program)]
        done = subprocess.run([*command, *map(str, parts)], capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, (done.returncode, done.stderr)
        assert done.stdout.strip() == "2.23.0"
        return np.fromfile(folder / "outputs", dtype="<f4").reshape(len(crops), -1)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_apks_own_libraries_give_pythons_embeddings(embed, artifacts, vectors_file, precision, cpu):
    vectors = json.loads(vectors_file.read_text())
    crops = np.stack(
        [np.frombuffer(base64.b64decode(face["crop"]), dtype=np.uint8).reshape(16, 16, 3) for face in vectors["faces"]]
    )
    expected = next(np.array(one["embeddings"]) for one in vectors["artifacts"] if one["precision"] == precision)
    found = embed(artifacts[precision], crops, cpu)
    worst = np.abs(found - expected).max()
    print(f"{cpu} {precision}: largest difference {worst:.2e} of {np.abs(expected).max():.2f}")
    if precision == "fp32":
        assert worst < 1e-5 * max(1, np.abs(expected).max())
    else:
        assert worst <= np.diff(np.unique(np.abs(expected))).min() * 1.01


@pytest.mark.slow
def test_the_apk_is_signed_aligned_and_asks_for_the_camera_alone(apk):
    lines = build.verify(apk, ["arm64-v8a"])
    assert "permissions: android.permission.CAMERA" in lines
    assert apk.stat().st_size < 20e6
    with zipfile.ZipFile(apk) as archive:
        names = set(archive.namelist())
    assert {"assets/student.tflite", "assets/student.tflite.json", "assets/face_finder.tflite"} <= names
