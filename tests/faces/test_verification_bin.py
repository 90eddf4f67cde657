"""Verification sets of InsightFace in every pickle protocol, and the warning about their colours."""

import io
import pickle
import struct

import cv2
import numpy as np
import pytest

from faces.errors import UserError
from faces.sources import colour_warning, open_faces, orl, read_bin
from faces.sources.record import decode


def _jpeg(seed, tint=(0, 0, 0)):
    coarse = np.random.default_rng(seed).integers(60, 190, (14, 14, 3))
    image = cv2.resize((coarse + tint).clip(0, 255).astype(np.uint8), (112, 112))
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


FILES = [_jpeg(i) for i in range(24)]
SAME = [i % 2 == 0 for i in range(12)]


def _numpy(value, core):
    return pickle.dumps(value, protocol=2).replace(b"numpy._core", f"numpy.{core}".encode())


def _python2(protocol):
    """As Python 2 wrote (list of str, list of bool): the instructions STRING or BINSTRING."""
    if protocol == 0:
        one = [b"S'" + b"".join(b"\\x%02x" % byte for byte in data) + b"'\np%d\na" % i for i, data in enumerate(FILES)]
        flags = b"".join(b"I0%d\na" % flag for flag in SAME)
        return b"((lp100\n" + b"".join(one) + b"(lp101\n" + flags + b"tp102\n."
    one = b"".join(
        b"T" + struct.pack("<i", len(data)) + data + b"r" + struct.pack("<I", i) for i, data in enumerate(FILES)
    )
    return b"\x80\x02](" + one + b"e](" + b"".join(b"\x88" if flag else b"\x89" for flag in SAME) + b"e\x86."


PICKLES = {
    **{f"protocol {i}": pickle.dumps((FILES, SAME), protocol=i) for i in range(6)},
    "a list of two": pickle.dumps([FILES, SAME]),
    "python 2, protocol 0": _python2(0),
    "python 2, protocol 2": _python2(2),
    "numpy flags": pickle.dumps((FILES, np.array(SAME))),
    "numpy flags, protocol 5": pickle.dumps((FILES, np.array(SAME)), protocol=5),
    "flags of old numpy": _numpy((FILES, np.array(SAME)), "core"),
    "numpy scalars": pickle.dumps((FILES, list(np.array(SAME)))),
    "integers": pickle.dumps((FILES, [int(flag) for flag in SAME])),
    "numpy images": pickle.dumps(([np.frombuffer(one, np.uint8) for one in FILES], SAME)),
    "numpy images, protocol 5": pickle.dumps(([np.frombuffer(one, np.uint8)[:, None] for one in FILES], SAME), 5),
}


@pytest.mark.parametrize("how", PICKLES)
def test_every_way_of_pickling_gives_the_same_pairs(tmp_path, how):
    path = tmp_path / "lfw.bin"
    path.write_bytes(PICKLES[how])
    faces, pairs = read_bin(path)
    assert pairs.same.tolist() == SAME
    assert (pairs.a.tolist(), pairs.b.tolist()) == (list(range(0, 24, 2)), list(range(1, 24, 2)))
    assert pairs.fold.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert faces.keys == tuple(f"lfw/{i}" for i in range(24))
    assert (faces.identities == -1).all()
    assert faces.integrity.read == 24
    found = faces.images[5, 20:108, 20:108].astype(float)
    for i in (4, 5):
        # The crop's template is the image's own, about 2% larger.
        image = cv2.resize(decode(FILES[i]), (128, 128))[20:108, 20:108]
        assert (np.corrcoef(found.ravel(), image.ravel())[0, 1] > 0.6) == (i == 5)


def test_a_bin_opened_as_faces_is_unlabelled_and_without_copies(tmp_path):
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps(([*FILES, FILES[0], b"broken"], [*SAME, True])))
    faces = open_faces(str(path), detector="none such")
    assert len(faces) == 24
    assert not len(faces.labelled)
    assert faces.integrity.skipped == {"exact duplicate": 1, "unreadable image": 1}
    np.testing.assert_array_equal(faces.images, read_bin_of(tmp_path, FILES, SAME).images)
    with pytest.raises(UserError, match=r"image 25 of .* cannot be read"):
        read_bin(path)


def read_bin_of(folder, files, same, **how):
    (folder / "again.bin").write_bytes(pickle.dumps((files, same)))
    return read_bin(folder / "again.bin", **how)[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ((FILES, SAME[:-1]), "24 images for 11 pairs"),
        ((FILES[:10], SAME[:5]), "10 folds need 10 pairs"),
        ((FILES, [True] * 12), "12 genuine and 0 impostor pairs"),
        ((["text"] * 24, SAME), "an image is of type str"),
        (([[1]] * 24, SAME), "an image is of type list"),
        ((FILES, SAME, 3), "too many values"),
        (FILES, "too many values"),
        (7, "no verification set"),
        ((FILES, 5), "no verification set"),
    ],
)
def test_what_is_no_set_of_pairs_is_refused(tmp_path, value, said):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=said):
        read_bin(tmp_path / "x.bin")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_set_that_is_cut_short_anywhere_is_refused(tmp_path, protocol):
    data = pickle.dumps((FILES[:2], SAME[:1]), protocol)
    for end in [*range(40), *range(40, len(data), 97)]:
        (tmp_path / "x.bin").write_bytes(data[:end])
        with pytest.raises(UserError, match=r"x\.bin"):
            read_bin(tmp_path / "x.bin")


def test_bytes_that_python_2_would_call_text_are_read_the_same_from_a_stream():
    """The hand-written instructions above are what they claim to be."""
    for protocol in (0, 2):
        assert pickle.load(io.BytesIO(_python2(protocol)), encoding="bytes") == (FILES, SAME)


def test_skin_that_is_bluer_than_red_is_warned_about(tmp_path):
    skin = [_jpeg(i, (40, 0, -30)) for i in range(24)]
    assert read_bin_of(tmp_path, skin, SAME).integrity.warnings == ()
    (warning,) = read_bin_of(tmp_path, skin, SAME, colour="bgr").integrity.warnings
    assert "read it with colour=bgr" in warning


def test_grey_few_and_doubtful_faces_are_not_warned_about():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (50, 128, 128, 1), dtype=np.uint8).repeat(3, 3)
    assert colour_warning(grey) is None
    blue = grey // 2 + np.array([0, 0, 60], dtype=np.uint8)
    assert "60 levels" in colour_warning(blue)
    assert "60 levels" in colour_warning(np.concatenate([grey, blue[:20]]))
    assert colour_warning(blue[:7]) is None
    assert colour_warning(np.concatenate([grey, blue[:7]])) is None
    assert colour_warning(blue[..., ::-1]) is None
    assert colour_warning(grey // 2 + np.array([0, 0, 4], dtype=np.uint8)) is None
    assert colour_warning(grey[:0]) is None


def test_the_grey_orl_faces_are_not_warned_about():
    assert colour_warning(np.stack([cv2.resize(decode(record.data), (128, 128)) for record in orl.read()])) is None


def test_real_photos_are_judged_right(shared):
    files = sorted((shared / "data").glob("val-b-*.tar"))
    if not files:
        pytest.skip("needs shared/data")
    faces = open_faces(str(files[0]), lazy=True)
    assert faces.integrity.warnings == ()
    assert "looks like BGR" in colour_warning(faces.images[::20][..., ::-1])
