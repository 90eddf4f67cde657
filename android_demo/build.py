"""Build and verify the signed APK: python -m android_demo.build, from a checkout; no NDK, no Gradle, no SDK manager."""

import os
import re
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path

import click

from android_demo import compile, pins, student
from android_demo.pins import HERE, need, run
from faces.cli import run_cli
from faces.errors import UserError
from faces.files import sha256, whole

MIN_SDK, TARGET_SDK = "24", "34"
PERMISSIONS = {"android.permission.CAMERA"}
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PASSWORD = "android"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--run", "folder", type=click.Path(path_type=Path),
              help="The run whose student goes in. Default: the trained tiny16 of the package.")  # fmt: skip
@click.option("--precision", type=click.Choice(student.PRECISIONS), default="fp32", show_default=True)
@click.option("--debs", type=click.Path(path_type=Path), help="Folder with libandroid-23-java and dalvik-exchange.")
@click.option("--mirror", envvar="DEBIAN_MIRROR", metavar="URL", help="Debian mirror to fetch these two from.")
@click.option("--emulator", is_flag=True, help="Also x86_64, for emulators.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: android_demo/build/bridgeface-demo.apk.")
@run_cli
def main(
    folder: Path | None, precision: str, debs: Path | None, mirror: str | None, emulator: bool, out: Path | None
) -> None:
    """Build the app around a student, sign it with a debug key and check what came out."""
    abis = ["arm64-v8a"] + (["x86_64"] if emulator else [])
    artifact = student.artifact(folder, precision)
    if out is None:
        # What it is made of stays, for the Gradle files.
        out, work = HERE / "build" / "bridgeface-demo.apk", HERE / "build" / "apk"
        lines = build(artifact, abis, debs, mirror, out, work)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            lines = build(artifact, abis, debs, mirror, out, Path(temporary) / "apk")
    click.echo(f"{out}: {out.stat().st_size:,} bytes, SHA-256 {sha256(out)}")
    for line in lines:
        click.echo(line)


