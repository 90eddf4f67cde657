"""Hostile .rec, .idx and .bin files: counted and skipped, or one message. Nothing is run, nothing huge is allocated."""

import os
import pickle
import random
import resource
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest

from faces.errors import UserError
from faces.sources import open_faces, read_bin, recordio

MAGIC = struct.pack("<I", 0xCED7230A)
HEADER = bytes(24)


def _png(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(coarse, (112, 112)))[1].tobytes()


def _frame(payload, flag=0, length=None):
    word = flag << 29 | (len(payload) if length is None else length)
    return MAGIC + struct.pack("<I", word) + payload + bytes(-len(payload) % 4)


def _label(value, image, flag=0):
    return struct.pack("<IfQQ", flag, value, 0, 0) + image


def _write(folder, records, index):
    """`records`: the bytes of whole frames."""
    folder.mkdir(exist_ok=True)
    starts = np.cumsum([0, *map(len, records)])
    (folder / "train.rec").write_bytes(b"".join(records))
    if index:
        (folder / "train.idx").write_text("".join(f"{key}\t{at}\n" for key, at in enumerate(starts[:-1])))
    return folder


GOOD = [_frame(_label(i // 2, _png(i))) for i in range(4)]
BAD = {
    "no magic": (b"\0" + GOOD[0][1:], "record without its magic number"),
    "longer than the file": (_frame(HEADER + _png(9), length=(1 << 29) - 1), "record longer than its file"),
    "middle first": (_frame(HEADER + _png(9), flag=2), "record whose parts are out of order"),
    "end first": (_frame(HEADER + _png(9), flag=3), "record whose parts are out of order"),
    "unknown flag": (_frame(HEADER + _png(9), flag=7), "record whose parts are out of order"),
    "first without end": (_frame(HEADER + _png(9), flag=1), "record whose parts are out of order"),
    "empty": (_frame(b""), "record shorter than its header"),
    "short header": (_frame(HEADER[:23]), "record shorter than its header"),
    "too many labels": (_frame(_label(0, _png(9), flag=2**32 - 1)), "record shorter than its labels"),
    "label NaN": (_frame(_label(float("nan"), _png(9))), "label that is no identity number"),
    "label infinite": (_frame(_label(float("inf"), _png(9))), "label that is no identity number"),
    "label below 0": (_frame(_label(-1, _png(9))), "label that is no identity number"),
    "label 1.5": (_frame(_label(1.5, _png(9))), "label that is no identity number"),
    "no image": (_frame(_label(3, b"")), "unreadable image"),
    "half an image": (_frame(_label(3, _png(9)[:200])), "unreadable image"),
}


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("bad", BAD)
def test_a_corrupt_record_is_counted_and_the_others_are_read(tmp_path, bad, index):
    data, reason = BAD[bad]
    folder = _write(tmp_path / "s", [GOOD[0], GOOD[1], data, GOOD[2], GOOD[3]], index)
    faces = open_faces(str(folder))
    assert faces.identities.tolist() == [0, 0, 1, 1]
    assert faces.integrity.skipped == {reason: 1}
    assert faces.integrity.read == 5


def test_the_parts_of_a_record_without_its_head_are_one_problem(tmp_path):
    parts = [b"\0" + _frame(HEADER, flag=1)[1:], _frame(b"more", flag=2), _frame(b"end", flag=3)]
    faces = open_faces(str(_write(tmp_path / "s", [GOOD[0], *parts, GOOD[1]], False)))
    assert len(faces) == 2
    assert faces.integrity.skipped == {"record without its magic number": 1}


@pytest.mark.parametrize("index", [True, False])
def test_a_file_cut_short_gives_what_is_whole(tmp_path, index):
    folder = _write(tmp_path / "s", GOOD, index)
    data = (folder / "train.rec").read_bytes()
    ends, rng = np.cumsum([len(one) for one in GOOD]), random.Random(0)
    for length in (8, 31, 32, *(rng.randrange(8, len(data)) for _ in range(20))):
        (folder / "train.rec").write_bytes(data[:length])
        # The padding of the last record may be missing.
        whole = sum(length >= end - 3 for end in ends)
        records = list(recordio.read(folder / "train.rec"))
        assert len([one for one in records if one.problem is None]) == whole
        told = [one.problem for one in records if one.problem is not None]
        begun = sum(length > start for start in (0, *ends[:-1]))
        assert len(told) == (4 if index else begun) - whole
        assert set(told) <= {"record longer than its file", "record beyond the end of its file"}


@pytest.mark.parametrize(
    "data",
    [b"", MAGIC, b"text" * 100, bytes(3000), b"\xff" * 3000, b"x" + GOOD[0], b"BC" + bytes(100), MAGIC[::-1] * 50],
)
def test_what_is_no_recordio_file_is_refused(tmp_path, data):
    (tmp_path / "x.rec").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.rec is no RecordIO file"):
        open_faces(str(tmp_path / "x.rec"))


def test_flipped_bytes_give_faces_or_a_message(tmp_path):
    folder = _write(tmp_path / "s", GOOD, True)
    data, rng = (folder / "train.rec").read_bytes(), random.Random(1)
    problems = set()
    for round_ in range(60):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 5, 200))):
            # The heads of the records decide most.
            at = rng.randrange(40) + rng.choice((0, *np.cumsum([len(one) for one in GOOD[:3]]).tolist()))
            broken[at] = rng.randrange(256)
        if round_ % 2:
            (folder / "train.idx").unlink(missing_ok=True)
        else:
            _write(folder, GOOD, True)
        (folder / "train.rec").write_bytes(broken)
        try:
            faces = open_faces(str(folder))
        except UserError:
            continue
        assert 0 < len(faces) <= 4
        problems |= set(faces.integrity.skipped)
    assert len(problems) >= 3


