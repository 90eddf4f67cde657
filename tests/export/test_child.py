import json
import os
import signal
import subprocess
import sys

import onnx
import pytest

from export import child
from export.child import Probe, Tensor, probe
from faces.errors import UserError


def test_says_what_the_files_are(exported):
    found = probe(exported / "student.onnx")
    proto = onnx.load(str(exported / "student.onnx"))
    assert found == Probe(
        format="onnx",
        inputs=(Tensor("face", "float32", (None, 3, 16, 16)),),
        outputs=(Tensor("embedding", "float32", (None, 128)),),
        opset=proto.opset_import[0].version,
        ir_version=proto.ir_version,
    )
    found = probe(exported / "student.tflite")
    assert (found.format, found.opset, found.ir_version) == ("tflite", None, None)
    assert [one[1:] for one in found.inputs + found.outputs] == [("float32", (1, 16, 16, 3)), ("float32", (1, 128))]


def test_content_goes_before_the_ending(exported, tmp_path):
    (tmp_path / "a.bin").write_bytes((exported / "student.tflite").read_bytes())
    (tmp_path / "b.ONNX").write_bytes((exported / "student.onnx").read_bytes())
    (tmp_path / "c.bin").write_bytes((exported / "student.onnx").read_bytes())
    assert probe(tmp_path / "a.bin").format == "tflite"
    assert probe(tmp_path / "b.ONNX").format == "onnx"
    assert probe(tmp_path / "c.bin", "onnx").format == "onnx"
    with pytest.raises(UserError, match=r"c\.bin: neither a TFLite file nor one that ends in \.onnx"):
        probe(tmp_path / "c.bin")
    with pytest.raises(UserError, match=r"c\.bin: not a usable tflite file: it is no TFLite file"):
        probe(tmp_path / "c.bin", "tflite")
    with pytest.raises(UserError, match="a tensorrt file cannot be tried out"):
        probe(tmp_path / "c.bin", "tensorrt")
    for absent in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(UserError, match="no such file"):
            probe(absent)


def test_works_from_any_folder_and_is_not_led_astray(exported, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert probe(exported / "student.onnx").format == "onnx"
    monkeypatch.chdir(exported)
    (tmp_path / "a b;c.onnx").symlink_to(exported / "student.onnx")
    assert probe(os.path.relpath(tmp_path / "a b;c.onnx")).format == "onnx"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the process that opened it died of SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process that opened it died of SIGSEGV"),
        ("import os; os.abort()", "the process that opened it died of SIGABRT"),
        ("import time; time.sleep(60)", "it took more than 0.5 s to open"),
        ("raise SystemExit(3)", r"gave no answer \(exit code 3\)"),
        ("print('{')", r"gave no answer \(exit code 0\)"),
        ("print('[' * 100_000)", "gave no answer"),
        ("print('null')", "gave no answer"),
        ("print('[]')", "gave no answer"),
        ("print('{}')", "gave no answer"),
        ("""print('{"inputs": 3, "outputs": []}')""", "gave no answer"),
        ("""print('{"inputs": [[1]], "outputs": []}')""", "gave no answer"),
        ("import sys; sys.stdout.buffer.write(bytes([255, 254]) * 9)", "gave no answer"),
        ("print(' ' * 5_000_000)", "gave no answer"),
        (r"""print('{"problem": "one\\ntwo"}')""", "one two"),
    ],
)
def test_every_end_of_the_child_is_one_line(exported, monkeypatch, code, told):
    monkeypatch.setattr(child, "_command", lambda *_: [sys.executable, "-S", "-c", code])
    timeout = 0.5 if "sleep" in code else 60
    with pytest.raises(UserError, match=rf"student\.onnx: not a usable onnx file: .*{told}") as raised:
        probe(exported / "student.onnx", timeout=timeout)
    assert "\n" not in str(raised.value)


def test_a_child_killed_from_outside_leaves_no_process(exported, monkeypatch, tmp_path):
    noted = tmp_path / "pid"
    code = f"import os, time; open({str(noted)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(child, "_command", lambda *_: [sys.executable, "-S", "-c", code])
    with pytest.raises(UserError, match="took more than 2 s"):
        probe(exported / "student.onnx", timeout=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), signal.SIGCONT)


def test_a_missing_runtime_is_named(exported, monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"student\.onnx: not a usable onnx file: .*not here"):
        probe(exported / "student.onnx")


@pytest.mark.skipif(child.resource is None, reason="no module resource")
def test_limits_hold_in_the_child_alone(exported):
    before = {name: child.resource.getrlimit(getattr(child.resource, name)) for name in ("RLIMIT_AS", "RLIMIT_CPU")}
    probe(exported / "student.onnx")
    assert before == {name: child.resource.getrlimit(getattr(child.resource, name)) for name in before}


def test_without_the_module_resource_the_child_still_answers(exported, monkeypatch):
    code = "import sys; sys.modules['resource'] = None\n"
    code += "import pathlib, export.child as c; c.main(pathlib.Path(sys.argv[1]), 'onnx', 9.0)"
    path = exported / "student.onnx"
    monkeypatch.setattr(child, "_command", lambda *_: [sys.executable, "-c", code, str(path)])
    assert probe(path).inputs[0].name == "face"


def test_what_native_code_prints_is_not_in_the_answer(exported, monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("import os; os.write(1, b'hello'); raise ImportError('loud')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="loud"):
        probe(exported / "student.onnx")


def test_the_answer_is_plain_json(exported):
    command = child._command(exported / "student.onnx", "onnx", 60)
    done = subprocess.run(command, capture_output=True, check=True, env=child._environment())
    assert json.loads(done.stdout)["opset"] == 20
