"""Teachers by name: `swin_b`, `timm:NAME`, `onnx:FILE`, and ensembles `a+b`."""

import difflib
import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from faces.errors import UserError
from teachers import lora, names
from teachers.backbones import Backbone, vit
from teachers.backbones.bootstrap import Bootstrap, is_bootstrap
from teachers.backbones.dlib_resnet import DlibResNet
from teachers.backbones.iresnet import DEPTHS, IResNet
from teachers.backbones.mobilefacenet import MobileFaceNet
from teachers.backbones.onnx import Onnx
from teachers.backbones.swin import Swin
from teachers.backbones.timm import Timm, check_model
from teachers.ensemble import Ensemble, no_bootstrap
from teachers.settings import MethodName
from teachers.teacher import Metric, Teacher
from teachers.tuned import apply_tuned, tuned_notes
from teachers.weights import hub_file, load_state, package_file, read_state

PETALFACE_HUB = ("kartiknarayan/PETALface", "swin_arcface_webface12m/model.pt")
BOOTSTRAP_LICENCE = "random weights fitted to a reference teacher, whose licence holds"
USER_LICENCE = "the user's own weights: their licence was not stated"
RANDOM_LICENCE = "random weights: none"
DLIB_PACKAGE = ("face_recognition_models", "dlib_face_recognition_resnet_model_v1.dat")
PATTERNS = "timm:NAME (any timm model), onnx:FILE (any frozen ONNX embedder), and ensembles of these as in a+b"


@dataclass(frozen=True)
class Spec:
    """What is known about a teacher.

    `build` makes the bare backbone with random weights; `load` takes what --teacher-weights said (None: nothing)
    and returns the backbone with weights and their source. default: where weights come from when none are given: a
    pip package, the name itself (a file), a bootstrap in their place, or nowhere, which is an error. hub: the hub
    has some.
    """

    build: Callable[..., Backbone]
    load: Callable[[str | Path | None], tuple[Backbone, str]]
    template: str
    metric: Metric
    licence: str
    default: Literal["package", "name", "bootstrap", "nowhere"] = "nowhere"
    hub: bool = False


def _load_dlib(given: str | Path | None) -> tuple[Backbone, str]:
    if given == "hub":
        raise UserError("dlib_resnet's weights come with a pip package, not from the hub: leave the option out")
    path = package_file(*DLIB_PACKAGE) if given is None else Path(given)
    backbone = DlibResNet()
    if path.suffix == ".dat":
        backbone.load_dat(path)
    else:
        load_state(backbone, read_state(path), path)
    source = f"pip package {DLIB_PACKAGE[0]}, {path.name}" if given is None else str(path)
    return backbone.to(memory_format=torch.channels_last), source


def _load_swin(given: str | Path | None) -> tuple[Backbone, str]:
    if given is None:
        return Bootstrap(), "bootstrap, not fitted yet"
    path = hub_file(*PETALFACE_HUB) if given == "hub" else Path(given)
    if is_bootstrap(path):
        return Bootstrap.from_file(path), f"bootstrap, {path}"
    state = read_state(path)
    backbone = Swin()
    rank = lora.official_rank(state)
    if rank is not None:
        lora.attach(backbone, rank)
    load_state(backbone, lora.from_official(state), path)
    source = "hub " + "/".join(PETALFACE_HUB) if given == "hub" else str(path)
    # Without a quality score every image gets the same mix of the two branches.
    return backbone, source if rank is None else f"{source}, LoRA rank {rank} at alpha .5"


def _load_plain(build: Callable[[], Backbone], given: str | Path | None) -> tuple[Backbone, str]:
    state = read_state(_file(given))
    backbone = build()
    load_state(backbone, state, _file(given))
    return backbone.to(memory_format=torch.channels_last), str(given)


def _load_face_transformer(given: str | Path | None) -> tuple[Backbone, str]:
    state = vit.from_official(read_state(_file(given)))
    patch = vit.patch_of(state)
    backbone = vit.FaceTransformer(patch)
    load_state(backbone, state, _file(given))
    return backbone, f"{given}, patches of {patch} px"


