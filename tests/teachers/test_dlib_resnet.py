import cv2
import numpy as np
import pytest
import torch

from faces.errors import UserError
from teachers import create_teacher
from teachers.backbones.dlib_resnet import DlibResNet
from teachers.registry import DLIB_PACKAGE
from teachers.weights import package_file


@pytest.fixture(scope="module")
def dat():
    return package_file(*DLIB_PACKAGE)


def test_agrees_with_the_dlib_package_on_real_chips(dat, orl_images) -> None:
    dlib = pytest.importorskip("dlib")
    chips = np.stack([cv2.resize(image, (150, 150)) for image in orl_images[:6]])
    # A colour cast, so that an exchange of red and blue would show.
    chips[3:] = (chips[3:] * np.array([1.0, 0.8, 0.5])).astype(np.uint8)
    network = dlib.face_recognition_model_v1(str(dat))
    expected = np.stack([np.array(network.compute_face_descriptor(chip)) for chip in chips])
    teacher = create_teacher("dlib_resnet")
    assert np.abs(teacher.embed(chips, batch=4) - expected).max() < 1e-4
    assert (teacher.input_px, teacher.embedding_dim, teacher.metric) == (150, 128, "euclidean")
    assert not teacher.bootstrap
    assert sum(parameter.numel() for parameter in teacher.parameters()) == pytest.approx(5.58e6, rel=0.01)


@pytest.mark.parametrize("kept", [0, 1, 300, 30_000, 5_000_000, -200, -60, -1])
def test_a_file_cut_short_is_refused(dat, tmp_path, kept) -> None:
    cut = tmp_path / "cut.dat"
    cut.write_bytes(dat.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut\.dat"):
        DlibResNet().load_dat(cut)


def test_other_files_are_refused(dat, tmp_path) -> None:
    data = dat.read_bytes()
    # The first convolution's stride, behind its 4736 values and its size, from 2 to 1.
    stride = data.index(b"\x01\x05con_4") + 9 + 7 + 4 * 4736 - 1 + 6
    foreign = {
        "text": b"these are no weights\n" * 1000,
        "shape_predictor": package_file(DLIB_PACKAGE[0], "shape_predictor_5_face_landmarks.dat").read_bytes(),
        "longer": data + bytes(1000),
        "nan": data[:1000] + b"\x00\x00\xc0\x7f" * 4 + data[1016:],
        "stride": data[:stride] + b"\x01" + data[stride + 1 :],
    }
    for name, content in foreign.items():
        file = tmp_path / f"{name}.dat"
        file.write_bytes(content)
        with pytest.raises(UserError, match=name):
            DlibResNet().load_dat(file)
    with pytest.raises(UserError, match="cannot read"):
        DlibResNet().load_dat(tmp_path / "absent.dat")


def test_a_shorter_network_refuses_the_file(dat) -> None:
    with pytest.raises(UserError, match="not dlib's"):
        DlibResNet(blocks=[(32, False)]).load_dat(dat)


def test_runs_as_onnx_at_any_batch(dat, tmp_path) -> None:
    ort = pytest.importorskip("onnxruntime")
    network = DlibResNet().eval()
    network.load_dat(dat)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        network, (torch.rand(2, 3, 150, 150),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    program.save(tmp_path / "dlib.onnx", external_data=False)
    session = ort.InferenceSession(tmp_path / "dlib.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(5, 3, 150, 150)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert np.abs(y - network(x).numpy()).max() < 1e-4
