"""Similarity transforms and crops, measured with dots drawn at known places."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faces.align import (
    TEMPLATES,
    create_detector,
    crop,
    landmark_file,
    loose_crop,
    similarity,
    template_landmarks,
    warp,
)
from faces.degrade import resize
from faces.errors import UserError

_NAN = (np.nan, np.nan)


def _dots(points, height, width, sigma):
    """Black RGB image with a bright blob, `sigma` wide, at each (x, y) that is known."""
    rows, columns = np.mgrid[:height, :width]
    image = np.zeros((height, width))
    for x, y in points[np.isfinite(points).all(1)]:
        image += 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(image.clip(0, 255).round().astype(np.uint8)[..., None], 3, 2)


def _centre(image, near, radius):
    """Centre of brightness (x, y) of the part of `image` around `near`."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = image[..., 0] * ((columns - near[0]) ** 2 + (rows - near[1]) ** 2 <= radius**2)
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


def _moved(points, angle, scale, shift):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ turn.T + shift, np.concatenate([scale * turn, np.reshape(shift, (2, 1))], 1)


@given(
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.05, 20),
    x=st.floats(-500, 500),
    y=st.floats(-500, 500),
    unknown=st.sets(st.integers(0, 4), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_a_known_transform_is_recovered_from_the_known_points(angle, scale, x, y, unknown):
    source = TEMPLATES["arcface"][1].astype(np.float64).copy()
    target, matrix = _moved(source, angle, scale, (x, y))
    for i, point in enumerate(unknown):
        (source if i % 2 else target)[point] = np.nan
    np.testing.assert_allclose(similarity(source, target), matrix, atol=1e-7 * (scale + abs(x) + abs(y) + 1))


def test_noisy_points_get_the_least_squares_transform():
    rng = np.random.default_rng(0)
    source = TEMPLATES["arcface"][1]
    target = _moved(source, 0.3, 1.4, (5, -7))[0] + rng.normal(0, 3, (5, 2))

    def error(a, b, tx, ty):
        return np.square(source @ np.array([[a, b], [-b, a]]) + [tx, ty] - target).sum()

    found = similarity(source, target)
    best = error(found[0, 0], found[1, 0], found[0, 2], found[1, 2])
    assert np.allclose([found[0, 0], found[0, 1]], [found[1, 1], -found[1, 0]])
    for step in np.concatenate([np.eye(4), -np.eye(4), rng.normal(size=(50, 4))]) * 1e-3:
        other = np.array([found[0, 0], found[1, 0], found[0, 2], found[1, 2]]) + step
        assert error(*other) > best


def test_fewer_than_two_known_points_are_refused():
    points = np.array([(1.0, 2.0), _NAN, _NAN, _NAN, _NAN])
    with pytest.raises(ValueError, match="two known points"):
        similarity(points, TEMPLATES["arcface"][1])


def test_a_batch_is_cropped_as_its_faces_alone():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)
    landmarks = TEMPLATES["arcface"][1] + rng.normal(5, 3, (4, 5, 2)).astype(np.float32)
    landmarks[1, 2] = landmarks[2, :3] = np.nan
    together = crop(images, landmarks, "arcface", 48)
    for i in range(4):
        assert np.array_equal(together[i], crop(images[i : i + 1], landmarks[i : i + 1], "arcface", 48)[0])


@pytest.mark.parametrize("scale", [0.06, 0.11, 0.3, 0.49, 0.51, 1.0, 2.5])
def test_warp_puts_a_dot_where_the_matrix_says(scale):
    height, width = 611, 803
    size = max(16, round(150 * scale))
    places = []
    for x, y in ((100.3, 90.0), (60.0, 120.4)):
        seen = np.array([[x, y]]) + 300
        target, matrix = _moved(seen, 0.4, scale, (0, 0))
        matrix[:, 2] = size / 2 - target[0] + (0.3, -0.2)
        image = _dots(seen, height, width, 2.5 / min(scale, 1))
        found = _centre(warp(image, matrix, size), (size / 2, size / 2), size / 2)
        places.append(found - (size / 2 + 0.3, size / 2 - 0.2))
    assert np.abs(places).max() < 0.06


@pytest.mark.parametrize("template", ["arcface", "dlib"])
@pytest.mark.parametrize(("share", "margin"), [(1.0, 0.0), (1.0, 0.2), (0.5, 0.1), (1.5, 0.0)])
def test_crops_have_the_landmarks_at_the_template(template, share, margin):
    base, points = TEMPLATES[template]
    size = round(base * share)
    seen, _ = _moved(template_landmarks(128).astype(np.float64), 0.25, 0.9, (22.0, -8.0))
    image = _dots(seen, 128, 128, 1.5)
    result = crop(image[None], seen[None], template, size, margin)[0]
    assert result.shape == (size, size, 3)
    # In continuous coordinates, where the first pixel reaches from 0 to 1.
    scale = size / (base * (1 + 2 * margin))
    expected = (points + 0.5 + base * margin) * scale - 0.5
    near = 9 * scale
    found = np.array([_centre(result, place, near) for place in expected])
    # The two templates are not similar to each other: with five points the fit leaves up to some pixels.
    assert np.abs(found - expected).max() < (0.15 if template == "arcface" else 4 * scale)
    eyes = np.full((5, 2), np.nan)
    eyes[:2] = seen[:2]
    result = crop(image[None], eyes[None], template, size, margin)[0]
    found = np.array([_centre(result, place, near) for place in expected[:2]])
    assert np.abs(found - expected[:2]).max() < 0.15


