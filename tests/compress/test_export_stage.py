"""What a run hands to the exporters."""

from pathlib import Path
from types import SimpleNamespace

from compress import artifacts
from compress.config import load_config

FACTS = {
    "teacher": {"name": "dlib_resnet", "method": "none", "bootstrap": False, "licence": None, "params": 1, "macs": 2},
    "data": {"public": {"name": "faces", "licence": "unknown"}, "split": {"train_faces": 3}, "test_name": "others"},
    "distill": {"name": "tiny16", "params": 4, "macs": 5},
}


def test_fixed_pairs_are_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "pairs.csv").write_text("key_a,key_b,same,fold\n")
    monkeypatch.chdir(tmp_path)
    run = SimpleNamespace(facts=FACTS.__getitem__, config=load_config("quick", None, {}, ["data.pairs=pairs.csv"]))
    kit = artifacts._kit(run)
    monkeypatch.chdir("/")
    assert (Path("runs/one") / kit.pairs).samefile(tmp_path / "pairs.csv")
