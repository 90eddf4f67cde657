"""A softmax layer for a target set, on a student as it is and on one from scratch: `compress.study head`."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from compress import head_rows, head_study, pipeline, study
from compress.config import load_config
from compress.head_rows import AS_IS, FINETUNED, SCRATCH, VERSIONS, affordable, fit_head, ranks, split_images
from compress.run import Run
from export.kit import student_crops
from export.stage import reference_embeddings
from faces.errors import UserError
from faces.sources import open_faces, orl
from students import load

SETTINGS = ("distill.samples=640", "distill.batch=64")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Six people with ten images each, and a seventh with two."""
    root = tmp_path_factory.mktemp("target")
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= 6 or (person == "s7" and int(shot) <= 2):
            (root / person).mkdir(exist_ok=True)
            (root / person / f"{shot}.pgm").write_bytes(record.data)
    return root


def head(people, out, *more):
    arguments = ["head", "--data", str(people), "--folder", str(out / "kept"), "--out", str(out), *more]
    arguments += [part for setting in SETTINGS for part in ("--set", setting)]
    return CliRunner().invoke(study.main, arguments)


def test_images_to_learn_from_and_to_test_on_are_others_of_the_same_people(people):
    faces = open_faces(str(people))
    target = split_images(faces, 4)
    assert len(target.names) == 6
    assert target.learn.shape == (6, 4)
    assert not set(target.learn.ravel()) & set(target.test)
    for number, name in enumerate(target.names):
        mine = [i for i in range(len(faces)) if faces.names[faces.identities[i]] == name]
        assert sorted([*target.learn[number], *target.test[target.person == number]]) == mine
    with pytest.raises(UserError, match="0 people have more than 10 images"):
        split_images(faces, 10)
    assert affordable(faces, (1, 2, 9, 10), 6) == [1, 2, 9]
    assert affordable(faces, (1, 2, 9, 10), 7) == [1]


def test_a_rank_counts_who_scores_higher():
    scores = np.random.default_rng(0).normal(size=(30, 7))
    scores[0] = 1
    person = np.arange(30) % 7
    naive = [sum(row[j] >= row[mine] for j in range(7) if j != mine) for row, mine in zip(scores, person, strict=True)]
    assert ranks(scores, person).tolist() == naive
    assert naive[0] == 6, "a network that says the same of all knows nobody"


def test_the_layer_is_the_ridge_softmax_of_the_features_as_they_are():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 5
    features = (40 + 3 * rng.normal(size=(5, 16))[labels] + 2 * rng.normal(size=(60, 16))).astype(np.float32)
    layer = fit_head(features, labels)
    scale = np.linalg.norm(features - features.mean(0), axis=1).mean() / 4
    x, y = torch.from_numpy((features - features.mean(0)) / scale).double(), torch.from_numpy(labels)
    weight = torch.zeros(5, 16, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):
        logits = x @ weight.T + bias
        loss = (torch.logsumexp(logits, 1) - logits[range(60), y]).mean() + head_rows.RIDGE / 2 * (weight**2).sum()
        for one, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            one.data -= 2 * gradient
    with torch.no_grad():
        found = layer(torch.from_numpy(features)).softmax(1)
        torch.testing.assert_close(found.double(), (x @ weight.T + bias).softmax(1), atol=0.02, rtol=0)
    assert (found.argmax(1) == y).float().mean() > 0.95


