"""What scores say, against naive counts."""

import numpy as np
import onnx
import pytest

from compress import part_scores
from compress.part_scores import mean_values, pair_values, people_summary, summary, teacher_features
from faces.dataset import Faces
from faces.parts import Part
from faces.verification import Pairs, correct_by_fold


def made(people=40, shots=4, seed=0):
    """A part of `people` x `shots` faces with balanced pairs, and scores that tell them apart more often than not."""
    rng = np.random.default_rng(seed)
    identities = np.repeat(np.arange(people), shots)
    i, j = np.triu_indices(len(identities), 1)
    same = identities[i] == identities[j]
    genuine = np.flatnonzero(same)
    impostor = rng.permutation(np.flatnonzero(~same))[: len(genuine)]
    chosen = np.concatenate([genuine, impostor])
    pairs = Pairs(i[chosen], j[chosen], same[chosen], np.arange(len(chosen)) % 10)
    count = len(identities)
    faces = Faces(
        np.zeros((count, 128, 128, 3), np.uint8), np.zeros((count, 5, 2), np.float32), identities,
        tuple(map(str, range(people))), tuple(map(str, range(count))),
    )  # fmt: skip
    return Part("made", faces, pairs), rng.standard_normal(len(chosen)) + 1.5 * pairs.same


def test_both_metrics_are_what_counting_gives():
    part, scores = made()
    impostors = sorted(scores[~part.pairs.same], reverse=True)
    # A tenth of the impostors passes: the threshold lies above the first one that must not.
    refused = impostors[len(impostors) // 10]
    genuine = scores[part.pairs.same]
    found = pair_values(scores, part.pairs)
    assert found["tpr"].mean() == pytest.approx(sum(score > refused for score in genuine) / len(genuine))
    assert np.array_equal(found["accuracy"], correct_by_fold(scores, part.pairs))


def test_too_few_impostors_say_nothing_of_a_tenth():
    part, scores = made(people=4)
    assert (~part.pairs.same).sum() < 100
    assert set(pair_values(scores, part.pairs)) == {"accuracy"}


def test_a_summary_holds_the_mean_its_interval_and_the_paired_difference():
    part, scores = made()
    better = scores + 0.5 * part.pairs.same
    mine, plain = (mean_values([one], part.pairs) for one in (better, scores))
    found = summary(mine, plain, part)
    for metric in ("accuracy", "tpr"):
        one = found[metric]
        assert one["points"] == pytest.approx(100 * mine[metric].mean())
        assert one["ci95"][0] < one["points"] < one["ci95"][1]
        gap = one["against_baseline"]
        assert gap["points"] == pytest.approx(one["points"] - 100 * plain[metric].mean())
        assert gap["ci95"][1] - gap["ci95"][0] < one["ci95"][1] - one["ci95"][0]
    assert "against_baseline" not in summary(plain, None, part)["tpr"]
    # A true positive rate is of genuine pairs alone: it is as sure as they are many people's.
    width = np.diff(found["tpr"]["ci95"])[0]
    rate = mine["tpr"].mean()
    binomial = 2 * 196 * np.sqrt(rate * (1 - rate) / part.pairs.same.sum())
    assert 0.7 * binomial < width < 2.5 * binomial


def test_several_seeds_are_averaged_pair_by_pair():
    part, scores = made()
    other = scores[::-1].copy()
    both = mean_values([scores, other], part.pairs)["accuracy"]
    single = [pair_values(one, part.pairs)["accuracy"] for one in (scores, other)]
    assert np.array_equal(both, (single[0] + single[1]) / 2)


def test_people_are_resampled_not_faces():
    people = np.repeat(np.arange(30), 20)
    right = (people % 2).astype(float)
    found = people_summary(right, None, people)
    assert found["points"] == 50
    # 30 people of one mind each: as wide as 30 coins, not as 600.
    assert np.diff(found["ci95"])[0] == pytest.approx(2 * 196 * np.sqrt(0.25 / 30), rel=0.25)
    assert people_summary(right, right, people)["against_baseline"] == {"points": 0.0, "ci95": [0.0, 0.0]}


def write_embedder(file, factor):
    """An ONNX file: `factor` times the mean colour of a face of 8 px."""
    shapes = {"images": ["n", 3, 8, 8], "embeddings": ["n", 3]}
    given, found = (onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    weight = onnx.numpy_helper.from_array(np.float32(factor) * np.eye(3, dtype=np.float32), "weight")
    axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
    nodes = [
        onnx.helper.make_node("ReduceMean", ["images", "axes"], ["colour"], keepdims=0),
        onnx.helper.make_node("MatMul", ["colour", "weight"], ["embeddings"]),
    ]
    graph = onnx.helper.make_graph(nodes, "embedder", [given], [found], [weight, axes])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), str(file))


def test_another_file_under_the_same_name_is_noticed(tmp_path, monkeypatch):
    faces, file = made(people=2)[0].faces, tmp_path / "teacher.onnx"
    teacher = f"onnx:{file}?mean=0,0,0&std=1,1,1"
    faces.images[:] = 255
    write_embedder(file, 2)
    np.testing.assert_allclose(teacher_features(teacher, faces, tmp_path), np.full((8, 3), 2))
    write_embedder(file, 3)
    np.testing.assert_allclose(teacher_features(teacher, faces, tmp_path), np.full((8, 3), 3))
    write_embedder(file, 2)
    monkeypatch.setattr(part_scores, "embed", None)
    np.testing.assert_allclose(teacher_features(teacher, faces, tmp_path), np.full((8, 3), 2))