@pytest.mark.parametrize(
    "text", [b"0\n", b"a\tb\n", b"0\t0\n1\n", b"\xff\xfe\0", b"0\t0.5\n", b"{}", b"0\t0\n1\tnan\n", b"0 1 2 x"]
)
def test_an_index_that_is_none_is_refused(tmp_path, text):
    folder = _write(tmp_path / "s", GOOD, True)
    (folder / "train.idx").write_bytes(text)
    with pytest.raises(UserError, match=r"train\.idx is no RecordIO index"):
        open_faces(str(folder))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("9\t-8", "record beyond the end of its file"),
        ("9\t99999999999999999999999", "record beyond the end of its file"),
        ("9\t9223372036854775807", "record beyond the end of its file"),
        ("9\t2", "record without its magic number"),
        ("-9\t0", "exact duplicate"),
        ("3\t0", "key that occurred already"),
    ],
)
def test_a_line_of_the_index_that_leads_nowhere_is_counted(tmp_path, line, reason):
    folder = _write(tmp_path / "s", GOOD, True)
    with (folder / "train.idx").open("a") as file:
        file.write(line + "\n")
    assert open_faces(str(folder)).integrity.skipped == {reason: 1}


@pytest.mark.parametrize("end", [float("nan"), float("inf"), -3.0, 0.0, 0.5])
@pytest.mark.parametrize("index", [True, False])
def test_a_record_0_without_an_end_is_counted_and_all_images_are_read(tmp_path, end, index):
    head = _frame(struct.pack("<IfQQ", 2, 0, 0, 0) + struct.pack("<ff", end, end))
    faces = open_faces(str(_write(tmp_path / "s", [head, *GOOD], index)))
    assert len(faces) == 4
    assert faces.integrity.skipped == {"record 0 without the end of the images": 1}


def test_a_record_0_that_promises_everything_is_told(tmp_path):
    head = _frame(struct.pack("<IfQQ", 2, 0, 0, 0) + struct.pack("<ff", 1e30, 2e30))
    assert len(open_faces(str(_write(tmp_path / "s", [head, *GOOD], True)))) == 4
    head = _frame(struct.pack("<IfQQ", 2, 0, 0, 0) + struct.pack("<ff", 1e6, 2e6))
    faces = open_faces(str(_write(tmp_path / "s", [head, *GOOD], True)))
    assert faces.integrity.skipped == {"end of the set (999995 of 999999 images are not there)": 1}


FILES, SAME = [_png(i) for i in range(20)], [True, False] * 5


class _Run:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def _evil(path, protocol):
    """Pickles that run a command, or would if the reader let them, each in another way."""
    touch = f"touch {path}"
    yield pickle.dumps(([_Run(os.system, (touch,))] * 20, SAME), protocol)
    yield pickle.dumps((FILES, _Run(eval, (f"open({str(path)!r}, 'w')",))), protocol)
    yield pickle.dumps((FILES, _Run(subprocess.check_call, (["touch", str(path)],))), protocol)
    yield pickle.dumps((FILES, _Run(exec, (f"import os; os.system({touch!r})",))), protocol)


HAND = [
    b"cos\nsystem\n(S'touch ran'\ntR.",
    b"(S'touch ran'\nios\nsystem\n.",
    b"(cos\nsystem\nS'touch ran'\no.",
    b"\x80\x02cos\nsystem\n(X\x09\0\0\0touch ran\x81.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",
    b"c__builtin__\n__import__\n(S'os'\ntR.",
    b"cnumpy\ncore.multiarray.fromfile\n(S'/etc/passwd'\ntR.",
    b"c_codecs\nencode.__globals__\n.",
    b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.data\x93.",
    b"Pos.system\n.",
    b"(dp0\n.",
    b"\x80\x02\x82\x01.",
    b"(lp0\nS'__class__'\nS'x'\nsb.",
    b"c_codecs\nencode\n(dS'__defaults__'\n(I1\ntsb.",
    b"c_codecs\nencode\nI1\nR.",
    b"c_codecs\nencode\n(VX\nS'rot13'\ntR.",
    b"cnumpy\nndarray\n(I1\ntR.",
    b"cnumpy\ndtype\n(S'O'\nI0\nI1\ntR.",
    b"cnumpy\ndtype\n(S'u8'\nI0\nI1\ntR(I3\nS'>'\ntb.",
]


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_is_refused_and_not_run(tmp_path, protocol):
    for i, data in enumerate(_evil(tmp_path / "ran", protocol)):
        (tmp_path / "x.bin").write_bytes(data)
        for reader in (read_bin, lambda path: open_faces(str(path))):
            with pytest.raises(UserError, match=r"x\.bin is no verification set .* it asks for .*, which images"):
                reader(tmp_path / "x.bin")
        assert not (tmp_path / "ran").exists(), i


