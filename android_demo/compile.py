"""The demo's C and Java, compiled without NDK or Gradle: for the APK, and for the machine that tests it."""

from pathlib import Path

from android_demo.pins import HERE, litert_library, need, run
from faces.errors import UserError

SOURCES = HERE / "app" / "src" / "main"
NATIVE = HERE / "native"
ABIS = {"arm64-v8a": "aarch64-linux-android23", "x86_64": "x86_64-linux-android23"}
"""Android's name of a processor and clang's, at the API that the LiteRT library was built for."""

# What the glue takes from the phone's C library: enough of one to link against.
_LIBC = "malloc", "free", "memset", "memcpy"


def jni_headers() -> list[str]:
    """Compiler options that find jni.h of the installed JDK."""
    for header in sorted(Path("/usr/lib/jvm").glob("*/include/jni.h"), reverse=True):
        return [f"-I{header.parent}", f"-I{header.parent / 'linux'}"]
    raise UserError("no jni.h: apt-get install --no-install-recommends default-jdk-headless")


def android_glue(abi: str, out: Path) -> Path:
    """libfacejni.so for an Android processor, in `out`; pages of 16 kB, as newer phones demand."""
    need("clang-16", "ld.lld-16")
    out.mkdir(parents=True, exist_ok=True)
    # jni.h includes it and uses nothing of it; the system's own would be another C library's.
    (out / "include").mkdir(exist_ok=True)
    (out / "include" / "stdio.h").write_text("")
    stub = out / "libc.c"
    stub.write_text("".join(f"void {name}(void) {{}}\n" for name in _LIBC))
    common = ["clang-16", f"--target={ABIS[abi]}", "-nostdlib", "-ffreestanding", "-fPIC", "-shared", "-fuse-ld=lld",
              "-Wl,-z,max-page-size=16384", "-O2"]  # fmt: skip
    run([*common, "-fno-builtin", "-w", "-Wl,-soname,libc.so", "-o", str(out / "libc.so"), str(stub)],
        "the stand-in for Android's C library does not compile")  # fmt: skip
    glue = out / "libfacejni.so"
    library = litert_library(abi)
    run(
        [*common, "-nostdlibinc", "-Wall", "-Werror", "-Wno-unused-parameter", "-fvisibility=hidden",
         "-fno-stack-protector", f"-I{out / 'include'}",
         *jni_headers(), "-Wl,-soname,libfacejni.so", "-Wl,--no-undefined", "-Wl,--allow-shlib-undefined", "-Wl,-s",
         "-Wl,-z,relro", "-Wl,-z,now", "-o", str(glue), str(NATIVE / "jni.c"), str(NATIVE / "network.c"),
         str(out / "libc.so"), f"-L{library.parent}", "-llitert-lm"],
        f"the glue for {abi} does not compile",
    )  # fmt: skip
    return glue


def host_glue(out: Path) -> Path:
    """libfacejni.so for the JVM of this machine, beside LiteRT's Linux library of the same version."""
    out.mkdir(parents=True, exist_ok=True)
    need("clang-16")
    glue, library = out / "libfacejni.so", litert_library("linux")
    run(
        ["clang-16", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Werror", "-Wno-unused-parameter",
         *jni_headers(), f"-Wl,-rpath,{library.parent}", "-o", str(glue), str(NATIVE / "jni.c"),
         str(NATIVE / "network.c"), f"-L{library.parent}", "-llitert-lm"],
        "the glue for this machine does not compile",
    )  # fmt: skip
    return glue


def java(out: Path, sources: list[Path], boot: Path | None = None) -> Path:
    """Classes of Java 8, which is what dx reads; boot: android.jar, else this machine's own library."""
    need("javac")
    out.mkdir(parents=True, exist_ok=True)
    against = [] if boot is None else ["-bootclasspath", str(boot)]
    command = ["javac", "-nowarn", "-Xlint:all,-options,-deprecation", "-Werror", "-encoding", "UTF-8", "-source", "8",
               "-target", "8", *against, "-d", str(out), *map(str, sources)]  # fmt: skip
    run(command, "the Java code does not compile")
    return out


def java_files(*packages: str) -> list[Path]:
    """The app's sources of `core` (plain Java) and `demo` (Android)."""
    return [file for one in packages for file in sorted((SOURCES / "java" / "org" / "bridgeface" / one).glob("*.java"))]
