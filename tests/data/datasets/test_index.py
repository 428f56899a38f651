"""INDEX@FOLDER is parted at the right @, whatever the names hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tumorlens.data.datasets.index import find_index, index_at
from tumorlens.data.datasets.load import list_rows, load_samples
from tumorlens.data.inspection.divide import divide
from tumorlens.pipeline.evaluation.leaks import OTHER, SAME, kinship

NAMES = ("plain/index.csv@plain", "a@b/index.csv@plain", "plain/mine@2.csv@c@d", "a@b/index.csv@c@d", "a@b", "@/@")


@pytest.fixture
def sets(phantom_set, tmp_path, monkeypatch):
    """The same set in folders of all kinds of names, and indexes of all kinds beside it."""
    for name in ("plain", "a@b", "c@d", "@/@"):
        shutil.copytree(phantom_set, tmp_path / name)
    shutil.copy(phantom_set / "index.csv", tmp_path / "plain" / "mine@2.csv")
    (tmp_path / "c@d" / "index.csv").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", NAMES)
def test_names_with_an_at_sign_are_read(sets, source):
    root = Path(source if "@/@" in source or source == "a@b" else source.partition(".csv@")[2])
    for name in (source, str(sets / source)) if ".csv" not in source else (source,):
        samples = load_samples(name)
        assert len(samples) == 40
        assert len(list_rows(name).rows) == 40
    assert find_index(source)[1] == root
    assert samples[0].image.resolve().is_relative_to((sets / root).resolve())


def test_a_divided_set_may_have_an_at_sign(sets):
    assert divide("a@b").root == Path("a@b")


def test_where_nothing_is_there_the_last_index_counts():
    assert index_at("x/a@b.csv@data@1", lambda path: path.suffix == ".csv") == (Path("x/a@b.csv"), Path("data@1"))
    assert index_at("x/a@b") is None
    assert find_index("x/a@b") == (None, Path("x/a@b"))


def test_cards_of_other_machines_are_parted_as_well():
    assert kinship("new/one.csv@there/set@2", ["old/one.csv@here/set@2"]) == SAME
    assert kinship("new/one.csv@there/set@2", ["old/one.csv@here/set@3"]) == OTHER
    assert kinship("a@b/one.csv@set@2", ["one.csv@x/set@2"]) == SAME
