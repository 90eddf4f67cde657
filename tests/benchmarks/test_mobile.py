import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import mobile, phone, qemu
from faces.errors import UserError

# A device as adb shows it, in a shell script: state in files, so that a test sees what was pushed and run.
ADB = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/log"
[ "$1" = devices ] && { cat "$here/devices"; exit 0; }
[ "$1" = -s ] && shift 2
case "$1" in
push) cp "$2" "$here/pushed/${3##*/}" || exit 1;;
shell) case "$2" in
  *ro.product.model*) echo "Pixel Test";;
  getprop*) echo unknown;;
  *cpuinfo_max_freq*) for c in "0 1800000" "6 2400000" "7 2400000"; do
      set -- $c; echo "/sys/devices/system/cpu/cpu$1/cpufreq/cpuinfo_max_freq $2"; done;;
  *battery*) printf 'Current Battery Service state:\\n  temperature: 291\\n';;
  *LD_LIBRARY_PATH*) cat "$here/answer";;
  esac;;
esac
"""
ANSWER = {"tflite": "2.23.0", "runs": 500, "faces_per_second": 1234.5, "p50_ms": 0.8, "p95_ms": 1.1}


@pytest.fixture
def adb(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    (folder / "pushed").mkdir(parents=True)
    (folder / "adb").write_text(ADB)
    (folder / "adb").chmod(0o755)
    (folder / "devices").write_text("List of devices attached\nABC\tdevice\n\n")
    (folder / "answer").write_text(json.dumps(ANSWER) + "\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def built(tmp_path, monkeypatch):
    files = [tmp_path / "phone", tmp_path / "liblitert-lm.so"]
    for file in files:
        file.write_bytes(b"\x7fELF")
    monkeypatch.setattr(phone, "build", lambda folder: tuple(files))
    return files


def test_a_phone_is_measured_on_its_last_big_core(adb, built, tiny_files, tmp_path):
    out = tmp_path / "rows.json"
    # A name that a shell would take apart.
    file = tmp_path / "my student;reboot.tflite"
    for end in ("", ".json"):
        shutil.copyfile(f"{tiny_files['tflite-int8']}{end}", f"{file}{end}")
    card = json.loads(Path(f"{file}.json").read_text())
    Path(f"{file}.json").write_text(json.dumps(card | {"file": file.name}))
    command = ["phone", str(file), "--json", str(out), "--runs", "500"]
    done = CliRunner().invoke(mobile.main, command)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(out.read_text())["mobile"]
    assert (row["faces_per_second"], row["p50_ms"], row["p95_ms"]) == (1234.5, 0.8, 1.1)
    assert row["device"]["model"] == "Pixel Test"
    assert row["core"] == 7
    assert row["celsius"] == [29.1, 29.1]
    log = (adb / "log").read_text()
    # Bit 7 of the mask, and the arguments that phone.c takes.
    assert "taskset 80 ./phone student.tflite faces.bin 500 1" in log
    assert ";reboot" not in "".join(line for line in log.splitlines() if " shell " in line)
    pushed = {file.name: file.stat().st_size for file in (adb / "pushed").iterdir()}
    assert set(pushed) == {"phone", "liblitert-lm.so", "student.tflite", "faces.bin"}
    # 64 faces as the file takes them: a byte a value.
    assert pushed["faces.bin"] == 64 * 16 * 16 * 3
    assert "| Pixel Test | my student;reboot.tflite | 7 | 1,234 |" in done.stdout


@pytest.mark.parametrize(
    ("devices", "message"),
    [("", "none is connected"), ("A\tdevice\nB\tdevice\n", "2 are connected (A, B): name one with --serial"),
     ("A\tunauthorized\n", "phone A is unauthorized")],
)  # fmt: skip
def test_no_usable_phone_is_one_sentence(adb, built, tiny_files, devices, message):
    (adb / "devices").write_text("List of devices attached\n" + devices)
    done = CliRunner().invoke(mobile.main, ["phone", str(tiny_files["tflite"])])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("answer", ["", "Segmentation fault\n", '{"error":"a call failed"}\n'])
def test_a_phone_that_fails_is_told(adb, built, tiny_files, answer):
    (adb / "answer").write_text(answer)
    done = CliRunner().invoke(mobile.main, ["phone", str(tiny_files["tflite"])])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: phone ABC")


def test_without_adb_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="apt-get install adb"):
        phone.Phone()


def _counting(tmp_path, monkeypatch, counts, shift):
    """qemu replaced at its boundary: instructions from `counts`, outputs those of this machine plus `shift`."""
    monkeypatch.setattr(qemu.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(qemu, "sysroot", lambda folder: tmp_path)
    monkeypatch.setattr(qemu, "_plugin", lambda folder: tmp_path / "count.so")
    monkeypatch.setattr(qemu, "_version", lambda path: "qemu 7.2")
    left = iter(counts)

    def count(path, cpu, root, plugin, file, work, runs):
        import export

        artifact, fed = export.load(file), np.load(work / "in.npy")
        np.save(work / "out.npy", np.concatenate([artifact.run(face[None]) for face in fed]) + shift)
        return {"all": next(left)}

    monkeypatch.setattr(qemu, "_count", count)


def test_instructions_are_the_difference_of_two_lengths(tiny_files, tmp_path, monkeypatch):
    _counting(tmp_path, monkeypatch, [7_000_000, 57_000_000, 7_000_100, 57_010_100], 0)
    row = qemu.measure(tiny_files["tflite"], "cortex-a76", tmp_path)
    assert row["instructions"] == 500_000
    assert row["repeat_apart"] == pytest.approx(100 / 500_000)
    assert (row["max_abs_to_this_machine"], row["agrees"]) == (0, True)
    assert row["estimate"]["label"] == "estimate, not a measurement"
    assert row["estimate"]["faces_per_second"] == pytest.approx(2.4e9 * 2 / 500_000)


@pytest.mark.parametrize(("name", "shift", "agrees"), [("tflite", 0.01, False), ("tflite-int8", 10.0, False)])
def test_other_outputs_are_told(tiny_files, tmp_path, monkeypatch, name, shift, agrees):
    _counting(tmp_path, monkeypatch, [1, 101, 1, 101], shift)
    assert qemu.measure(tiny_files[name], "cortex-a53", tmp_path)["agrees"] is agrees


def test_files_that_no_phone_runs_are_refused(tiny_files, tmp_path):
    with pytest.raises(UserError, match="TFLite files"):
        qemu.measure(tiny_files["fp32"], "cortex-a53", tmp_path)
    with pytest.raises(UserError, match="Known: cortex-a53, cortex-a76"):
        qemu.measure(tiny_files["tflite"], "m1", tmp_path)


@pytest.mark.slow
def test_the_real_count_under_qemu(tiny_files, tmp_path):
    """Fetches an ARM Python; skipped where qemu, a compiler or the network is missing."""
    if shutil.which("qemu-aarch64") is None or shutil.which("cc") is None:
        pytest.skip("no qemu-aarch64 or no C compiler here")
    folder = Path(os.environ.get("BRIDGEFACE_ARM", tmp_path))
    try:
        rows = {name: qemu.measure(tiny_files[name], "cortex-a76", folder) for name in ("tflite", "tflite-int8")}
    except UserError as problem:
        if "apt-get" in str(problem) or "pip download" in str(problem):
            pytest.skip(str(problem))
        raise
    for row in rows.values():
        assert row["agrees"], row
        assert row["repeat_apart"] < 0.001
    assert rows["tflite-int8"]["instructions"] < rows["tflite"]["instructions"]


def test_the_phones_program_is_an_android_program(tmp_path, monkeypatch):
    if shutil.which("clang-16") is None or shutil.which("ld.lld-16") is None:
        pytest.skip("no clang and lld here")
    # An empty library in the place of the runtime: linking is what is tested, undefined names are allowed.
    library = tmp_path / "liblitert-lm.so"
    os.system(f"echo 'void TfLiteVersion(void){{}}' | clang-16 --target=aarch64-linux-android23 -nostdlib -shared "
              f"-fuse-ld=lld -w -x c - -o {library}")  # fmt: skip
    names = [line.split("(")[0].split()[-1].lstrip("*") for line in (phone.NATIVE / "phone.c").read_text().splitlines()
             if "TfLite" in line and line.endswith(";") and not line.startswith(" ")]  # fmt: skip
    stub = "".join(f"void {name}(void){{}}\n" for name in dict.fromkeys(names))
    (tmp_path / "rt.c").write_text(stub)
    os.system(
        f"clang-16 --target=aarch64-linux-android23 -nostdlib -shared -fuse-ld=lld -w {tmp_path}/rt.c -o {library}"
    )
    program, _ = phone.build(tmp_path)
    head = program.read_bytes()[:20]
    assert head[:5] == b"\x7fELF\x02"
    assert int.from_bytes(head[18:20], "little") == 183  # AArch64
    assert b"/system/bin/linker64" in program.read_bytes()
    assert program.stat().st_mode & stat.S_IXUSR
