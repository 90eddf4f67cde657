"""The three training loops, and a set of the paper's size, at a small scale."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import training_loops as loops
from benchmarks.scale import MixedFaces, scale
from benchmarks.training import train
from faces.degrade import Degradation, degrade
from faces.sources import open_faces


def test_the_loops_take_turns_and_are_compared(tmp_path):
    file = tmp_path / "train.json"
    threads = torch.get_num_threads()
    done = CliRunner().invoke(train, ["--threads", "1", "--batch", "256", "--rounds", "3", "--seconds", "0.2",
                                      "--json", str(file)])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert torch.get_num_threads() == threads
    rows = json.loads(file.read_text())["throughput"]
    assert [row["loop"] for row in rows] == ["ours", "plain", "dataloader"]
    for row in rows:
        assert row["faces_per_second"] > 0
        assert 0 < row["share"] < 1
    assert rows[0]["ours_is_faster"] == 1
    assert rows[1]["ours_is_faster"] == pytest.approx(rows[0]["faces_per_second"] / rows[1]["faces_per_second"], rel=1)


def test_no_gpu_is_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(train, ["--device", "cuda"])
    assert done.exit_code == 2
    assert "no CUDA device" in done.output


@pytest.mark.parametrize("way", ["plain", "one by one"])
def test_the_others_degrade_as_ours_does(way):
    # The same faces, the same strength: what differs is the code, so brightness and detail agree on average.
    faces = open_faces("orl")
    side, margin = 48, 0.125
    from faces.align import crop

    crops = crop(faces.images, faces.landmarks, "arcface", side, margin)
    examples = loops.Examples(crops, margin, np.zeros((len(crops), 128), np.float32), None)
    torch.manual_seed(0)
    mine = degrade(
        torch.from_numpy(crops).permute(0, 3, 1, 2), 16, margin, Degradation(), torch.Generator().manual_seed(0)
    )
    if way == "plain":
        other = loops._degrade(torch.from_numpy(crops).permute(0, 3, 1, 2), 16, margin)
    else:
        one_by_one = loops._OneByOne(examples, 16)
        images = np.stack([one_by_one[i][0] for i in range(len(crops))])
        other = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(other.mean(0), mine.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(other.std(), mine.std(), atol=0.03, rtol=0)
    detail = [(x - x.mean((2, 3), keepdim=True)).diff(dim=3).abs().mean().item() for x in (mine, other)]
    assert detail[1] == pytest.approx(detail[0], rel=0.2)


def test_mixed_faces_are_many_and_each_stays_the_same():
    mixed = MixedFaces(open_faces("orl"), 5000)
    assert len({image.tobytes() for image in mixed[np.arange(0, 5000, 50)]}) == 100
    np.testing.assert_array_equal(mixed[[4999, 3]][1], mixed[3])


def test_training_begins_before_all_faces_are_cut(tmp_path):
    file = tmp_path / "scale.json"
    done = CliRunner().invoke(scale, ["--faces", "6000", "--seconds", "2", "--batch", "128", "--json", str(file)])
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert 128 <= found["cut_at_first_step"] < 6000
    assert found["file_bytes"] == 6000 * 48 * 48 * 3
    assert found["rate_from_seconds"] < found["seconds"]
    left = 368_000 * 16 / found["faces_per_second"] / 3600
    assert found["paper_hours"] == pytest.approx(left + found["rate_from_seconds"] / 3600, rel=0.01)
    assert "5,888,000" in done.output