@pytest.mark.parametrize("template", ["arcface", "dlib"])
def test_a_smaller_crop_lies_on_the_reduced_crop(orl, template):
    base, _ = TEMPLATES[template]
    images, landmarks = orl.images[::40], orl.landmarks[::40]
    small = crop(images, landmarks, template, base // 3)[..., 0].astype(float)
    full = crop(images, landmarks, template)
    reduced = resize(full, base // 3)[..., 0].astype(float)
    apart = np.abs(small - reduced).mean()
    moved = [
        np.abs(np.roll(small, shift, axis)[:, 2:-2, 2:-2] - reduced[:, 2:-2, 2:-2]).mean()
        for axis in (1, 2)
        for shift in (-1, 1)
    ]
    assert apart < 3
    assert apart < 0.35 * min(moved)
    # Where one lies between two shifts of the other: a shift of d pixels makes the two sides differ by their slope.
    slope = np.gradient(reduced, axis=2)
    offset = ((small - reduced) * slope).sum() / (slope**2).sum()
    assert abs(offset) < 0.06


def test_the_loose_crop_has_36_px_between_the_eyes_and_the_landmarks_on_the_dots():
    seen, _ = _moved(TEMPLATES["arcface"][1].astype(np.float64), -0.5, 6.0, (300.0, 420.0))
    image, landmarks = loose_crop(_dots(seen, 1000, 1100, 12.0), seen)
    assert image.shape == (128, 128, 3)
    assert landmarks.dtype == np.float32
    assert np.hypot(*(landmarks[1] - landmarks[0])) == pytest.approx(36, abs=1e-3)
    np.testing.assert_allclose(landmarks.mean(0), [64.03, 78.24], atol=1e-3)
    found = np.array([_centre(image, point, 8) for point in landmarks])
    assert np.abs(found - landmarks).max() < 0.1
    seen[3:] = np.nan
    assert np.isnan(loose_crop(image, seen)[1]).tolist() == [[False] * 2] * 3 + [[True] * 2] * 2


def test_the_template_at_another_side_covers_the_same_field():
    np.testing.assert_array_equal(template_landmarks(112), TEMPLATES["arcface"][1])
    small = _dots(template_landmarks(56).astype(np.float64), 56, 56, 1.5)
    large = resize(small[None], 112)[0]
    found = np.array([_centre(large, point, 9) for point in TEMPLATES["arcface"][1]])
    assert np.abs(found - TEMPLATES["arcface"][1]).max() < 0.3


def test_detected_eyes_lie_at_the_template_after_the_crop(orl):
    crops = crop(orl.images[::10], orl.landmarks[::10], "arcface")
    found = [create_detector("dlib")(image) for image in crops]
    apart = [np.abs(points[:2] - TEMPLATES["arcface"][1][:2]).max() for points in found if points is not None]
    # dlib's points are whole pixels of a blurred 92 px original, so single ones wander.
    assert len(apart) >= 38
    assert np.median(apart) < 2
    assert np.quantile(apart, 0.9) < 3


def test_dlib_gives_eyes_and_nose_and_finds_nothing_in_noise():
    assert landmark_file().is_file()
    detector = create_detector("dlib")
    assert detector(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)) is None
    for shape in ((2, 4000, 3), (4000, 1, 3)):  # whose short side would be scaled to no pixel
        assert detector(np.zeros(shape, dtype=np.uint8)) is None


def test_yunet_and_dlib_agree(orl, shared):
    detector = create_detector(f"yunet:{shared / 'weights' / 'yunet_n_dynamic.onnx'}")
    assert detector(np.zeros((64, 80, 3), dtype=np.uint8)) is None
    apart = []
    for image, known in zip(orl.images[::40], orl.landmarks[::40], strict=True):
        points = detector(image)
        assert points is not None
        assert points[0, 0] < points[1, 0]
        assert points[3, 0] < points[4, 0]
        apart.append(np.abs(points[:3] - known[:3]).max())
    assert np.median(apart) < 5


def test_unknown_detectors_and_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"unknown detector 'mtcnn'\. Known: dlib, yunet:FILE"):
        create_detector("mtcnn")
    with pytest.raises(UserError, match=r"no YuNet model at .*none\.onnx; yunet:FILE names its \.onnx file"):
        create_detector(f"yunet:{tmp_path}/none.onnx")
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(UserError, match=r"cannot read .*text\.onnx as a YuNet model"):
        create_detector(f"yunet:{tmp_path}/text.onnx")
    # A network, but none that finds faces.
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 320, 320]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "relu.onnx")
    with pytest.raises(UserError, match=r"cannot read .*relu\.onnx as a YuNet model"):
        create_detector(f"yunet:{tmp_path}/relu.onnx")