@pytest.mark.parametrize("data", HAND)
def test_every_other_way_to_a_name_is_refused(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    for whole in (data, b"(" + data[:-1] + pickle.dumps(SAME, 0)[:-1] + b"t."):
        (tmp_path / "x.bin").write_bytes(whole)
        with pytest.raises(UserError, match=r"x\.bin is no verification set"):
            read_bin(tmp_path / "x.bin")
    assert os.listdir(tmp_path) == ["x.bin"]


HUGE = {
    "memo": b"\x80\x02Nr\xfe\xff\xff\x7f.",
    "memo in text": b"Np99999999999999\n.",
    "bytes": b"\x80\x03B\xff\xff\xff\xff" + b"x" * 50,
    "8-byte length": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x" * 50,
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x" * 50,
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x" * 50,
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"x" * 50,
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "array": b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I99999999999\ntcnumpy\ndtype\n(S'u1'\ntRI0\nS'x'\ntb.",
    "repeat": b"\x80\x02]q\0(" + b"h\0" * 100_000 + b"e.",
    "nesting": b"(" * 100_000 + b"t" * 100_000 + b".",
}


@pytest.mark.parametrize("huge", HUGE)
def test_a_length_that_the_file_has_not_takes_no_memory(tmp_path, huge):
    (tmp_path / "x.bin").write_bytes(HUGE[huge])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"x\.bin is no verification set"):
        read_bin(tmp_path / "x.bin")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_hostile_lengths_stay_within_a_limit_on_memory(tmp_path):
    """In a process that may not have 2 GB more than it has, 512 MB records and 2**60 bytes are refused as ever."""
    folder = _write(tmp_path / "s", [GOOD[0], BAD["longer than the file"][0], BAD["too many labels"][0], GOOD[1]], True)
    for name, data in HUGE.items():
        (tmp_path / f"{name}.bin").write_bytes(data)
    code = f"""
import resource, pathlib
from faces.sources import open_faces, read_bin
from faces.errors import UserError
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (1 << 28),) * 2)
print(len(open_faces({str(folder)!r})))
for path in pathlib.Path({str(tmp_path)!r}).glob("*.bin"):
    try:
        read_bin(path)
    except UserError as mistake:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2\n" + "refused\n" * len(HUGE), done.stderr


def test_bytes_in_another_encoding_are_refused_not_misread(tmp_path):
    data = pickle.dumps((FILES, SAME), 2)
    for other in (b"utf-16", b"base64", b"hex_co"):
        (tmp_path / "x.bin").write_bytes(data.replace(b"latin1", other))
        with pytest.raises(UserError, match="another encoding than latin1"):
            read_bin(tmp_path / "x.bin")


def test_a_pickle_cut_short_anywhere_is_refused(tmp_path):
    rng = random.Random(0)
    for protocol in (0, 2, 4):
        data = pickle.dumps((FILES, SAME), protocol)
        for length in (0, 1, 2, 11, *(rng.randrange(len(data)) for _ in range(25)), len(data) - 1):
            (tmp_path / "x.bin").write_bytes(data[:length])
            with pytest.raises(UserError, match=r"x\.bin is no verification set"):
                read_bin(tmp_path / "x.bin")


def test_a_pickle_with_flipped_bytes_is_read_or_refused(tmp_path):
    rng, refused = random.Random(1), 0
    for protocol in (0, 2, 4):
        data = pickle.dumps((FILES, np.array(SAME)), protocol)
        for _ in range(40):
            broken = bytearray(data)
            for _ in range(rng.choice((1, 5, 50))):
                broken[rng.randrange(min(len(data), rng.choice((60, 1 << 20))))] = rng.randrange(256)
            (tmp_path / "x.bin").write_bytes(broken)
            try:
                assert len(read_bin(tmp_path / "x.bin")[0]) == 20
            except UserError:
                refused += 1
    assert refused > 40


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n", bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_what_is_no_pickle_is_refused(tmp_path, data):
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.bin is no verification set"):
        open_faces(str(tmp_path / "x.bin"))
