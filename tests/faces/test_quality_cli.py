"""python -m faces.quality, as a user types it."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scorers import Sharpness

from faces.cnniqa_fit import correlations
from faces.degrade import reduce
from faces.quality import Quality, create_quality, read_report, save
from faces.quality_cli import main


def test_the_command_scores_images_best_first(sharpness, network, crops, tmp_path):
    quality = Quality(network, "n", lower_better=False)
    facts = correlations(quality.scorer, crops[:40], 0)
    quality.lower_better = facts["resolution"] < 0
    file = tmp_path / "q.safetensors"
    quality.slope.fill_(1.0)
    quality.side.fill_(112)
    save(quality, file)
    names = []
    for px in (112, 8, 32):
        names.append(tmp_path / f"{px}.png")
        Image.fromarray(reduce(crops[:1], px, 112)[0]).save(names[-1])
    done = CliRunner().invoke(main, ["score", str(file), *map(str, names)])
    assert done.exit_code == 0, done.output
    values = {line.split("  ")[1]: float(line.split("  ")[0]) for line in done.stdout.splitlines()}
    assert list(values.values()) == sorted(values.values(), reverse=True)
    images = np.concatenate([reduce(crops[:1], px, 112) for px in (112, 8, 32)])
    for name, wanted in zip(names, quality.of(images).tolist(), strict=True):
        assert values[str(name)] == pytest.approx(wanted, abs=1e-4)
    (tmp_path / "no.png").write_bytes(b"no image")
    done = CliRunner().invoke(main, ["score", str(file), str(tmp_path / "no.png")])
    assert (done.exit_code, done.stderr.strip().splitlines()[-1]) == (
        2, f"error: {tmp_path}/no.png is no image that can be read",
    )  # fmt: skip


def test_the_command_refuses_another_kind_of_file_and_a_place_where_none_can_be():
    done = CliRunner().invoke(main, ["fit", "--data", "orl", "--out", f"{__file__}/q.safetensors"])
    assert (done.exit_code, "is a file: choose another --out" in done.stderr) == (2, True)
    done = CliRunner().invoke(main, ["fit", "--data", "orl", "--out", "q.pt"])
    assert (done.exit_code, done.stderr) == (2, "error: --out is written as .safetensors; give --out q.safetensors\n")


def test_the_command_refuses_options_without_effect(network, tmp_path):
    bare, made, own = tmp_path / "bare.pt", tmp_path / "made.safetensors", tmp_path / "own.pth"
    torch.save(network.state_dict(), bare)
    own.touch()
    quality = Quality(network, "mine", lower_better=True)
    quality.side.fill_(112)
    save(quality, made)
    said = {
        ("--weights", own): "--weights tells of an existing metric: give --metric too",
        ("--higher-better",): "--lower-better or --higher-better tells of an existing metric: give --metric too",
        ("--metric", made, "--higher-better"): "made.safetensors says that low scores of mine are good",
        ("--metric", made, "--weights", own): f"made.safetensors holds its weights: leave out {own}",
        ("--metric", bare, "--lower-better", "--weights", own): f"bare.pt holds its weights: leave out {own}",
        ("--metric", made, "--steps", 5): "--steps tells of a training, and --metric only fits a map",
        ("--metric", made, "--seconds", 5): "--seconds tells of a training, and --metric only fits a map",
        ("--seconds", "inf"): "--seconds inf: give a number of seconds",
        ("--steps", 5, "--seconds", 5): "--seconds chooses the steps: leave it or --steps out",
    }
    for options, words in said.items():
        given = ["fit", "--data", str(tmp_path / "not read"), "--out", str(tmp_path / "q.safetensors"), *options]
        done = CliRunner().invoke(main, list(map(str, given)))
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), options
        assert words in done.stderr
    assert create_quality(made, lower_better=True).lower_better


def test_the_command_tells_which_faces_it_leaves_out(monkeypatch, tmp_path, crops):
    monkeypatch.setattr("faces.quality_cli.create_quality", lambda *_: Quality(Sharpness(), "sharpness", False))
    specs = []
    for part in ("one", "[b]two"):
        for i in range(8):
            folder = tmp_path / part / f"{part} {i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crops[i + 8 * len(specs)]).save(folder / f"{i}.png")
        specs += ["--data", str(tmp_path / part)]
    (tmp_path / "one/one 0/broken.png").write_bytes(b"no image")
    for i in range(2):
        (tmp_path / f"[b]two/[b]two 0/{i}.txt").touch()
    options = ["--metric", "sharpness", "--aligned", "--out", str(tmp_path / "q.safetensors")]
    done = CliRunner().invoke(main, ["fit", *specs, *options])
    assert done.exit_code == 0, done.output
    assert [line for line in done.stderr.splitlines() if " x " in line] == [
        f"{tmp_path}/one: 1 x unreadable image",
        f"{tmp_path}/[b]two: 2 x file whose name has no image's ending",
    ]


@pytest.mark.slow
def test_the_command_fits_and_scores(tmp_path):
    file = tmp_path / "q.safetensors"
    done = CliRunner().invoke(main, ["fit", "--data", "orl", "--out", str(file), "--steps", "150"])
    assert done.exit_code == 0, done.output
    assert "motion blur (kind never trained on)" in done.stdout
    about = read_report(file)
    assert about["report"]["steps"] == 150
    assert 0.5 < about["report"]["spearman"]["resolution"] <= 1