def test_curves_of_a_student_as_it_is_fine_tuned_and_from_scratch(people, tmp_path, monkeypatch):
    arguments = ("--images", "1", "--images", "4", "--seed", "0", "--seed", "1")
    trained, fitted = [], []
    train, fit = head_rows.train_student, head_rows.fit_head
    monkeypatch.setattr(head_rows, "train_student", lambda *given: trained.append(given) or train(*given))
    monkeypatch.setattr(head_rows, "fit_head", lambda *given: fitted.append(given) or fit(*given))
    nothing = head(people, tmp_path, *arguments, "--read-only")
    assert nothing.exit_code == 0, (nothing.output, nothing.exception)
    assert not trained
    assert "| zoo, as it is | not run | not run |" in (tmp_path / "tiny16-head.md").read_text()
    done = head(people, tmp_path, *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(trained) == 4
    assert sorted(len(given[1].labels) for given in trained) == [6, 6, 24, 24]
    assert len(fitted) == 8
    # From scratch: no teacher, and no other weights than random ones.
    assert all(given[1].targets is None and given[2].weights is None for given in trained)
    assert {len(given[0]) for given in fitted} == {6 * VERSIONS, 24 * VERSIONS}
    told = json.loads((tmp_path / "tiny16-head.json").read_text())
    assert (told["protocol"], told["people"]) == ("closed-set", 6)
    found = {(row["row"], row["images"]): row for row in told["rows"]}
    assert set(found) == {(row, images) for row in (AS_IS, FINETUNED, SCRATCH) for images in (1, 4)}
    for (row, _), one in found.items():
        assert one["seeds"] == [0, 1]
        assert 0 <= one["top5"]["points"] <= one["top1"]["points"] <= 100
        assert ("against_baseline" in one["top1"]) == (row != SCRATCH)
    # A student that has seen many people needs less than one that has seen 24 faces.
    assert found[FINETUNED, 4]["top1"]["points"] < found[SCRATCH, 4]["top1"]["points"]
    assert found[FINETUNED, 4]["top1"]["points"] < found[FINETUNED, 1]["top1"]["points"]
    assert (tmp_path / "tiny16-head.svg").is_file()
    assert max(map(len, done.output.splitlines())) > 80, "piped, the table was cut"
    assert "closed-set" in (tmp_path / "tiny16-head.md").read_text()
    before = (tmp_path / "tiny16-head.json").read_bytes()
    assert head(people, tmp_path, *arguments[:-2]).exit_code == 0
    assert (tmp_path / "tiny16-head.json").read_bytes() == before, "what is kept of another seed was left out"
    assert head(people, tmp_path, *arguments).exit_code == 0
    assert len(trained) == 4, "a row that is there was trained again"
    assert (tmp_path / "tiny16-head.json").read_bytes() == before


def test_as_it_is_is_the_nearest_mean_and_the_kept_layer_gives_the_ranks(people, tmp_path):
    faces = open_faces(str(people))
    config = load_config("quick", None, {}, SETTINGS)
    target, images = head_study.open_target(faces, (3,))
    heads, zoo = head_rows.Heads(config, target, tmp_path), head_study._weights(config, "zoo")
    told = head_study.measure(config, {"zoo": zoo}, target, images, (2,), tmp_path)
    student = load("tiny16", pretrained=True)
    features = reference_embeddings(student, student_crops(faces, 16, 16)).astype(float)
    unit = [row / np.linalg.norm(row) for row in features]
    chosen = heads._learn(3, 2)
    assert all(set(mine) <= set(pool) for mine, pool in zip(chosen, target.learn, strict=True))
    wrong = 0
    for face, person in zip(target.test, target.person, strict=True):
        means = [sum(unit[i] for i in mine) for mine in chosen]
        scores = [unit[face] @ mean / np.linalg.norm(mean) for mean in means]
        wrong += int(np.argmax(scores) != person)
    rows = {row["row"]: row for row in told["rows"]}
    assert rows[AS_IS]["top1"]["points"] == pytest.approx(100 * wrong / len(target.test))
    kept = heads.read(FINETUNED, zoo, 3, 2)
    named = (features[target.test] @ kept["weight"].T + kept["bias"]).argmax(1)
    assert rows[FINETUNED]["top1"]["points"] == pytest.approx(100 * np.mean(named != target.person))


def test_after_a_run_its_student_gets_a_head(people, tmp_path):
    with Run.open(tmp_path, load_config("quick", None, {}, SETTINGS), quiet=True) as run:
        save_file(load("tiny16", pretrained=True).state_dict(), tmp_path / "student.safetensors")
        head_study.after_run(run, str(people))
    told = json.loads((tmp_path / "head.json").read_text())
    assert [row["images"] for row in told["rows"] if row["row"] == FINETUNED] == [1, 5]
    fitted = np.load(tmp_path / "head.npz", allow_pickle=False)
    assert fitted["weight"].shape == (6, 128)
    assert fitted["names"].tolist() == [f"s{i}" for i in range(1, 7)]


def test_after_a_run_its_own_seed_alone_is_told(people, tmp_path):
    save_file(load("tiny16", pretrained=True).state_dict(), tmp_path / "student.safetensors")
    for seed in (3, 20, 2**32 - 1):
        config = load_config("quick", None, {}, SETTINGS, seed=seed)
        with Run.open(tmp_path, config, quiet=True) as run:
            run.facts = lambda stage: {}
            head_study.after_run(run, str(people))
        told = json.loads((tmp_path / "head.json").read_text())
        assert all(row["seeds"] == [seed] and "top1" in row for row in told["rows"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--student-weights", "nowhere"), "no file nowhere"),
        (("--images", "10"), "0 people have more than 10 images"),
        (("--data", "nowhere"), "nowhere"),
        (("--set", "benchmark.windows=20"), "--set benchmark: "),
        (("--set", "adapt.steps=5"), "--set adapt, "),
        (("--set", "distill.mimic_weight=7"), "--set distill.mimic_weight changes nothing here"),
        (("--set", "distill.weights=zoo"), "starts from --student-weights"),
    ],
)
def test_mistakes_are_told_in_one_line(people, tmp_path, more, said):
    done = head(people, tmp_path, *more)
    assert done.exit_code == 2
    assert said in done.output


def test_an_unknown_student_and_weights_of_another_network_are_told_before_any_face_is_read(
    people, tmp_path, monkeypatch
):
    monkeypatch.setattr(head_study, "open_faces", None)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    done = head(people, tmp_path, "--student", "tiny17", "--student-weights", str(tmp_path / "other.safetensors"))
    assert done.exit_code == 2
    assert "unknown student 'tiny17'" in done.output
    done = head(people, tmp_path, "--images", "1", "--student-weights", str(tmp_path / "other.safetensors"))
    assert done.exit_code == 2
    assert "does not hold the weights of a tiny16" in done.output


def test_the_pipeline_says_at_once_that_there_is_no_such_set(tmp_path):
    arguments = ["--teacher", "dlib_resnet", "--finetune-head", str(tmp_path / "nowhere"), "--out", str(tmp_path)]
    done = CliRunner().invoke(pipeline.main, arguments)
    assert done.exit_code == 2
    assert "no face data" in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_pipeline_takes_what_the_head_alone_reads(people, tmp_path):
    arguments = ["--teacher", "dlib_resnet", "--set", "distill.mode=s", "--set", "distill.class_loss=arcface"]
    arguments += ["--out", str(tmp_path / "run")]
    done = CliRunner().invoke(pipeline.main, [*arguments, "--stages", "nowhere"])
    assert "--set distill.class_loss changes nothing here" in done.output
    done = CliRunner().invoke(pipeline.main, [*arguments, "--stages", "nowhere", "--finetune-head", str(people)])
    assert "unknown stage 'nowhere'" in done.output


def test_the_pipeline_fits_no_head_to_an_earlier_runs_student(people, tmp_path):
    arguments = ["--teacher", "dlib_resnet", "--data", str(people), "--preset", "quick", "--out", str(tmp_path)]
    (tmp_path / "stages").mkdir()
    record = {"fingerprint": "another", "summary": "", "seconds": 1, "files": [], "facts": {}}
    (tmp_path / "stages/distill.json").write_text(json.dumps(record))
    done = CliRunner().invoke(pipeline.main, [*arguments, "--stages", "data", "--finetune-head", str(people)])
    assert done.exit_code == 2
    assert "--finetune-head needs distill first, with these very settings" in done.output
    assert not list(tmp_path.glob("head.*"))
