"""The builder's promises: pinned files or nothing, one sentence for a mistake, a checkout for --android."""

import hashlib
import http.server
import json
import re
import shutil
import struct
import threading
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from needs import need

from android_demo import build, pins, student
from compress import android
from compress.config import load_config
from export import stage
from faces.errors import UserError
from students import registry


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(pins, "CACHE", cache)
    return cache


def test_without_a_folder_or_a_mirror_it_says_what_to_give(empty_cache):
    with pytest.raises(UserError, match=r"--debs DIR.*--mirror URL"):
        pins.fetch("android.jar")


def test_a_folder_without_the_package_and_a_mirror_that_is_none(empty_cache, tmp_path):
    with pytest.raises(UserError, match="holds no libandroid-23-java"):
        pins.fetch("android.jar", debs=tmp_path)
    with pytest.raises(UserError, match="cannot be fetched"):
        pins.fetch("android.jar", mirror="http://127.0.0.1:9/debian")
    assert not list(empty_cache.iterdir())


def test_a_mirror_that_closes_early(empty_cache):
    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half a package")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Half) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"cannot be fetched from http://127.*; try --debs DIR"):
            pins.fetch("android.jar", mirror=f"http://127.0.0.1:{serving.server_address[1]}")
        serving.shutdown()
    assert not list(empty_cache.iterdir())


def test_another_file_of_the_right_name_is_refused(empty_cache, tmp_path):
    (tmp_path / pins.PINS["dx.jar"].file).write_bytes(b"something else")
    with pytest.raises(UserError, match="not the file that this build was checked with"):
        pins.fetch("dx.jar", debs=tmp_path)
    assert not list(empty_cache.iterdir())


def test_a_changed_file_in_the_cache_is_fetched_again(empty_cache, tmp_path, monkeypatch):
    pin = pins.Pin("debian", "x", "1", "x.deb", hashlib.sha256(b"right").hexdigest())
    monkeypatch.setitem(pins.PINS, "x", pin)
    (tmp_path / "x.deb").write_bytes(b"right")
    assert pins.fetch("x", debs=tmp_path).read_bytes() == b"right"
    (empty_cache / "x.deb").write_bytes(b"wrong")
    assert pins.fetch("x", debs=tmp_path).read_bytes() == b"right"
    (tmp_path / "x.deb").unlink()
    assert pins.fetch("x").read_bytes() == b"right"


def test_every_pin_names_one_version_and_a_hash():
    for name, pin in pins.PINS.items():
        assert re.fullmatch("[0-9a-f]{64}", pin.sha256), name
        assert re.match(r"\d", pin.version), name
        assert pin.version.split("+")[0] in pin.file, name


