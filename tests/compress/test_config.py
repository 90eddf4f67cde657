import dataclasses
import json

import pytest

from compress.config import PRESETS, Config, as_dict, known_keys, load_config
from compress.idle import refuse_idle
from faces.errors import UserError
from teachers.settings import READS, Finetune, finetune_settings
from teachers.settings import refuse_idle as refuse_idle_finetune


def load(*settings, preset="quick", file=None, options=None, **top):
    return load_config(preset, file, options or {}, settings, **top)


def toml(tmp_path, text):
    file = tmp_path / "run.toml"
    file.write_text(text)
    return str(file)


def test_quick_is_the_default_configuration_but_for_a_short_fine_tuning():
    quick = load()
    assert quick.teacher.finetune.method == "none"
    assert quick.teacher.finetune.steps < Config().teacher.finetune.steps
    assert dataclasses.replace(quick, teacher=Config().teacher) == Config()


@pytest.mark.parametrize("preset", ["standard", "paper"])
@pytest.mark.parametrize(("name", "method"), [("swin_b", "petalface"), ("dlib_resnet", "octuplet")])
def test_the_other_presets_fine_tune_as_suits_the_teacher(preset, name, method):
    how = load(preset=preset, options={"teacher.name": name}).teacher.finetune
    assert how == finetune_settings(method)
    given = load("teacher.finetune.lr=0.5", preset=preset, options={"teacher.finetune.method": "full"}).teacher.finetune
    assert given == finetune_settings("full", lr=0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_changes_what_it_names_and_nothing_else(preset):
    def flat(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    wanted = dict(flat(as_dict(Config()))) | {"preset": preset} | dict(flat(PRESETS[preset]))
    if preset != "quick":  # there the method depends on the teacher
        wanted |= {f"teacher.finetune.{key}": value for key, value in as_dict(finetune_settings("petalface")).items()}
    assert dict(flat(as_dict(load(preset=preset)))) == wanted


def test_the_paper_preset_is_the_papers_optimiser():
    how = load(preset="paper").distill
    assert (how.optimiser, how.lr, how.batch, how.versions, how.loss) == ("sgd", 1e-3, 256, 16, "regression")


def test_presets_are_not_changed_by_what_is_merged_into_them():
    before = json.dumps(PRESETS)
    load("distill.samples=5", "adapt.steps=7", preset="paper")
    assert json.dumps(PRESETS) == before


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("distill.samples=1_000", lambda c: c.distill.samples == 1000),
        ("distill.lr=1e-2", lambda c: c.distill.lr == 0.01),
        ("distill.loss=regression", lambda c: c.distill.loss == "regression"),
        ('distill.loss="regression"', lambda c: c.distill.loss == "regression"),
        (" data.aligned = true ", lambda c: c.data.aligned is True),
        ("evaluate.px=[24, 12]", lambda c: c.evaluate.px == (24, 12)),
        ("data.pairs=a=b.csv", lambda c: c.data.pairs == "a=b.csv"),
        ("distill.degradation.jpeg=0.5", lambda c: c.distill.degradation.jpeg == 0.5),
        ('data.public=["orl", "faces"]', lambda c: c.data.public == ("orl", "faces")),
        ("data.public=orl", lambda c: c.data.public == ("orl",)),
        ("export.formats=onnx, tflite", lambda c: c.export.formats == ("onnx", "tflite")),
        ("distill.sizes=16", lambda c: c.distill.sizes == (16,)),
        ("distill.sizes=16,32", lambda c: c.distill.sizes == (16, 32)),
        ("distill.sizes=none", lambda c: c.distill.sizes == ()),
        ("teacher.finetune.terms=hhh,lll", lambda c: c.teacher.finetune.terms == ("hhh", "lll")),
        ("teacher.finetune.gate=none", lambda c: c.teacher.finetune.gate is None),
        ("teacher.finetune.contrastive=none", lambda c: c.teacher.finetune.contrastive == "none"),
        ("distill.weights=none", lambda c: c.distill.weights is None),
        ("export.alpha=0.3", lambda c: c.export.alpha == "0.3"),
        ("export.alpha=input", lambda c: c.export.alpha == "input"),
        ("seed=4294967295", lambda c: c.seed == 2**32 - 1),
    ],
)
def test_a_setting_is_read_as_what_it_is(setting, read):
    # Settings of a fine-tuning need one, if only none, and alpha a teacher that is exported.
    assert read(load(setting, "teacher.finetune.method=none", "export.teacher=true"))


