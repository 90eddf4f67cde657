"""InsightFace .rec files, written here as mxnet writes them."""

import struct

import cv2
import numpy as np
import pytest

from faces.align import crop
from faces.degrade import resize
from faces.errors import UserError
from faces.sources import open_faces, recognise, recordio
from faces.sources.record import decode

MAGIC = struct.pack("<I", 0xCED7230A)


def frames(payload):
    """dmlc's writer: cut where the magic number stands at a multiple of four, leave it out, pad."""
    cuts = [i for i in range(0, len(payload) // 4 * 4, 4) if payload[i : i + 4] == MAGIC]
    parts = [payload[a:b] for a, b in zip([0, *(c + 4 for c in cuts)], [*cuts, len(payload)], strict=True)]
    out = b""
    for i, part in enumerate(parts):
        flag = 0 if len(parts) == 1 else 1 if i == 0 else 3 if i == len(parts) - 1 else 2
        out += MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4)
    return out


def record(labels, image=b"", number=0):
    if isinstance(labels, (int, float)):
        return struct.pack("<IfQQ", 0, labels, number, 0) + image
    return struct.pack("<IfQQ", len(labels), 0, number, 0) + np.array(labels, "<f4").tobytes() + image


def write(folder, payloads, name="train", index=True):
    folder.mkdir(parents=True, exist_ok=True)
    data, lines = b"", []
    for key, payload in enumerate(payloads):
        lines.append(f"{key}\t{len(data)}\n")
        data += frames(payload)
    (folder / f"{name}.rec").write_bytes(data)
    if index:
        (folder / f"{name}.idx").write_text("".join(lines))
    return folder


def png(seed, size=112):
    coarse = np.random.default_rng(seed).integers(0, 256, (1, 14, 14, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.cvtColor(resize(coarse, size)[0], cv2.COLOR_RGB2BGR))[1].tobytes()


def insightface(images):
    """As InsightFace packs people of two images each: record 0, the images, the range of each identity."""
    count = len(images)
    people = [record([1 + 2 * i, 3 + 2 * i]) for i in range(count // 2)]
    return [
        record([count + 1, count + 1 + len(people)]),
        *(record([i // 2, 0] if i % 2 else i // 2, image, i + 1) for i, image in enumerate(images)),
        *people,
    ]


def test_the_bytes_of_one_record_are_these(tmp_path):
    image = png(0)
    plain = bytes.fromhex("0a23d7ce") + struct.pack("<I", 24 + len(image)) + bytes(4) + struct.pack("<f", 7)
    (tmp_path / "x.rec").write_bytes(plain + bytes(16) + image + bytes(-len(image) % 4))
    (one,) = recordio.read(tmp_path / "x.rec")
    assert (one.data, one.identity, one.aligned) == (image, f"{tmp_path.name}/x-7", True)
    assert (one.place.offset, one.place.length, one.place.framed) == (32, len(image), False)


@pytest.mark.parametrize("index", [True, False])
def test_a_set_with_record_0_gives_its_images_and_no_others(tmp_path, index):
    images = [png(i) for i in range(6)]
    folder = write(tmp_path / "ms1m", insightface(images), index=index)
    (folder / "property").write_text("3,112,112")
    (folder / "lfw.bin").write_bytes(b"not looked at")
    assert recognise(str(folder)).layout == "recordio"
    counted = []
    faces = open_faces(str(folder), detector="none such", progress=counted.append)
    assert faces.keys == tuple(f"ms1m/{i}" for i in range(1, 7))
    assert faces.names == ("ms1m-0", "ms1m-1", "ms1m-2")
    assert faces.identities.tolist() == [0, 0, 1, 1, 2, 2]
    assert (faces.integrity.read, faces.integrity.skipped, sum(counted)) == (6, {}, 6)
    assert open_faces(str(folder / "train.rec")).keys == faces.keys
    # Aligned by the template and in RGB: cut again, the crop is the picture.
    again = crop(faces.images, faces.landmarks, "arcface")
    for image, seen in zip(images, again, strict=True):
        inner = np.s_[8:-8, 8:-8]
        assert np.abs(decode(image)[inner].astype(float) - seen[inner]).mean() < 4


@pytest.mark.parametrize("index", [True, False])
def test_a_set_without_record_0_gives_all_records(tmp_path, index):
    folder = write(tmp_path / "own", [record(i // 2, png(i)) for i in range(4)], name="mine", index=index)
    faces = open_faces(str(folder))
    assert faces.keys == tuple(f"own/mine/{i}" for i in range(4))
    assert faces.names == ("own/mine-0", "own/mine-1")


@pytest.mark.parametrize("index", [True, False])
def test_what_stands_behind_the_end_of_the_images_is_not_read(tmp_path, index):
    payloads = [record([4, 4]), *(record(0, png(i)) for i in range(5))]
    assert open_faces(str(write(tmp_path / "s", payloads, index=index))).keys == ("s/1", "s/2", "s/3")


def test_a_first_image_with_several_labels_is_an_image(tmp_path):
    faces = open_faces(str(write(tmp_path / "s", [record([5, 1.5], png(i)) for i in range(3)])))
    assert (faces.keys, faces.names) == (("s/0", "s/1", "s/2"), ("s-5",))


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("magics", [b"xx" + MAGIC + b"--", MAGIC * 3, MAGIC + b"ab" + MAGIC + b"end", b"x" + MAGIC])
def test_a_record_that_holds_the_magic_number_is_joined(tmp_path, magics, index):
    # Behind the end of a PNG any bytes may stand; all four places are tried.
    images = [png(i) + b"." * (-len(png(i)) % 4 + i) + magics for i in range(4)]
    folder = write(tmp_path / "s", [record(0, image) for image in images], index=index)
    assert frames(record(0, images[2])).count(MAGIC) > 1
    records = list(recordio.read(folder / "train.rec"))
    assert [one.data for one in records] == images
    assert any(one.place.framed for one in records)
    file = (folder / "train.rec").read_bytes()
    for one in records:
        data = file[one.place.offset : one.place.offset + one.place.length]
        assert (recordio.unframe(data) if one.place.framed else data) == one.data


def test_a_crop_of_112_by_96_px_has_its_points_8_px_further_left(tmp_path):
    image = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (112, 96, 3), dtype=np.uint8))[1].tobytes()
    narrow = open_faces(str(write(tmp_path / "s", [record(0, image)])))
    whole = cv2.copyMakeBorder(cv2.imdecode(np.frombuffer(image, np.uint8), 1), 0, 0, 8, 8, cv2.BORDER_REPLICATE)
    data = cv2.imencode(".png", whole)[1].tobytes()
    np.testing.assert_array_equal(narrow.images, open_faces(str(write(tmp_path / "t", [record(0, data)]))).images)


def test_an_index_that_ends_early_is_told(tmp_path):
    folder = write(tmp_path / "s", insightface([png(i) for i in range(6)]))
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:4]))
    faces = open_faces(str(folder))
    assert faces.integrity.skipped["end of the set (3 of 6 images are not there)"] == 1
    assert len(faces) == 3


def test_an_index_that_ends_early_is_told_without_record_0_too(tmp_path):
    folder = write(tmp_path / "s", [record(i // 2, png(i)) for i in range(4)])
    assert open_faces(str(folder)).integrity.skipped == {}
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:2]))
    assert open_faces(str(folder)).integrity.skipped == {"end of the set (train.idx ends before train.rec does)": 1}


def test_an_empty_index_is_told(tmp_path):
    folder = write(tmp_path / "s", [record(i // 2, png(i)) for i in range(4)])
    (folder / "train.idx").write_text("")
    with pytest.raises(UserError, match=r"train\.idx is no RecordIO index .* move it away"):
        open_faces(str(folder))


def test_the_order_of_the_index_does_not_matter(tmp_path):
    folder = write(tmp_path / "s", insightface([png(i) for i in range(4)]))
    before = open_faces(str(folder)).keys
    (folder / "train.idx").write_text("".join((folder / "train.idx").read_text().splitlines(keepends=True)[::-1]))
    assert open_faces(str(folder)).keys == before


def test_two_sets_in_a_folder_are_refused(tmp_path):
    write(tmp_path, [record(0, png(0))], name="a")
    write(tmp_path, [record(0, png(1))], name="b")
    with pytest.raises(UserError, match=r"several sets \(a\.rec, b\.rec\): give one"):
        open_faces(str(tmp_path))
    assert open_faces(str(tmp_path / "b.rec")).keys == (f"{tmp_path.name}/b/0",)


def test_bgr_files_are_turned_where_they_are_read(tmp_path):
    image = png(3)
    turned = cv2.imencode(".png", decode(image))[1].tobytes()
    one = open_faces(str(write(tmp_path / "s", [record(0, image)])))
    other = open_faces(str(write(tmp_path / "t", [record(0, turned)])), colour="bgr")
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(decode(image), decode(turned, "bgr"))
    assert (decode(image) != decode(turned)).any()
    with pytest.raises(UserError, match="unknown colour order 'gbr'"):
        open_faces(str(tmp_path / "t"), colour="gbr")