def _load_timm(model: str, px: int | None, given: str | Path | None) -> tuple[Backbone, str]:
    if given == "hub":
        return Timm(model, px, pretrained=True), f"hub timm/{model}: timm's weights, not trained on faces"
    backbone = Timm(model, px)
    backbone.load(read_state(_file(given)), _file(given))
    return backbone.to(memory_format=torch.channels_last), str(given)


def _load_onnx(build: Callable[[], Backbone], file: str, given: str | Path | None) -> tuple[Backbone, str]:
    if given is not None:
        raise UserError(f"onnx:{file} holds its weights: leave --teacher-weights out")
    return build(), f"{file}, by onnxruntime on the CPU"


def _file(given: str | Path | None) -> str:
    assert given is not None, "`create_single` refuses no weights first"
    return str(given)


TEACHERS = {
    "dlib_resnet": Spec(
        build=DlibResNet,
        load=_load_dlib,
        template="dlib",
        metric="euclidean",
        licence="weights CC0-1.0 (public domain) as published by dlib",
        default="package",
    ),
    "swin_b": Spec(
        build=Swin,
        load=_load_swin,
        template="arcface",
        metric="cosine",
        licence="weights MIT as published by PETALface, trained on WebFace (research use)",
        default="bootstrap",
        hub=True,
    ),
    **{
        name: Spec(
            build=partial(IResNet, depths=depths),
            load=partial(_load_plain, partial(IResNet, depths=depths)),
            template="arcface",
            metric="cosine",
            licence=USER_LICENCE,
        )
        for name, depths in DEPTHS.items()
    },
    "mobilefacenet": Spec(
        build=MobileFaceNet,
        load=partial(_load_plain, MobileFaceNet),
        template="arcface",
        metric="cosine",
        licence=USER_LICENCE,
    ),
    "face_transformer": Spec(
        build=vit.FaceTransformer,
        load=_load_face_transformer,
        template="arcface",
        metric="cosine",
        licence=USER_LICENCE,
    ),
}


