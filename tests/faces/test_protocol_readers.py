import cv2
import numpy as np
import pytest
from scipy.io import savemat

from faces.errors import UserError
from faces.protocols import ijb, pair_lists, searches


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, 3), 100, dtype=np.uint8))


def test_lfw_and_xqlfw(tmp_path):
    for name in ("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.png"):
        _image(tmp_path / name)
    (tmp_path / "pairs.txt").write_text(
        "2\t1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBo_Ek\t3\nBo_Ek\t1\t3\nBo_Ek\t3\tAnn_Lee\t2\n"
    )
    found = pair_lists.read_lfw(tmp_path, tmp_path / "pairs.txt")
    names = [photo.path.name for photo in found.photos]
    assert names == ["Ann_Lee_0001.jpg", "Ann_Lee_0002.png", "Bo_Ek_0003.jpg", "Bo_Ek_0001.jpg"]
    assert found.pairs == ((0, 1, True, 0), (0, 2, False, 0), (3, 2, True, 1), (2, 1, False, 1))
    assert found.people == ("Ann_Lee", "Ann_Lee", "Bo_Ek", "Bo_Ek")
    for broken in ("2 1\nAnn 1 2\n", "", "2 1\nA 1 x\nA 1 B 2\nA 1 2\nA 1 B 2\n"):
        (tmp_path / "pairs.txt").write_text(broken)
        with pytest.raises(UserError, match=r"pairs\.txt"):
            pair_lists.read_lfw(tmp_path, tmp_path / "pairs.txt")


def test_calfw_cplfw_and_sllfw(tmp_path):
    lines, bare = [], []
    for fold in range(10):
        for same in (True, False):
            for side in "ab":
                lines.append(f"P{fold}{side}_0001.jpg {fold + 1 if same else 0}")
                bare.append(f"P{fold}/{side}{same:d}.jpg")
    (tmp_path / "calfw.txt").write_text("\n".join(lines))
    (tmp_path / "sllfw.txt").write_text("\n".join(bare))
    for name in ("calfw.txt", "sllfw.txt"):
        found = pair_lists.read_two_lines(tmp_path, tmp_path / name)
        assert [(same, fold) for _, _, same, fold in found.pairs] == [(s, f) for f in range(10) for s in (True, False)]
    assert found.photos[0].path == tmp_path / "P0/a1.jpg"
    calfw = pair_lists.read_two_lines(tmp_path, tmp_path / "calfw.txt")
    assert calfw.people == tuple(f"P{fold}{side}" for fold in range(10) for side in "ab")
    (tmp_path / "short.txt").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(UserError, match="10 folds"):
        pair_lists.read_two_lines(tmp_path, tmp_path / "short.txt")