def build(artifact: Path, abis: list[str], debs: Path | None, mirror: str | None, out: Path, work: Path) -> list[str]:
    """Write the signed APK to `out`, whole and verified; what `verify` says of it. `work` holds what it is made of and
    is emptied first.

    UserError where a tool or a pinned package is missing.
    """
    need("aapt", "aapt2", "apksigner", "zipalign", "clang-16", "ld.lld-16", "javac", "keytool", "dpkg-deb")
    shared = Path("usr/share/java")
    platform = pins.unpacked("android.jar", debs, mirror) / shared / "com.android.android-23.jar"
    dx = pins.unpacked("dx.jar", debs, mirror) / shared / "com.android.dx-10.0.0.jar"
    shutil.rmtree(work, ignore_errors=True)
    assets = work / "assets"
    assets.mkdir(parents=True)
    shutil.copyfile(artifact, assets / "student.tflite")
    shutil.copyfile(f"{artifact}.json", assets / "student.tflite.json")
    shutil.copyfile(pins.finder_file(), assets / "face_finder.tflite")

    resources, unsigned = work / "resources.zip", work / "unsigned.apk"
    run(["aapt2", "compile", "--dir", str(compile.SOURCES / "res"), "-o", str(resources)], "the resources are wrong")
    run(
        ["aapt2", "link", "-o", str(unsigned), "-I", str(platform), "--manifest",
         str(compile.SOURCES / "AndroidManifest.xml"), "-A", str(assets), "--java", str(work / "generated"),
         "--min-sdk-version", MIN_SDK, "--target-sdk-version", TARGET_SDK, str(resources)],
        "the manifest or the resources are wrong",
    )  # fmt: skip
    sources = [*compile.java_files("core", "demo"), *sorted((work / "generated").rglob("*.java"))]
    classes = compile.java(work / "classes", sources, platform)
    run(
        ["java", "-cp", str(dx), "com.android.dx.command.Main", "--dex", f"--min-sdk-version={MIN_SDK}",
         f"--output={work / 'classes.dex'}", str(classes)],
        "the classes cannot be turned into Dalvik's",
    )  # fmt: skip
    with zipfile.ZipFile(unsigned, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as apk:
        _add(apk, "classes.dex", work / "classes.dex")
        for abi in abis:
            # Where the Gradle files look for them too.
            libraries = work / "jniLibs" / abi
            libraries.mkdir(parents=True)
            shutil.copyfile(pins.litert_library(abi), libraries / "liblitert-lm.so")
            shutil.copyfile(compile.android_glue(abi, work / "glue" / abi), libraries / "libfacejni.so")
            for library in sorted(libraries.iterdir()):
                _add(apk, f"lib/{abi}/{library.name}", library)
    aligned = work / "aligned.apk"
    run(["zipalign", "-f", "-p", "4", str(unsigned), str(aligned)], "the package cannot be aligned")
    return _signed(aligned, abis, out)


def _signed(aligned: Path, abis: list[str], out: Path) -> list[str]:
    with whole(out) as temporary:
        run(
            ["apksigner", "sign", "--ks", str(_key()), "--ks-pass", f"pass:{_PASSWORD}", "--out", str(temporary),
             str(aligned)],
            "the package cannot be signed",
        )  # fmt: skip
        Path(f"{temporary}.idsig").unlink(missing_ok=True)
        # Before it gets its name: one that is not as it must be never replaces a good one.
        return verify(temporary, abis)


def _add(apk: zipfile.ZipFile, name: str, file: Path) -> None:
    # The same time every day: the same sources give the same entries.
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    apk.writestr(entry, file.read_bytes())


def _key() -> Path:
    """A debug key, made once: an app that was installed before can be replaced."""
    key = HERE / "build" / "debug.jks"
    if not key.is_file():
        fresh = key.with_suffix(f".{os.getpid()}")
        run(
            ["keytool", "-genkeypair", "-keystore", str(fresh), "-storepass", _PASSWORD, "-keypass", _PASSWORD,
             "-alias", "debug", "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000", "-dname", "CN=Debug"],
            "no debug key can be made",
        )  # fmt: skip
        fresh.rename(key)
    return key


def verify(apk: Path, abis: list[str]) -> list[str]:
    """What the tools say of an APK, as lines; UserError where anything is not as it must be."""
    said = run(["apksigner", "verify", "--verbose", "--print-certs", str(apk)], "the new APK is not signed well")
    schemes = re.findall(r"Verified using (v[\d.]+) scheme.*: true", said)
    if not {"v2", "v3"} <= set(schemes) or "WARNING" in said:
        raise UserError(f"the new APK is signed by {schemes}, v2 and v3 without a warning are wanted")
    badging = run(["aapt", "dump", "badging", str(apk)], "the new APK cannot be read by aapt")
    found = {
        "sdkVersion": re.findall(r"^sdkVersion:'(\d+)'", badging, re.M),
        "targetSdkVersion": re.findall(r"^targetSdkVersion:'(\d+)'", badging, re.M),
        "permissions": sorted(re.findall(r"^uses-(?:implied-)?permission[^:]*: ?name='([^']+)'", badging, re.M)),
        "native-code": sorted(re.findall(r"'([^']+)'", "".join(re.findall(r"^native-code:(.*)", badging, re.M)))),
        "launchable": re.findall(r"^launchable-activity: name='([^']+)'", badging, re.M),
    }
    wanted = {
        "sdkVersion": [MIN_SDK],
        "targetSdkVersion": [TARGET_SDK],
        "permissions": sorted(PERMISSIONS),
        "native-code": sorted(abis),
        "launchable": ["org.bridgeface.demo.MainActivity"],
    }
    if wrong := [f"{key} {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]:
        raise UserError(f"the new APK has {'; '.join(wrong)}")
    run(["zipalign", "-c", "-p", "4", str(apk)], "the new APK is not aligned")
    lines = [f"signed: {', '.join(schemes)}", *(f"{key}: {', '.join(value)}" for key, value in found.items())]
    with zipfile.ZipFile(apk) as archive:
        lines += ["", "| in the APK | bytes | stored |", "|---|--:|--:|"]
        for entry in sorted(archive.infolist(), key=lambda one: -one.compress_size):
            if entry.filename.endswith(".so") and (least := least_alignment(archive.read(entry))) < 16384:
                raise UserError(f"the new APK's {entry.filename} is aligned to {least} bytes, 16384 are wanted")
            if entry.compress_size > 2000:
                lines.append(f"| {entry.filename} | {entry.file_size:,} | {entry.compress_size:,} |")
    return lines


def least_alignment(library: bytes) -> int:
    """The least alignment of a 64-bit ELF file's loaded segments: pages of some phones are 16 kB."""
    start, size, count = *struct.unpack_from("<Q", library, 32), *struct.unpack_from("<HH", library, 54)
    headers = (struct.unpack_from("<IIQQQQQQ", library, start + i * size) for i in range(count))
    return min(header[7] for header in headers if header[0] == 1)


if __name__ == "__main__":
    main()
