"""Everything that the demo fetches: named, of one version, and compared with its SHA-256 before it is used."""

import http.client
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from faces.errors import UserError
from faces.files import sha256, whole

HERE = Path(__file__).resolve().parent
CACHE = HERE / "build" / "cache"


@dataclass(frozen=True)
class Pin:
    """source: `debian` (where: path below a mirror), `pypi` (where: the platform tag) or `npm`."""

    source: str
    package: str
    version: str
    file: str
    sha256: str
    where: str = ""


_LITERT = ("pypi", "litert-lm-api", "0.18.1")
PINS = {
    "android.jar": Pin(
        "debian", "libandroid-23-java", "6.0.1+r72-6", "libandroid-23-java_6.0.1+r72-6_all.deb",
        "8af1b6df556971dda0a6da3536ea526a838e0c363afcdd454213d8bce94793e3", "pool/main/a/android-framework-23",
    ),
    "dx.jar": Pin(
        "debian", "dalvik-exchange", "10.0.0+r36-1", "dalvik-exchange_10.0.0+r36-1_all.deb",
        "8fc128db7c27253d963eb9b33de79b197162a4749d2ba69019b2fd0664cbd7fe", "pool/main/a/android-platform-dalvik",
    ),
    "litert-arm64-v8a": Pin(
        *_LITERT, "litert_lm_api-0.18.1-py3-none-android_23_arm64_v8a.whl",
        "95826534a48f79a8fbcc6b47838d1a85cbfdebe7f1c7939d98780167a74fb1de", "android_23_arm64_v8a",
    ),
    "litert-x86_64": Pin(
        *_LITERT, "litert_lm_api-0.18.1-py3-none-android_23_x86_64.whl",
        "1c7940aedcad3ea1946016bf4c457cc438bd9ebe508f52705174568ab1cd0338", "android_23_x86_64",
    ),
    "litert-linux": Pin(
        *_LITERT, "litert_lm_api-0.18.1-py3-none-manylinux_2_27_x86_64.whl",
        "b2fe9b9a87afe991a7b0d29615b0bfc3d41c7a0ac28e9c54436676482bca2e5b", "manylinux_2_27_x86_64",
    ),
    "face-detection": Pin(
        "npm", "@mediapipe/face_detection", "0.4.1657300184", "mediapipe-face_detection-0.4.1657300184.tgz",
        "a118cde74923dc4435257fbfbb613464a0f58d115dff6314d4ff96c8aebf6419",
    ),
    "litert-js": Pin(
        "npm", "@litertjs/core", "2.5.3", "litertjs-core-2.5.3.tgz",
        "a97660833e9e7e1063c95e12016718881240b14f7438728a2f62785e912d30fd",
    ),
    "litert-js-utils": Pin(
        "npm", "@litertjs/wasm-utils", "2.5.3", "litertjs-wasm-utils-2.5.3.tgz",
        "ce2a1f8379c067be49e59752e5a7f40db6be09f6e497f0f11e59f17b515366a7",
    ),
}  # fmt: skip

FINDER = "face_detection_short_range.tflite"


def fetch(name: str, debs: Path | None = None, mirror: str | None = None) -> Path:
    """The pinned file in the cache, fetched where it is not there. UserError where it cannot be had or differs.

    debs: a folder that holds the Debian packages; mirror: a Debian mirror's address.
    """
    pin = PINS[name]
    final = CACHE / pin.file
    if final.is_file() and sha256(final) == pin.sha256:
        return final
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        found = _fetched(pin, Path(folder), debs, mirror)
        digest = sha256(found)
        if digest != pin.sha256:
            raise UserError(
                f"{pin.file} has SHA-256 {digest[:12]}, {pin.sha256[:12]} is pinned: it is not the file that this "
                "build was checked with; fetch it elsewhere"
            )
        with whole(final) as temporary:
            shutil.copyfile(found, temporary)
    return final


def _fetched(pin: Pin, folder: Path, debs: Path | None, mirror: str | None) -> Path:
    target = folder / pin.file
    if pin.source == "debian":
        if debs is not None:
            if not (debs / pin.file).is_file():
                raise UserError(f"{debs} holds no {pin.file}: put it there, or leave out --debs and give --mirror")
            return debs / pin.file
        if mirror is None:
            raise UserError(
                f"{pin.file} is needed: give --debs DIR, a folder that holds it, or --mirror URL, a Debian mirror"
            )
        try:
            with urllib.request.urlopen(f"{mirror.rstrip('/')}/{pin.where}/{pin.file}", timeout=60) as answer:
                target.write_bytes(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as problem:
            raise UserError(f"{pin.file} cannot be fetched from {mirror} ({problem}); try --debs DIR") from None
    elif pin.source == "pypi":
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--platform", pin.where,
                   "--dest", str(folder), f"{pin.package}=={pin.version}"]  # fmt: skip
        python = HERE.parent / ".venv" / "bin" / "python"
        run([str(python) if python.exists() else "python3", "-m", *command], f"{pin.file} cannot be fetched from PyPI")
    else:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{pin.package}@{pin.version}"]
        run(command, f"{pin.file} cannot be fetched from npm")
    if not target.is_file():
        raise UserError(f"{pin.package} {pin.version} came as {os.listdir(folder)}, not as {pin.file}")
    return target


def unpacked(name: str, debs: Path | None = None, mirror: str | None = None) -> Path:
    """The folder with the pinned package's files, unpacked once."""
    archive = fetch(name, debs, mirror)
    folder = CACHE / f"{archive.name}.d"
    if not folder.is_dir():
        # Renamed last: a folder that is there is complete.
        half = Path(tempfile.mkdtemp(dir=CACHE))
        if archive.suffix == ".deb":
            run(["dpkg-deb", "-x", str(archive), str(half)], f"{archive.name} cannot be unpacked")
        elif archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(half)
        else:
            shutil.unpack_archive(archive, half, filter="data")
        try:
            half.rename(folder)
        except OSError:
            # Another process was faster; what it unpacked is the same.
            if not folder.is_dir():
                raise
            shutil.rmtree(half)
    return folder


def finder_file() -> Path:
    """The face finder's model, the same file for app, page and Python."""
    return unpacked("face-detection") / "package" / FINDER


def litert_library(platform: str) -> Path:
    """liblitert-lm.so for `arm64-v8a`, `x86_64` (Android) or `linux`."""
    return unpacked(f"litert-{platform}") / "litert_lm" / "liblitert-lm.so"


TOOLS = {
    "aapt": "aapt", "aapt2": "aapt", "apksigner": "apksigner", "zipalign": "zipalign", "clang-16": "clang-16",
    "ld.lld-16": "lld-16", "javac": "default-jdk-headless", "keytool": "default-jdk-headless", "dpkg-deb": "dpkg",
    "npm": "npm",
}  # fmt: skip
"""Program and the Debian package (bookworm) that has it."""


def need(*programs: str) -> None:
    """UserError naming the Debian packages to install where a program is missing."""
    if missing := sorted({TOOLS[program] for program in programs if shutil.which(program) is None}):
        raise UserError(f"missing tools: apt-get install --no-install-recommends {' '.join(missing)}")


def run(command: list[str], failure: str, cwd: Path | None = None) -> str:
    """stdout of a program; UserError with `failure` and its last words where it fails or is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    except FileNotFoundError:
        raise UserError(f"{failure}: {command[0]} is not installed") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"{failure}: {' / '.join(said[-3:]) or f'exit code {done.returncode}'}")
    return done.stdout
