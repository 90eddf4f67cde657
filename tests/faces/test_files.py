"""Whole-file writes, fingerprints and locks."""

import hashlib
import stat
import subprocess
import sys

import pytest

from faces.errors import UserError
from faces.files import fingerprint, lock, sha256, whole, write_json, write_text


def _die_half_way(path, seen):
    with whole(path) as temporary:
        temporary.write_text("half")
        seen.append(temporary)
        raise ZeroDivisionError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    seen = []
    with pytest.raises(ZeroDivisionError):
        _die_half_way(path, seen)
    assert not seen[0].exists()
    assert (seen[0].parent, seen[0].suffix) == (path.parent, ".txt")
    assert list(path.parent.iterdir()) == []
    write_text(path, "one")
    with pytest.raises(ZeroDivisionError):
        _die_half_way(path, seen)
    assert path.read_text() == "one"
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]
    other = path.parent / "plain"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 0.5]})
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_a_fingerprint_changes_with_values_and_with_bytes(tmp_path):
    file = tmp_path / "a.py"
    file.write_bytes(b"x" * 3_000_000)
    assert sha256(file) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    first = fingerprint({"a": 1, "b": 2}, [file])
    assert first == fingerprint({"b": 2, "a": 1}, [file])
    assert len(first) == 16
    others = [fingerprint({"a": 1, "b": 3}, [file]), fingerprint({"a": 1, "b": 2})]
    file.write_bytes(b"y")
    others.append(fingerprint({"a": 1, "b": 2}, [file]))
    assert len({first, *others}) == 4


def test_a_locked_folder_is_refused_to_another_process(tmp_path):
    code = "import sys, pathlib\nfrom faces.files import lock\nwith lock(pathlib.Path(sys.argv[1])): print('in')"
    with lock(tmp_path):
        with pytest.raises(UserError, match="in use by another run"), lock(tmp_path):
            pass
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert "in use by another run" in done.stderr
        assert done.returncode
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "in\n"