def test_a_table_in_a_setting_is_merged_not_put_in_place():
    how = load("distill={samples=512}", options={"distill.student": "tiny32"}).distill
    assert (how.samples, how.student) == (512, "tiny32")


def test_preset_then_file_then_options_then_settings(tmp_path):
    file = toml(tmp_path, 'seed = 5\n[distill]\nsamples = 700\nstudent = "tiny64"\nlr = 0.1\n[adapt]\nsteps = 9\n')
    config = load(
        "distill.lr=0.2", preset="paper", file=file, options={"distill.student": "tiny32", "data.val": None}, seed=3
    )
    assert config.seed == 3  # --seed over the file
    assert config.distill.student == "tiny32"  # an option over the file
    assert config.distill.lr == 0.2  # --set over the file
    assert (config.distill.samples, config.adapt.steps) == (700, 9)  # the file over the preset
    assert config.distill.versions == 16  # the preset over the default
    assert load("seed=4", file=file, seed=3).seed == 4  # --set over an option
    assert load(file=file).seed == 5
    assert load("distill.lr=0.3", "distill.lr=0.4").distill.lr == 0.4  # the last one of two


def test_the_preset_cannot_be_half_chosen(tmp_path):
    for arguments in ({"settings": ["preset=paper"]}, {"file": toml(tmp_path, 'preset = "paper"')}):
        with pytest.raises(UserError, match="--preset paper"):
            load_config("quick", arguments.get("file"), {}, arguments.get("settings", []))
    assert load(preset="paper", file=toml(tmp_path, 'preset = "paper"')).preset == "paper"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("distill.sample", "distill.samples"),
        ("distill.temprature", "distill.temperature"),
        ("samples", "distill.samples"),
        ("devise", "device"),
        ("data.test_shares", "data.test_share"),
        ("distill.degradation.jpg", "distill.degradation.jpeg"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key, nearest):
    with pytest.raises(UserError, match=f"unknown setting '{key}'; did you mean '{nearest}'"):
        load(f"{key}=1")


@pytest.mark.parametrize(
    "text", ["[distil]\nsamples = 5", "[distill]\nsample = 5", "sede = 1", "[distill.samples]\nx = 1"]
)
def test_an_unknown_key_in_a_file_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="unknown setting"):
        load(file=toml(tmp_path, text))