def test_the_command_ends_with_one_line_and_code_2(tmp_path, monkeypatch):
    result = CliRunner().invoke(build.main, ["--run", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no student.tflite" in result.output
    assert "--precision fp32" in result.output
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get install .*aapt apksigner clang-16"):
        pins.need("aapt", "apksigner", "clang-16")


def test_android_needs_a_checkout(monkeypatch, tmp_path):
    config = load_config("quick", None, {}, [])
    android.check(config)
    monkeypatch.setattr(android, "SCRIPT", tmp_path / "android_demo" / "build.py")
    with pytest.raises(UserError, match="from a checkout"):
        android.check(config)


@pytest.mark.parametrize("setting", ["export.formats=onnx", "export.precisions=int8"])
def test_android_needs_its_file_among_the_exported(setting):
    with pytest.raises(UserError, match=r"--android needs student\.tflite"):
        android.check(load_config("quick", None, {}, [setting]))


def test_a_runs_student_must_be_the_file_of_its_sidecar(artifacts, tmp_path):
    source = artifacts["fp32"]
    (tmp_path / source.name).write_bytes(source.read_bytes()[:-1] + b"x")
    (tmp_path / f"{source.name}.json").write_bytes(source.with_name(f"{source.name}.json").read_bytes())
    with pytest.raises(UserError, match="SHA-256"):
        student.artifact(tmp_path, "fp32")


@pytest.mark.parametrize("passed", [False, None])
def test_a_student_that_missed_its_gate_goes_nowhere(artifacts, tmp_path, passed):
    source = artifacts["fp32"]
    shutil.copyfile(source, tmp_path / source.name)
    card = json.loads(source.with_name(f"{source.name}.json").read_text())
    card["parity"] |= {"passed": passed, "reason": "cosine 0.31"}
    (tmp_path / f"{source.name}.json").write_text(json.dumps(card | {"parity_failure_allowed": True}))
    with pytest.raises(UserError, match=r"student\.tflite did not pass its parity gate \(cosine 0\.31\).*--precision"):
        student.artifact(tmp_path, "fp32")


def test_whose_faces_set_int8s_ranges_judge_no_file(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stage, "export_model", lambda subject, folder, how: given.append(subject))
    student.export_zoo(tmp_path)
    (subject,) = given
    setting, judging = ({crop.tobytes() for crop in crops} for crops in (subject.calibration, subject.trial.images))
    assert not setting & judging
    assert len(setting) + len(judging) == 396
    assert len(set(subject.trial.identities)) == 28
    assert "12 other people" in subject.calibration_source


def test_another_trained_student_is_exported_anew(artifacts, tmp_path, monkeypatch):
    exported = []

    def export_zoo(folder):
        exported.append(folder)
        for file in artifacts["fp32"].parent.glob("*.tflite*"):
            shutil.copyfile(file, folder / file.name)

    monkeypatch.setattr(student, "export_zoo", export_zoo)
    monkeypatch.setattr(student, "HERE", tmp_path)
    monkeypatch.setattr(registry, "ZOO", tmp_path)
    for weights in (b"old", b"old", b"new"):
        (tmp_path / f"{student.ZOO}.safetensors").write_bytes(weights)
        file = student.artifact(None, "fp32")
        assert file.parent == exported[-1]
    assert len(exported) == len(set(exported)) == 2


def test_a_bad_app_never_replaces_a_good_one(tmp_path, monkeypatch):
    def verify(apk, abis):
        assert apk.read_bytes() == b"new"
        if abis == ["bad"]:
            raise UserError("the new APK is not aligned")
        return ["fine"]

    monkeypatch.setattr(build, "_key", lambda: tmp_path / "key")
    monkeypatch.setattr(build, "run", lambda command, _: Path(command[command.index("--out") + 1]).write_bytes(b"new"))
    monkeypatch.setattr(build, "verify", verify)
    out = tmp_path / "app.apk"
    out.write_bytes(b"good")
    with pytest.raises(UserError, match="not aligned"):
        build._signed(tmp_path / "aligned.apk", ["bad"], out)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"good"]
    assert build._signed(tmp_path / "aligned.apk", ["arm64-v8a"], out) == ["fine"]
    assert out.read_bytes() == b"new"


def test_alignment_is_read_from_the_segments():
    header = bytearray(64 + 2 * 56)
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 2)
    struct.pack_into("<IIQQQQQQ", header, 64, 1, 0, 0, 0, 0, 0, 0, 16384)
    struct.pack_into("<IIQQQQQQ", header, 120, 1, 0, 0, 0, 0, 0, 0, 4096)
    assert build.least_alignment(bytes(header)) == 4096


class _Run:
    """As much of a run as the builder of the app needs."""

    def __init__(self, folder):
        self.folder, self.said = folder, []

    def path(self, name):
        return self.folder / name

    def say(self, words):
        self.said.append(words)


@pytest.mark.slow
def test_the_pipeline_puts_the_runs_own_student_into_the_app(artifacts, tmp_path):
    need("android.jar", "dx.jar", "litert-arm64-v8a", "face-detection", tools=("aapt2", "apksigner", "clang-16"))
    source = artifacts["fp32"]
    for file in (source, source.with_name(f"{source.name}.json")):
        shutil.copyfile(file, tmp_path / file.name)
    run = _Run(tmp_path)
    android.build(run)
    assert "MB, signed" in run.said[0]
    with zipfile.ZipFile(tmp_path / android.APK) as apk:
        assert apk.read("assets/student.tflite") == source.read_bytes()
    (tmp_path / source.name).unlink()
    with pytest.raises(UserError, match=r"the app was not built: .* holds no student.tflite"):
        android.build(run)
