"""Frozen embedders in ONNX files of every layout that one meets."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from faces.errors import UserError
from teachers import create_teacher

PX, DIM = 8, 5
WEIGHT = np.random.default_rng(0).standard_normal((3 * PX * PX, DIM)).astype(np.float32)


def write(path, shape=("n", 3, PX, PX), nodes=None, weight=WEIGHT, inputs=1, dtype=TensorProto.FLOAT):
    """An embedder that multiplies the flattened image by WEIGHT, with an input of this shape."""
    nodes = nodes or [
        helper.make_node("Flatten", ["face"], ["flat"], axis=1), helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]  # fmt: skip
    one = helper.make_tensor_value_info("face", dtype, list(shape))
    more = [helper.make_tensor_value_info(f"more{i}", TensorProto.FLOAT, [1]) for i in range(inputs - 1)]
    held = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1, -1]), "one_row")]
    output = helper.make_tensor_value_info("y", dtype, None)
    graph = helper.make_graph(nodes, "g", [one, *more], [output], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return f"onnx:{path}"


def naive(x, mean=0.5, std=0.5):
    return ((x.numpy() - mean) / std).reshape(len(x), -1) @ WEIGHT


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.rand(5, 3, PX, PX)


def close(found, expected):
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_insightfaces_convention_is_the_default(tmp_path, x):
    teacher = create_teacher(write(tmp_path / "a.onnx"))
    assert (teacher.input_px, teacher.embedding_dim, teacher.template, teacher.metric) == (PX, DIM, "arcface", "cosine")
    assert not teacher.trainable
    assert not teacher.bootstrap
    assert list(teacher.parameters()) == []
    assert list(teacher.state_dict()) == []
    assert teacher.backbone.count_parameters() == WEIGHT.size
    assert str(tmp_path / "a.onnx") in teacher.source
    with torch.inference_mode():
        close(teacher(x), naive(x))
        close(teacher(x.contiguous(memory_format=torch.channels_last)), naive(x))
        assert teacher(x[:0]).shape == (0, DIM)


def test_options_change_the_convention(tmp_path, x):
    name = write(tmp_path / "a.onnx")
    mean, std = np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1), np.array([1, 2, 4.0]).reshape(3, 1, 1)
    close(create_teacher(f"{name}?mean=0.1,0.2,0.3&std=1,2,4")(x), naive(x, mean, std))
    close(create_teacher(f"{name}?mean=0&std=1")(x), naive(x, 0, 1))
    close(create_teacher(f"{name}?colour=bgr")(x), naive(x.flip(1)))
    other = create_teacher(f"{name}?template=dlib&metric=euclidean")
    assert (other.template, other.metric) == ("dlib", "euclidean")


def test_channels_last_is_seen_in_the_graph(tmp_path, x):
    expected = ((x.permute(0, 2, 3, 1).numpy() - 0.5) / 0.5).reshape(5, -1) @ WEIGHT
    close(create_teacher(write(tmp_path / "a.onnx", ("n", PX, PX, 3)))(x), expected)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_fixed_batch_is_filled_up(tmp_path, x, batch):
    close(create_teacher(write(tmp_path / "a.onnx", (batch, 3, PX, PX)))(x), naive(x))


def test_a_batch_that_is_free_in_name_only_is_taken_one_by_one(tmp_path, x):
    nodes = [
        helper.make_node("Reshape", ["face", "one_row"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]  # fmt: skip
    teacher = create_teacher(write(tmp_path / "a.onnx", nodes=nodes))
    assert teacher.backbone.batch == 1
    close(teacher(x), naive(x))


def test_a_free_side_is_the_users_choice(tmp_path, x):
    name = write(tmp_path / "a.onnx", ("n", 3, "h", "w"))
    assert create_teacher(f"{name}?px={PX}").input_px == PX
    with pytest.raises(UserError, match="onnxruntime failed on"):
        create_teacher(name)  # at 112 px the flattened image does not fit the matrix
    with pytest.raises(UserError, match=r"takes images of 8 px, not of px=16"):
        create_teacher(write(tmp_path / "b.onnx") + "?px=16")


def test_half_precision_inputs(tmp_path, x):
    teacher = create_teacher(write(tmp_path / "a.onnx", dtype=TensorProto.FLOAT16, weight=WEIGHT.astype(np.float16)))
    found = teacher(x)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), naive(x), atol=0.1)


def test_it_cannot_be_trained(tmp_path, x):
    teacher = create_teacher(write(tmp_path / "a.onnx")).train()
    with pytest.raises(UserError, match="frozen only"):
        teacher(x)
    with torch.no_grad():
        close(teacher(x), naive(x))


def test_it_embeds_faces_as_any_teacher(tmp_path, faces):
    teacher = create_teacher(write(tmp_path / "a.onnx"))
    embeddings = teacher.embed_faces(faces, batch=5)
    assert embeddings.shape == (12, DIM)
    assert np.isfinite(embeddings).all()
    assert np.ptp(embeddings, axis=0).min() > 0


def test_files_that_are_no_embedder(tmp_path):
    (tmp_path / "words.onnx").write_text("words")
    flat = [helper.make_node("Flatten", ["face"], ["y"], axis=0)]
    image = [helper.make_node("Relu", ["face"], ["y"])]
    for name, words in (
        (f"onnx:{tmp_path / 'words.onnx'}", "no ONNX file that onnxruntime can run"),
        (f"onnx:{tmp_path / 'absent.onnx'}", r"no ONNX file .*absent\.onnx; an ONNX teacher is named onnx:FILE"),
        (write(tmp_path / "two.onnx", inputs=2), "takes face .*more0.*one batch of float images"),
        (write(tmp_path / "grey.onnx", ("n", 1, PX, PX), image), "not square ones of 3 channels"),
        (write(tmp_path / "tall.onnx", ("n", 3, PX, 2 * PX), image), "not square ones of 3 channels"),
        (write(tmp_path / "image.onnx", nodes=image), "not one vector an image"),
        (write(tmp_path / "row.onnx", (2, 3, PX, PX), nodes=flat), "not one vector an image"),
    ):
        with pytest.raises(UserError, match=words):
            create_teacher(name)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("std=0", "std must be above zero"), ("mean=1,2", "mean=1,2 is not one number or three"),
        ("mean=a", "mean=a is not one number"), ("std=nan", "std=nan is not one number"),
        ("template=vgg", "template=vgg is not one of arcface, dlib"), ("metric=l1", "not one of cosine, euclidean"),
        ("colour=cmyk", "not one of rgb, bgr"), ("size=3", r"unknown option 'size=3' \(known: px="),
        ("px=0", "px=0 is not a whole number"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_the_users_mistake(tmp_path, query, words):
    with pytest.raises(UserError, match=words):
        create_teacher(f"{write(tmp_path / 'a.onnx')}?{query}")


def test_its_weights_are_in_its_name(tmp_path):
    name = write(tmp_path / "a.onnx")
    for weights in ("hub", tmp_path / "a.onnx", "random"):
        with pytest.raises(UserError, match="holds its weights"):
            create_teacher(name, weights)
