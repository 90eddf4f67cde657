"""A folder with what an ARM program needs to run under qemu: Debian's arm64 Python and LiteRT's own aarch64 wheel.

Everything comes through apt-get and pip as they are set up on this machine; nothing is installed into it.
"""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from faces.errors import UserError

DEBS = ("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libssl3",
        "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal")  # fmt: skip
WHEELS = ("ai-edge-litert", "numpy", "flatbuffers", "typing_extensions", "tqdm", "backports.strenum")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
# What qemu's user emulation shows is this machine's own /proc/cpuinfo, which LiteRT on ARM cannot parse.
_CPUINFO = """processor\t: 0
BogoMIPS\t: 48.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {part}
CPU revision\t: 0

"""
CPUS = {
    "cortex-a53": ("fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid", "0xd03"),
    "cortex-a76": ("fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
                   "0xd0b"),
}  # fmt: skip
"""qemu's CPU models: a small core without dot product, a big one with it."""


def sysroot(folder: Path) -> Path:
    """`folder/root`, made where it is not there yet (about 60 MB of downloads)."""
    root = folder / "root"
    if (root / ".whole").is_file():
        return root
    debs, wheels = folder / "debs", folder / "wheels"
    for one in (root, debs, wheels, *(folder / "apt" / name for name in ("lists/partial", "cache/archives/partial"))):
        one.mkdir(parents=True, exist_ok=True)
    (folder / "apt/status").touch()
    apt = ["apt-get", "-qq", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures::=arm64"]
    for key, value in (("State::lists", "lists"), ("State::status", "status"), ("Cache", "cache")):
        apt += ["-o", f"Dir::{key}={(folder / 'apt' / value).resolve()}"]
    # apt drops its rights to download, which a folder of ours need not allow.
    apt += ["-o", "APT::Sandbox::User=root"]
    _run([*apt, "update"], debs, "apt-get update for arm64")
    _run([*apt, "download", *DEBS], debs, "apt-get download of Debian's arm64 Python 3.11")
    for deb in sorted(debs.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(root)], debs, f"unpacking {deb.name}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
           "--python-version", "3.11", "--dest", str(wheels)]  # fmt: skip
    for platform in _PLATFORMS:
        pip += ["--platform", platform]
    pinned = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    _run([*pip, *pinned], folder, "pip download of LiteRT's aarch64 wheel")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "site")
    (root / ".whole").touch()
    return root


def show_cpu(root: Path, cpu: str) -> None:
    """What the guest finds in /proc/cpuinfo; its features must be those of qemu's -cpu."""
    features, part = CPUS[cpu]
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(_CPUINFO.format(features=features, part=part))


def _run(command: list[str], folder: Path, what: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{what} needs {command[0]}, which is not here: run it on Debian or Ubuntu") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise UserError(f"{what} failed: {said}")
