"""An index is read row by row, and INDEX@FOLDER is split at the right @ for any names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.scans.phantoms import small_slice
from tests.scans.pictures import save
from tumorlens.data.datasets.index import find_index
from tumorlens.data.datasets.load import list_rows, load_samples
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.check import check_set
from tumorlens.data.inspection.divide import divide

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


def test_without_the_folder_the_last_index_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    for name in ("x/a", "x/a@b.csv"):
        Path(name).touch()
    assert find_index("x/a@b.csv@data@1") == (Path("x/a@b.csv"), Path("data@1"))
    assert find_index("x/c@d") == (None, Path("x/c@d"))


def test_index(phantom_set):
    samples = load_samples(phantom_set)
    assert len(samples) == 40
    assert {s.label for s in samples} == {"no_tumor", "glioma", "meningioma", "pituitary"}
    assert samples[0].mask is None
    assert samples[2].mask.is_file()
    assert {s.fold for s in samples} == set(range(5))
    assert load_samples(phantom_set / "index.csv") == samples


def test_index_with_its_images_elsewhere(phantom_set, tmp_path):
    index = tmp_path / "mine.csv"
    index.write_text((phantom_set / "index.csv").read_text())
    assert len(load_samples(f"{index}@{phantom_set}")) == 40
    with pytest.raises(InputError, match="line 2: no such file"):
        load_samples(index)


@pytest.mark.parametrize(
    ("text", "reason"), [("picture,label\n", "column image is missing"), ("image,label\n,,\n", "the index has no rows")]
)
def test_an_index_without_a_row(tmp_path, text, reason):
    (tmp_path / "index.csv").write_text(text)
    for read in (load_samples, check_set):
        with pytest.raises(InputError, match=reason):
            read(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("image,label\nindex.csv,2\n", "unknown_label", "line 2: label '2' is a number"),
        ("image,label,fold\nindex.csv,glioma,x\n", "bad_row", "line 2: fold 'x' is not a whole number from 0 on"),
        ("image,label,fold\nindex.csv,glioma,-1\n", "bad_row", "line 2: fold '-1'"),
        ("image,label,every\nindex.csv,glioma,0\n", "bad_row", "line 2: every '0'"),
        ("image,label\n,glioma\n", "bad_row", "line 2: image is empty"),
        ("image,label\n,,\nx.png,glioma\n", "missing_file", "line 3: no such file .*x.png"),
        ("image,label,mask\nindex.csv,glioma,m.png\n", "missing_file", "line 2: no such file .*m.png"),
        (
            "image,label,channel\nindex.csv,glioma,3\n",
            "bad_row",
            "line 2: channel '3' is not a whole number from 0 to 2",
        ),
        ("image,label,channel\nindex.csv,glioma,-1\n", "bad_row", "line 2: channel '-1' is not a whole number"),
        ("image,label,channel\nindex.csv,glioma,x\n", "bad_row", "line 2: channel 'x' is not a whole number"),
    ],
)
def test_a_broken_row_stops_a_training_and_is_reported_by_the_check(tmp_path, text, kind, reason):
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(InputError, match=f"index.csv {reason}.*; `tumorlens data check` lists all that is wrong"):
        load_samples(tmp_path)
    (finding,) = check_set(tmp_path).of(kind)
    assert re.match(reason, finding)


def test_the_first_broken_row_is_named_and_all_are_reported(tmp_path):
    save(tmp_path / "a.png", small_slice(1).image)
    (tmp_path / "index.csv").write_text("image,label,fold\na.png,2,x\nb.png,glioma,0\na.png,glioma,0\n")
    with pytest.raises(InputError, match=r"line 2: label '2' .*; `tumorlens data check` lists all 3 problems"):
        load_samples(tmp_path)
    found = {
        kind: check_set(tmp_path).of(kind) for kind in ("unknown_label", "bad_row", "missing_file", "repeated_row")
    }
    assert {kind: len(texts) for kind, texts in found.items()} == dict.fromkeys(found, 1)
    assert found["repeated_row"] == ["line 4: a.png is in line 2 already"]


def test_an_index_in_another_encoding(tmp_path):
    (tmp_path / "index.csv").write_bytes("image,label\né.png,glioma\n".encode("utf-16"))
    with pytest.raises(InputError, match="this is not a CSV file in UTF-8"):
        load_samples(tmp_path)


def test_a_row_may_name_a_channel(tmp_path):
    save(tmp_path / "x.png", np.dstack([small_slice(1).image] * 3))
    for text, channel in (("", None), ("2", 2)):
        (tmp_path / "index.csv").write_text(f"image,label,channel\nx.png,glioma,{text}\n")
        assert load_samples(tmp_path)[0].channel == channel
        assert load_samples(tmp_path, channel=0)[0].channel == 0


def test_an_unknown_split_is_reported_and_stops_nothing(tmp_path):
    save(tmp_path / "1.png", small_slice(1).image)
    (tmp_path / "index.csv").write_text("image,label,split\n1.png,glioma,holdout\n")
    (text,) = check_set(tmp_path).of("bad_row")
    assert text == "line 2: split 'holdout' is not train, validation or test and counts as train"
    assert [sample.split for sample in load_samples(tmp_path)] == [""]


@pytest.mark.parametrize("column", ["fold", "every", "channel"])
def test_a_number_of_thousands_of_digits_is_reported(tmp_path, column):
    save(tmp_path / "1.png", np.eye(40, dtype=np.uint8))
    (tmp_path / "index.csv").write_text(f"image,label,{column}\n1.png,glioma,{'1' * 6000}\n")
    with pytest.raises(InputError, match=rf"line 2: {column} '1{{40}}' is not a whole number") as caught:
        load_samples(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("cells", [f"{'a' * 300}.png,", f"1.png,{'b' * 5000}.png"], ids=["image", "mask"])
def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path, cells):
    save(tmp_path / "1.png", np.eye(40, dtype=np.uint8))
    (tmp_path / "index.csv").write_text(f"image,mask,label\n{cells},glioma\n")
    with pytest.raises(InputError, match="line 2: no such file"):
        load_samples(tmp_path)