def test_agedbs_three_columns(tmp_path):
    (tmp_path / "p.txt").write_text("".join(f"{i}.jpg {i + 1}.jpg {i % 2}\n" for i in range(20)))
    found = pair_lists.read_three_columns(tmp_path, tmp_path / "p.txt")
    assert [fold for *_, fold in found.pairs] == [i // 2 for i in range(20)]
    assert [same for _, _, same, _ in found.pairs] == [False, True] * 10
    named = "7_AnnLee_30_f.jpg 8_AnnLee_60_f.jpg 1\n9_BoEk_20_m.jpg 7_AnnLee_30_f.jpg 0\n"
    (tmp_path / "p.txt").write_text(named * 5)
    assert pair_lists.read_three_columns(tmp_path, tmp_path / "p.txt").people == ("AnnLee", "AnnLee", "BoEk")


def test_cfps_folder(tmp_path):
    protocol = tmp_path / "Protocol"
    for fold in ("01", "02"):
        (protocol / "Split/FP" / fold).mkdir(parents=True)
        (protocol / "Split/FP" / fold / "same.txt").write_text("1,2\n")
        (protocol / "Split/FP" / fold / "diff.txt").write_text("2,1\n\n")
    (protocol / "Pair_list_F.txt").write_text(
        "1 ../Data/Images/001/frontal/01.jpg\n2 ..\\Data\\Images\\002\\frontal\\01.jpg\n"
    )
    (protocol / "Pair_list_P.txt").write_text(
        "1 ../Data/Images/001/profile/01.jpg\n2 ../Data/Images/001/profile/02.jpg\n"
    )
    found = pair_lists.read_cfp(tmp_path)
    paths = [photo.path.relative_to(tmp_path.resolve() / "Data/Images").as_posix() for photo in found.photos]
    assert paths == ["001/frontal/01.jpg", "001/profile/02.jpg", "002/frontal/01.jpg", "001/profile/01.jpg"]
    assert found.pairs == ((0, 1, True, 0), (2, 3, False, 0), (0, 1, True, 1), (2, 3, False, 1))
    assert found.people == ("001", "001", "002", "001")
    with pytest.raises(UserError, match="folds"):
        pair_lists.read_cfp(tmp_path, "FF")


def test_tinyface(tmp_path):
    base = tmp_path / "Testing_Set"
    for name in ("Gallery_Match/1_1.jpg", "Probe/1_2.jpg", "Gallery_Distractor/9.jpg", "Gallery_Distractor/8.jpg"):
        _image(base / name)

    def cell(*names):
        return np.array([[name] for name in names], dtype=object)

    savemat(
        base / "gallery_match_img_ID_pairs.mat", {"gallery_set": cell("1_1.jpg", "2_1.jpg"), "gallery_ids": [[1], [2]]}
    )
    savemat(
        base / "probe_img_ID_pairs.mat", {"probe_set": cell("1_2.jpg"), "probe_ids": np.array([[1]], dtype=np.uint16)}
    )
    found = searches.read_tinyface(tmp_path)
    # The second gallery image is not there: whoever opens it counts it.
    assert [(photo.path.name, who) for photo, who in found.gallery] == [("1_1.jpg", "1"), ("2_1.jpg", "2")]
    assert [(photo.path.relative_to(base).as_posix(), who) for photo, who in found.probes] == [("Probe/1_2.jpg", "1")]
    assert len(found.distractors) == 2
    empty = np.empty((1, 1), dtype=object)
    empty[0, 0] = np.array([], dtype=str)
    savemat(base / "probe_img_ID_pairs.mat", {"probe_set": empty, "probe_ids": [[1]]})
    with pytest.raises(UserError, match="probe_set"):
        searches.read_tinyface(tmp_path)
    (base / "probe_img_ID_pairs.mat").write_bytes(b"no mat")
    with pytest.raises(UserError, match="probe_set"):
        searches.read_tinyface(tmp_path)


def test_scface(tmp_path):
    for name in (
        "mug/001_frontal.jpg",
        "mug/002_frontal.JPG",
        "s/001_cam1_1.jpg",
        "s/002_cam5_3.jpg",
        "s/001_cam8_1.jpg",
    ):
        _image(tmp_path / name)
    found = searches.read_scface(tmp_path)
    assert {name: [who for _, who in one.probes] for name, one in found.items()} == {
        "d1": ["001"],
        "d2": [],
        "d3": ["002"],
    }
    assert [who for _, who in found["d1"].gallery] == ["001", "002"]


def test_closed_set_is_a_function_of_its_seed(tmp_path):
    for person, count in (("a", 6), ("b", 2), ("c", 1)):
        for i in range(count):
            _image(tmp_path / person / f"{i}.png")
    first, again, other = (searches.read_closed_set(tmp_path, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [who for _, who in first.probes] == ["a", "b"]
    assert not {photo.path for photo, _ in first.gallery} & {photo.path for photo, _ in first.probes}
    assert len(first.gallery) == 6


def test_ijb(tmp_path):
    meta = tmp_path / "meta"
    meta.mkdir()
    (meta / "ijbc_face_tid_mid.txt").write_text("1.jpg 10 5\n2.jpg 10 6\n3.jpg 11 7\n")
    (meta / "ijbc_template_pair_label.txt").write_text("10 11 1\n10 12 0\n")
    (meta / "ijbc_name_5pts_score.txt").write_text("1.jpg 1 2 3 4 5 6 7 8 9 10 .9\n")
    found = ijb.read_ijb(tmp_path)
    assert [(one.photo.path.name, one.template, one.medium) for one in found.members] == [
        ("1.jpg", "10", "5"), ("2.jpg", "10", "6"), ("3.jpg", "11", "7"),
    ]  # fmt: skip
    assert found.members[0].photo.landmarks.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert found.members[1].photo.landmarks is None
    assert found.compared == (("10", "11", True), ("10", "12", False))
    assert found.probes == ()
    (meta / "ijbc_1N_gallery_G1.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n10,77,a\n10,77,b\n")
    (meta / "ijbc_1N_probe_mixed.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n11,77,c\n")
    found = ijb.read_ijb(tmp_path)
    assert (found.gallery, found.probes, found.subjects) == (("10",), ("11",), {"10": "77", "11": "77"})
    for text in ("TEMPLATE_ID,SUBJECT_ID\n11,jürg\n", "TEMPLATE_ID,SUBJECT_ID\n11\n"):
        (meta / "ijbc_1N_probe_mixed.csv").write_bytes(text.encode("latin1"))
        with pytest.raises(UserError, match=r"probe_mixed.csv is no list with TEMPLATE_ID"):
            ijb.read_ijb(tmp_path)
    (meta / "ijbc_name_5pts_score.txt").write_text("1.jpg a 2 3 4 5 6 7 8 9 10 .9\n")
    with pytest.raises(UserError, match=r"5pts_score.txt is not of IJB's form: could not convert"):
        ijb.read_ijb(tmp_path)
    (meta / "ijbc_face_tid_mid.txt").write_text("1.jpg 10\n")
    (meta / "ijbc_name_5pts_score.txt").write_text("")
    with pytest.raises(UserError, match="3 columns"):
        ijb.read_ijb(tmp_path)


def test_lists_of_templates_for_ijbs_and_briar(tmp_path):
    (tmp_path / "g.csv").write_text("template,subject,medium,path\n1,ann,m1,a.jpg\n2,bo,m2,b.jpg\n")
    (tmp_path / "p.csv").write_text("template,subject,medium,path\n1,ann,v1,c.jpg\n1,ann,v1,d.jpg\n")
    found = ijb.read_lists(tmp_path, tmp_path / "g.csv", tmp_path / "p.csv")
    assert found.compared == (("g1", "p1", True), ("g2", "p1", False))
    assert len(found.members) == 4
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="template,subject,medium,path"):
        ijb.read_lists(tmp_path, tmp_path / "g.csv", tmp_path / "p.csv")
    for text in (
        b"template,subject,medium,path\n1,ann,v1\n",
        "template,subject,medium,path\n1,jürg,v,a\n".encode("latin1"),
    ):
        (tmp_path / "p.csv").write_bytes(text)
        with pytest.raises(UserError, match="template,subject,medium,path"):
            ijb.read_lists(tmp_path, tmp_path / "g.csv", tmp_path / "p.csv")
    # As Excel saves it.
    (tmp_path / "p.csv").write_text("template,subject,medium,path\n1,ann,v1,c.jpg\n", encoding="utf-8-sig")
    assert ijb.read_lists(tmp_path, tmp_path / "g.csv", tmp_path / "p.csv").probes == ("p1",)