def list_teachers(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, e.g. `list_teachers("swin*")`; `PATTERNS` says which others there are."""
    return fnmatch.filter(TEACHERS, pattern)


def known_teacher(name: str) -> Spec:
    """What is known about one teacher (no ensemble); UserError on an unknown name or option.

    `timm:NAME?px=112&template=arcface&metric=cosine`; `onnx:FILE` with the same options, mean=.5,.5,.5 and
    std=.5,.5,.5 (of RGB in [0, 1]), and colour=rgb or bgr.
    """
    family, _, rest = name.partition(":")
    if family == "timm" and rest:
        return _timm_spec(name, rest)
    if family == "onnx" and rest:
        return _onnx_spec(name, rest)
    if name not in TEACHERS:
        near = difflib.get_close_matches(name, TEACHERS, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"unknown teacher {name!r}{hint} Known: {', '.join(TEACHERS)}, {PATTERNS}")
    return TEACHERS[name]


def _timm_spec(name: str, rest: str) -> Spec:
    model, found = names.options(name, rest, names.OPTIONS[:3])
    check_model(model)
    px = names.pixels(found)
    return Spec(
        build=partial(Timm, model, px),
        load=partial(_load_timm, model, px),
        licence=f"timm's weights of {model}, under the licence that their card states",
        hub=True,
        **names.manner(found),
    )


def _onnx_spec(name: str, rest: str) -> Spec:
    file, found = names.options(name, rest, names.OPTIONS)
    mean, std = (names.triple(found, key, 0.5) for key in ("mean", "std"))
    if not all(value > 0 for value in std):
        raise UserError(f"{name}: std must be above zero")
    colour = names.choice(found, "colour", ("rgb", "bgr"), "rgb")
    build = partial(Onnx, file, mean, std, names.pixels(found), colour)
    return Spec(
        build=build,
        load=partial(_load_onnx, build, file),
        licence=USER_LICENCE,
        default="name",
        **names.manner(found),
    )


def weight_files(name: str, weights: str | Path | None = None) -> list[Path]:
    """The user's files that `create_teacher` would read, which need not exist; UserError on an unknown name."""
    files = []
    for one, given in names.members(name, weights):
        if known_teacher(one).default == "name":
            files.append(Path(names.options(one, one.partition(":")[2], names.OPTIONS)[0]))
        if given not in (None, "hub"):
            files.append(Path(str(given)))
    return files


def is_stand_in(name: str, weights: str | Path | None = None) -> bool:
    """Would `create_teacher` give a bootstrap, one to be fitted or one from a file?"""
    parts = names.members(name, weights)
    if len(parts) > 1:
        return False
    given = parts[0][1]
    if given is None:
        return known_teacher(name).default == "bootstrap"
    if given in ("hub", "random"):
        return False
    notes = tuned_notes(given)
    return is_stand_in(name, notes["base"]) if notes else is_bootstrap(given)


def default_method(name: str, weights: str | Path | None = None) -> MethodName:
    """How such a teacher is fine-tuned where nobody says: transformers by petalface, convolutional ones by octuplet;
    frozen files, ensembles and what was fine-tuned before not at all. UserError where swin_b's file cannot be read."""
    if "+" in name or name.startswith("onnx:") or _is_tuned(name, weights):
        return "none"
    return "petalface" if re.search("swin|vit|former|deit|beit|eva", name) else "octuplet"


def _is_tuned(name: str, weights: str | Path | None) -> bool:
    if weights == "hub":
        return name == "swin_b"
    if weights is None or not Path(weights).is_file():
        return False
    return tuned_notes(weights) is not None or (
        name == "swin_b" and lora.official_rank(read_state(weights)) is not None
    )


def create_teacher(name: str, weights: str | Path | None = None, seed: int = 0) -> Teacher | Ensemble:
    """A teacher in evaluation mode; `a+b` is an ensemble, whose weights are joined by a plus as well.

    weights: a file; "hub"; "random" for initial ones by `seed`, to train from scratch; or None for what an
    installed package ships. Where none does, swin_b is a bootstrap, which `teachers.bootstrap.fit_bootstrap`
    must fit before use, and any other name an error. Raises UserError on an unknown name or weights that
    cannot be had or do not fit.
    """
    parts = names.members(name, weights)
    for one, given in parts:
        if known_teacher(one).default == "bootstrap" and given is None and len(parts) > 1:
            raise no_bootstrap(one)
    teachers = [create_single(one, given, seed) for one, given in parts]
    return Ensemble(teachers).eval() if len(teachers) > 1 else teachers[0]


def create_single(name: str, weights: str | Path | None = None, seed: int = 0) -> Teacher:
    """As `create_teacher`, one network; UserError on an ensemble."""
    if len(names.members(name, None)) > 1:
        raise UserError(f"{name} is an ensemble, and one network is wanted here: name one of its members")
    spec = known_teacher(name)
    if weights not in (None, "hub", "random") and (notes := tuned_notes(str(weights))):
        # A whole fine-tuned backbone overwrites what it starts from; adapters belong to their own frozen weights.
        whole = notes["base_sha256"] is None and spec.default != "bootstrap"
        start = create_single(name, "random" if whole else notes["base"], notes.get("base_seed", 0))
        start.source = (notes["base"] or "its default weights") if whole else start.source
        start.licence = notes["licence"]
        return apply_tuned(start, str(weights))
    if weights is None and spec.default == "nowhere":
        hub = ", or `hub` to download" if spec.hub else ""
        raise UserError(f"no package ships weights for {name}: give --teacher-weights FILE{hub}")
    # The initial weights are overwritten: a caller's random numbers must not depend on the teacher.
    with torch.random.fork_rng(devices=[]):
        if weights == "random":
            if spec.default == "name":
                raise UserError(f"{name} holds its weights: they cannot be random")
            torch.manual_seed(seed)
            backbone, source = spec.build(), "random weights, not trained"
        elif weights == "hub" and not spec.hub and spec.default == "nowhere":
            raise UserError(f"no hub is known to have weights for {name}: give --teacher-weights FILE")
        else:
            backbone, source = spec.load(weights)
    licence = spec.licence if weights in (None, "hub") else RANDOM_LICENCE if weights == "random" else USER_LICENCE
    if isinstance(backbone, Bootstrap):
        licence = BOOTSTRAP_LICENCE
    return Teacher(
        backbone,
        name=name,
        template=spec.template,
        metric=spec.metric,
        licence=licence,
        source=source,
    ).eval()
