import json

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import embedders, peers, plots
from benchmarks.students import artifacts_of
from faces.sources import open_faces
from faces.verification import make_pairs


@pytest.fixture(scope="module")
def few():
    faces = open_faces("orl")
    chosen = faces.subset(np.flatnonzero(faces.identities < 5))
    return chosen, make_pairs(chosen.identities, 0, most=40)


def test_an_artifact_is_a_peer(tiny_files, few):
    peer = embedders.of_artifact(tiny_files["fp32"])
    assert peer.macs == 1_470_464
    assert peer.crops(few[0], 16).shape == (len(few[0]), 16, 16, 3)
    # A student of 16 px sees the same at full size and at 16 px: the file's own way and the protocol's agree.
    apart = np.abs(peer.crops(few[0], None).astype(int) - peer.crops(few[0], 16))
    assert apart.max() <= 1
    row = peers.measure(peer, *few)
    assert set(row["accuracy"]) == {"full", "same@32", "same@16"}
    assert row["faces_per_second"] >= row["speed"]["1"]["faces_per_second"] > 0


def test_the_dlib_package_and_our_reading_of_it_agree(few):
    pytest.importorskip("dlib")
    theirs, ours = embedders.of_dlib(), embedders.of_teacher("dlib_resnet")
    crops = ours.crops(few[0].subset(np.arange(3)), None)
    assert np.abs(theirs.run(crops) - ours.run(crops)).max() < 1e-3
    assert theirs.macs == ours.macs > 1e8


def test_any_onnx_file_is_a_peer_and_a_missing_one_a_row(tiny_files, tmp_path, monkeypatch):
    out = tmp_path / "peers.json"
    monkeypatch.setattr(peers, "make_pairs", make_pairs, raising=False)
    monkeypatch.setattr(peers.verification, "make_pairs", lambda ids, seed: make_pairs(ids, seed, most=30))

    def of_teacher(name, weights=None):
        return embedders.of_teacher(name, weights) if "odd" not in name else [][0]

    monkeypatch.setattr(peers, "of_teacher", of_teacher)
    command = ["--no-dlib", "--onnx", f"{tiny_files['fp32']}?mean=0,0,0&std=1,1,1", "--onnx", "odd.onnx", "--peer",
               "swin_b", "--json", str(out), "--plot", str(tmp_path / "p.svg")]  # fmt: skip
    done = CliRunner().invoke(peers.main, command)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["not_run"][1] == {"peer": "odd.onnx", "not_run": "IndexError: list index out of range"}
    (row,) = found["peers"]
    assert row["macs"] == 1_470_464
    assert found["not_run"][0]["peer"] == "swin_b"
    assert "Not run: swin_b" in done.stdout
    assert (tmp_path / "p.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "name", "weights"),
    [
        ("swin_b", "swin_b", None),
        ("swin_b=a=b.pt", "swin_b", "a=b.pt"),
        ("onnx:a.onnx?mean=.5,.5,.5&std=1,1,1", "onnx:a.onnx?mean=.5,.5,.5&std=1,1,1", None),
        ("onnx:a=b.onnx", "onnx:a=b.onnx", None),
        ("timm:vit?px=112", "timm:vit?px=112", None),
    ],
)
def test_a_name_with_options_is_no_name_with_weights(text, name, weights):
    assert embedders.name_and_weights(text) == (name, weights)


def test_half_precision_has_as_many_parameters(tiny_files):
    with artifacts_of("tiny16", ("fp16",)) as files:
        half = next(embedders._of_onnx(file)[:2] for file in files if file.suffix == ".onnx")
    assert half == embedders._of_onnx(tiny_files["fp32"])[:2]
    assert half[0] > 100_000


@pytest.mark.parametrize(
    ("option", "said"),
    [(["--json", f"{__file__}/a.json"], "choose another --json"), (["--plot", "a.xyz"], "written as .svg or .png")],
)
def test_a_bad_output_is_told_before_anything_is_timed(monkeypatch, option, said):
    monkeypatch.setattr(peers, "open_faces", None)
    done = CliRunner().invoke(peers.main, option)
    assert (done.exit_code, said in done.stderr) == (2, True)


def test_the_frontier_by_hand():
    rows = [{"n": n, "x": x, "y": y} for n, x, y in (("a", 1, 9), ("b", 5, 7), ("c", 4, 7), ("d", 9, 2), ("e", 3, 5))]
    assert [row["n"] for row in plots.frontier(rows, "x", "y")] == ["a", "b", "d"]
