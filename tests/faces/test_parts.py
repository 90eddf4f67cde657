"""Parts of a validation: how they are named, and what values of their pairs say."""

from types import SimpleNamespace

import numpy as np
import pytest

from faces import parts
from faces.errors import UserError
from faces.intervals import pair_interval
from faces.parts import Part, roc_of
from faces.verification import Pairs


@pytest.fixture
def opened(monkeypatch):
    """Faces and pairs are read from nowhere."""
    monkeypatch.setattr(parts, "open_faces", lambda spec: SimpleNamespace(keys=(spec,)))
    monkeypatch.setattr(parts, "read_pairs", lambda file, keys: (str(file), keys))


def test_a_part_is_named_as_its_file_is(opened):
    one, other = parts.open_parts([("a/val.tar", "p.csv"), ("a/other", "q.csv")])
    assert (one.name, other.name) == ("val", "other")
    assert other.pairs == ("q.csv", ("a/other",))


def test_two_parts_of_one_name_are_refused(opened):
    with pytest.raises(UserError, match="two of --val are named 'val'"):
        parts.open_parts([("a/val.tar", "p.csv"), ("b/val.tar", "p.csv")])


def test_values_of_pairs_have_a_mean_an_interval_and_a_roc():
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(20), 3)
    a, b = np.triu_indices(60, 1)
    pairs = Pairs(a, b, identities[a] == identities[b], np.arange(len(a)) % 10)
    values = rng.random(len(a))
    found = Part("made", SimpleNamespace(identities=identities), pairs).interval(values)
    assert found["points"] == pytest.approx(100 * values.mean())
    assert found["ci95"] == pytest.approx([100 * bound for bound in pair_interval(values, pairs, identities)])
    roc = roc_of(values, pairs)
    assert (len(roc.genuine), len(roc.impostor)) == (60, len(a) - 60)
    assert sorted([*roc.genuine, *roc.impostor]) == sorted(values)