@pytest.mark.parametrize(
    "setting",
    [
        "distill.samples=-1",
        "distill.samples=1.5",
        "distill.samples=many",
        "distill.samples=",
        "distill.lr=0",
        "distill.lr=nan",
        "distill.lr=inf",
        "distill.mode=x",
        "distill.weight_decay=-1",
        "distill.pretrain=1.5",
        "distill.warmup=-0.1",
        "distill.average=1",
        "distill.degradation=7",
        "distill.degradation.jpeg=high",
        "data.test_share=1",
        "distill.degradation.jpeg=1.1",
        "distill.degradation.flip=-0.1",
        "distill.degradation.jpeg_quality=0",
        "distill.degradation.jpeg_quality=101",
        "distill.degradation.rotation=-1",
        "distill.degradation.blur_sigma=inf",
        "distill.lr=true",
        "distill.samples=true",
        "distill.degradation.jpeg=true",
        "distill.sizes=17",
        "data.public=[]",
        "data.public=",
        'data.public=["orl", ""]',
        "data.val=",
        "teacher.weights=",
        "teacher.name=5",
        "teacher.finetune.method=[1]",
        "teacher.finetune.terms=hhh,abc",
        "teacher.finetune.twin=[",
        "teacher.finetune.unlabelled=1",
        "export.alpha=best",
        "export.alpha=1.5",
        "seed=4294967296",
        "x=" + "[" * 100_000,
        "data.aligned=maybe",
        "teacher.views=1",
        "teacher.finetune.method=lore",
        "teacher.finetune.steps=0",
        "teacher.finetune.terms=[]",
        "evaluate.px=[0]",
        "evaluate.px=[16,1025]",
        "evaluate.px=[]",
        "evaluate.folds=1",
        "benchmark.batches=[]",
        "benchmark.threads=0",
        "export.formats=[]",
        'export.formats=["pdf"]',
        "seed=-1",
        "data=5",
        "data.public.x=5",
        "seed.x=5",
        "nothing",
        "=5",
        "preset=fast",
    ],
)
def test_a_wrong_value_is_the_users_mistake(setting):
    with pytest.raises(UserError) as problem:
        load(setting)
    assert str(problem.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_that_do_not_go_together_are_refused(preset):
    with pytest.raises(UserError, match="unlabelled: octuplet alone"):
        load("teacher.finetune.unlabelled=1", preset=preset, options={"teacher.finetune.method": "full"})
    for value in (5, ["a"]):
        with pytest.raises(UserError, match=r"teacher\.weights.* should be a valid string"):
            load(preset=preset, options={"teacher.weights": value})
    with pytest.raises(UserError, match="should be a valid string"):  # a method by the name's sound needs a name
        load("teacher.name=[1]", preset=preset)


def test_how_to_fine_tune_needs_a_fine_tuning():
    with pytest.raises(UserError, match=r"teacher\.finetune\.steps changes nothing without a fine-tuning"):
        load("teacher.finetune.steps=5")
    # Who says none may keep the settings of the others in a file.
    assert load("teacher.finetune.steps=5", options={"teacher.finetune.method": "none"}).teacher.finetune.steps == 5
    assert load("teacher.finetune.steps=5", options={"teacher.finetune.method": "full"}).teacher.finetune.steps == 5


def test_a_setting_that_the_method_does_not_read_is_refused(tmp_path):
    octuplet = {"teacher.finetune.method": "octuplet"}
    with pytest.raises(UserError, match=r"rank changes nothing in octuplet, which reads steps, batch,.* terms,"):
        load("teacher.finetune.rank=4", options=octuplet)
    with pytest.raises(UserError, match="quality changes nothing in lora"):
        load("teacher.finetune.quality=brisque", options={"teacher.finetune.method": "lora"})
    fields = {field.name for field in dataclasses.fields(Finetune)} - {"method"}
    assert {name for names in READS.values() for name in names.split()} - {"method"} == fields
    assert load("teacher.finetune.rank=8", options=octuplet).teacher.finetune.rank == 8  # what it is anyway
    file = tmp_path / "all.toml"  # where one may keep the settings of several methods
    file.write_text("[teacher.finetune]\nrank = 4\n")
    assert load(file=str(file), options=octuplet).teacher.finetune.rank == 4


@pytest.mark.parametrize(
    ("method", "beside", "idle"),
    [
        ("octuplet", ("terms=hhh", "anchor=0"), "copies=1"),
        ("octuplet", (), "singles=false"),
        ("petalface", ("quality=brisque",), "quality_steps=5"),
        ("full", ("low_share=0",), "low_px=7,14"),
        ("qgface", ("both_views=false",), "contrastive=batch"),
        ("qgface", ("contrastive=none",), "contrastive_weight=2"),
        ("qgface", ("partition=false",), "gate=0.5"),
    ],
)
def test_a_setting_that_another_switches_off_is_refused(method, beside, idle):
    options, prefix = {"teacher.finetune.method": method}, "teacher.finetune."
    others = [prefix + one for one in beside]
    load(*others, options=options)
    with pytest.raises(UserError, match=f"^{idle.partition('=')[0]} changes nothing beside "):
        load(*others, prefix + idle, options=options)
    if "anchor=0" in beside:
        load(*others, f"{prefix}relational=1", prefix + idle, options=options)


@pytest.mark.parametrize(
    ("beside", "idle", "unless"),
    [
        ("distill.mode=c", "distill.loss=regression", "distill.mode=dc"),
        ("distill.mode=c", "distill.mimic_weight=2", "distill.mode=s"),
        ("distill.mode=s", "distill.class_loss=arcface", "distill.mode=c"),
        ("distill.mode=s", "distill.pretrain=0.2", "distill.mode=sc"),
        ("distill.loss=regression", "distill.temperature=5", "distill.loss=relational"),
        ("distill.optimiser=sgd", "distill.warmup=0.1", "distill.optimiser=adamw"),
        ("distill.samples=0", "distill.lr=0.1", "distill.samples=64"),
        ("distill.samples=0", "distill.mode=c", "distill.samples=64"),
        ("distill.samples=0", "data.virtual=5", "distill.samples=64"),
        ("distill.samples=0", "teacher.mirror=true", "distill.samples=64"),
        ("distill.samples=0", "adapt.keep=0.5", "distill.samples=64"),
        ("device=cuda", "distill.threads=2", "device=cpu"),
        ("data.val=faces", "data.test_share=0.5", "data.val=none"),
        ("data.pairs=pairs.csv", "evaluate.most=50", "data.pairs=none"),
        ("data.pairs=pairs.csv", "evaluate.folds=2", "data.pairs=none"),
        ("distill.mode=dc", "adapt.keep=1", "distill.mode=s"),
        ("export.teacher=false", "export.alpha=gallery", "export.teacher=true"),
        ("teacher.finetune.method=none", "teacher.checks=9", "teacher.finetune.method=full"),
        ("teacher.name=dlib_resnet", "teacher.views=50", "teacher.name=swin_b"),
    ],
)
def test_what_the_rest_of_the_run_does_not_read_is_refused(beside, idle, unless):
    key = idle.partition("=")[0]
    with pytest.raises(UserError, match=f"^--set {key} changes nothing here: "):
        refuse_idle([load(beside, idle)], [beside, idle])
    refuse_idle([load(unless, idle)], [unless, idle])
    refuse_idle([load(beside, idle), load(unless, idle)], [idle])  # one of a study's rows reads it
    refuse_idle([load(beside, idle)], [beside, idle], spared=[key])
    plain = load(beside)
    for name in key.split("."):
        plain = getattr(plain, name)
    refuse_idle([load(beside, f"{key}={plain}")], [beside, f"{key}={plain}"])  # what it is anyway


def test_copies_of_a_face_each_have_a_size_of_their_own():
    with pytest.raises(UserError, match="3 copies of a face, each of another size, and sizes names 1: set copies=1"):
        load("teacher.finetune.sizes=[7, 7]", options={"teacher.finetune.method": "octuplet"})


def test_sizes_that_no_copy_has_are_told_as_idle_and_not_as_too_few():
    how = finetune_settings("octuplet", terms=("hhh",), anchor=0.0, sizes=(7,))
    with pytest.raises(UserError, match="sizes changes nothing beside terms=hhh"):
        refuse_idle_finetune(how, ["sizes"])


def test_a_wrong_value_is_told_with_its_key_and_value():
    with pytest.raises(UserError, match=r"distill\.samples = -1: .*greater than or equal to 0"):
        load("distill.samples=-1")


@pytest.mark.parametrize("content", [b"x = [", b"\xff\xfe", b"a = 1\na = 2", b"x = " + b"[" * 100_000])
def test_a_broken_file_is_the_users_mistake(tmp_path, content):
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.toml cannot be read"):
        load(file=str(file))
    with pytest.raises(UserError, match=r"none\.toml cannot be read"):
        load(file=str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="cannot be read"):
        load(file=str(tmp_path))


def test_the_configuration_is_frozen():
    config = load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.distill.samples = 1


def test_known_keys_are_all_the_leaves():
    keys = known_keys()
    assert {"seed", "data.public", "distill.degradation.blur_sigma", "benchmark.batches"} <= set(keys)
    assert not {"data", "distill.degradation"} & set(keys)
    assert keys == sorted(set(keys))


def test_a_configuration_survives_json():
    config = load("evaluate.px=[24]", preset="paper")
    stored = json.loads(json.dumps(as_dict(config)))
    assert load_config("paper", None, {}, [f"{k}={json.dumps(v)}" for k, v in _leaves(stored)]) == config


def _leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value
