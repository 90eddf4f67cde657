import pytest

from export.targets import Target, targets
from faces.errors import UserError


def names(formats, precisions):
    return [target.file("student") for target in targets(formats, precisions)]


def test_a_name_says_format_precision_and_consumer():
    assert names(["onnx", "tflite"], ["fp32", "fp16", "int8"]) == [
        "student.onnx", "student-fp16.onnx", "student-int8-cpu.onnx", "student-int8-tensorrt.onnx",
        "student.tflite", "student-fp16.tflite", "student-int8.tflite",
    ]  # fmt: skip
    assert len({target.file("s") for target in targets(["onnx", "tflite", "tensorrt", "tensorrt-rtx"],
                                                       ["fp32", "fp16", "int8"])}) == 13  # fmt: skip


def test_engines_bring_the_onnx_files_that_they_are_built_from():
    assert names(["tensorrt-rtx"], ["int8", "fp32"]) == [
        "student.onnx", "student-fp32.tensorrt-rtx.engine",
        "student-int8-tensorrt.onnx", "student-int8.tensorrt-rtx.engine",
    ]  # fmt: skip
    # And each only once.
    assert names(["onnx", "tensorrt-rtx"], ["fp16"]) == ["student-fp16.onnx", "student-fp16.tensorrt-rtx.engine"]
    assert Target("onnx", "fp32").source is None


@pytest.mark.parametrize("formats", [["pdf"], ["onnx", ""]])
def test_unknown_formats(formats):
    with pytest.raises(UserError, match=r"unknown format .*Known: onnx, tflite, tensorrt, tensorrt-rtx"):
        targets(formats, ["fp32"])
