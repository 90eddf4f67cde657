"""What stands in for a GPU and for the wheel of TensorRT: the driver, and a module that has nothing but the names that
the bindings of TensorRT 10.16 and 11.4 share, the building behind it being TensorRT-RTX's."""

import hashlib
import json
from pathlib import Path

import pytest

from export.sidecar import Crop, Input, Parity, Sidecar

rtx = pytest.importorskip("tensorrt_rtx")
RECORD = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
NAMES = {kind: set(names) for kind, names in RECORD["names"].items()}
VERSIONS = RECORD["strongly_typed"]


def contract_of(path, engine, **change):
    content = path.read_bytes()
    fields = {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "format": engine.backend.replace("_", "-"),
        "precision": "fp32",
        "opset": None,
        "model": "tiny16",
        "parameters": 1,
        "macs": 1,
        "input": Input(name="face", shape=(None, 3, 16, 16), layout="NCHW"),
        "crop": Crop(template="arcface", template_px=112, resampling="", points=()),
        "output": "embedding",
        "embedding_dim": 128,
        "metric": "cosine",
        "thresholds": {},
        "parity": Parity(max_abs=None, cosine_min=None, faces=0, passed=None, reason="no GPU"),
        "parity_failure_allowed": False,
        "engine": engine,
        "teacher": None,
        "data": None,
        "versions": {},
    }
    return Sidecar(**(fields | change))


class Named:
    """An object of TensorRT-RTX of which only TensorRT's names can be reached."""

    def __init__(self, real, kind):
        self.__dict__.update(_real=real, _kind=kind)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        assert name in NAMES[self._kind], f"TensorRT has no {self._kind}.{name}"
        value = getattr(self._real, name)
        if type(value).__name__ in ("builtin_function_or_method", "method"):
            return lambda *given: _named(value(*(one._real if isinstance(one, Named) else one for one in given)))
        return value

    def __setattr__(self, name, value):
        assert name in NAMES[self._kind], f"TensorRT has no {self._kind}.{name}"
        setattr(self._real, name, value)


def _named(value):
    kind = type(value).__name__
    # The plan is passed as it is: it is read through the buffer protocol.
    return Named(value, kind) if kind in NAMES and kind not in ("IHostMemory", "DataType") else value


class TensorRT:
    """The module; `flags` are those that networks were created with."""

    __name__ = "tensorrt"

    def __init__(self, version, runtime=None):
        self.__version__, self._runtime, self.flags = version, runtime, []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        assert name in NAMES["module"], f"TensorRT has no {name}"
        if name == "Runtime":
            return self._runtime
        if name in ("Builder", "OnnxParser"):
            return lambda *given: self._make(name, given)
        if name == "NetworkDefinitionCreationFlag":
            return type(name, (), {"STRONGLY_TYPED": VERSIONS[self.__version__]})
        return getattr(rtx, name)

    def _make(self, name, given):
        made = Named(getattr(rtx, name)(*(one._real if isinstance(one, Named) else one for one in given)), name)
        if name == "Builder":
            made.__dict__["create_network"] = lambda flags: self._network(made._real, flags)
        return made

    def _network(self, builder, flags):
        self.flags.append(flags)
        strongly = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return _named(builder.create_network(strongly))


class Driver:
    """CUDA's, with one GPU."""

    def __init__(self, major, minor):
        self._attributes = {75: major, 76: minor}

    def cuDeviceGet(self, device, ordinal):
        assert ordinal == 0
        device._obj.value = 3
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        assert device.value == 3
        value._obj.value = self._attributes[attribute]
        return 0
