"""The data report: its numbers, its page, its folder, and sets that lack things."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.scans.phantoms import small_slice
from tests.scans.pictures import save
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.explore import explore
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import prepare


class Page(HTMLParser):
    """Tags of a page; raises at one that is closed wrongly."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.text, self.links = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(phantom_set, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    return out, explore(phantom_set, out, command="tumorlens data explore x")


def test_the_numbers(report, phantom_set):
    out, numbers = report
    assert numbers == json.loads((out / "report.json").read_text())
    assert numbers["slices"] == 40
    assert numbers["patients"]["n"] == 20
    for name, facts in numbers["classes"].items():
        assert (facts["slices"], facts["patients"], facts["share"]) == (10, 5, 0.25)
        assert facts["masks"] == (0 if name == "no_tumor" else 10)
        assert facts["rows"]["min"] == facts["columns"]["max"] == 96
    assert numbers["classes"]["no_tumor"]["lesion_share_of_head"] is None
    assert [row["slices"] for row in numbers["sizes"]] == [40]
    assert numbers["folds"]["origin"] == "given"
    assert {k: v["slices"] for k, v in numbers["folds"]["table"].items()} == {str(k): 8 for k in range(5)}
    assert numbers["official_split"] is None
    assert numbers["copies"]["alike_pairs"] == 0
    whole = prepare(load_samples(phantom_set), Preprocess())
    gliomas = [i for i, s in enumerate(whole.samples) if s.label == "glioma"]
    heads = [Preprocess()(np.asarray(Image.open(whole.samples[i].image))).head.sum() for i in gliomas]
    shares = [whole.masks[i].sum() / head for i, head in zip(gliomas, heads, strict=True)]
    spread = numbers["classes"]["glioma"]["lesion_share_of_head"]
    assert spread["median"] == pytest.approx(np.median(shares))
    assert spread["max"] == pytest.approx(max(shares))


def test_the_page_needs_nothing_else(report):
    out, numbers = report
    text = (out / "index.html").read_text()
    page = Page(text)
    assert len(page.images) == len(numbers["figures"]) == 10
    for image, file in zip(page.images, sorted(numbers["figures"]), strict=True):
        assert image["alt"]
        assert (out / file).is_file()
    embedded = {base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in page.images}
    assert embedded == {(out / file).read_bytes() for file in numbers["figures"]}
    for png in embedded:
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert picture.shape[1] > 1000
        assert picture.std() > 5
    assert all(link.startswith("data:") for link in page.links)
    assert "<script" not in text
    assert "http:" not in text
    assert "https:" not in text
    assert 'name="viewport"' in text
    assert "@media print" in text
    words = " ".join(page.text)
    assert "nan" not in words.lower().replace("nano", "").split()


@pytest.mark.usefixtures("blank_figures")
def test_a_bad_file_is_left_out_and_named(tmp_path):
    for i in range(3):
        save(tmp_path / "set" / "glioma" / f"{i}.png", small_slice(i).image)
    (tmp_path / "set" / "glioma" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    numbers = explore(tmp_path / "set", tmp_path / "out")
    assert numbers["slices"] == 3
    assert len(numbers["left_out"]) == 1
    assert "bad.png" in numbers["left_out"][0]
    assert "bad.png" in (tmp_path / "out" / "index.html").read_text()
    for i in range(3):
        (tmp_path / "set" / "glioma" / f"{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 4 slices can be read; the first: .*0\.png"):
        explore(tmp_path / "set", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("blank_figures")
def test_masks_without_labels_and_colors_and_one_patient(tmp_path):
    for i in range(3):
        phantom = small_slice(i)
        save(tmp_path / "set" / "images" / f"{i}.png", np.dstack([phantom.image, phantom.image // 2, phantom.image]))
        save(tmp_path / "set" / "masks" / f"{i}.png", phantom.mask * np.uint8(255))
    numbers = explore(tmp_path / "set", tmp_path / "out")
    assert set(numbers["classes"]) == {"tumor"}  # the masks say so
    assert numbers["classes"]["tumor"]["masks"] == numbers["classes"]["tumor"]["color_slices"] == 3
    assert numbers["source_auc"] is None
    assert numbers["folds"]["table"] is None
    assert "figures/folds.png" not in numbers["figures"]
    assert "figures/lesion_sizes.png" in numbers["figures"]
    assert "3 patients are too few for 5 folds" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.usefixtures("blank_figures")
def test_tumors_of_unknown_type_are_a_class_of_the_report(tmp_path):
    for i in range(6):
        label = "no_tumor" if i % 2 else "glioma"
        save(tmp_path / "set" / ("no" if i % 2 else "yes") / f"{i}.png", small_slice(i, label).image)
    numbers = explore(tmp_path / "set", tmp_path / "out")
    assert {name: facts["slices"] for name, facts in numbers["classes"].items()} == {"no_tumor": 3, "tumor": 3}
    assert any("No type of tumor is known" in remark for remark in numbers["remarks"])
    assert "<td>tumor</td>" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.usefixtures("blank_figures")
def test_names_are_not_markup(tmp_path):
    folder = tmp_path / "<script>alert(1)</script>&"
    for i in range(2):
        save(folder / "glioma" / f"<b>{i}.png", small_slice(1).image)
    (folder / "glioma" / "<i>.png").write_bytes(b"")
    explore(folder, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    Page(text)
    assert "<script>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in text


@pytest.mark.usefixtures("blank_figures")
def test_files_of_others_are_left_alone(tmp_path):
    source, out = tmp_path / "set", tmp_path / "out"
    save(source / "glioma" / "1.png", small_slice(1).image)
    save(source / "glioma" / "2.png", small_slice(1).image[:, ::-1])
    explore(source, out)
    assert (out / "figures" / "pairs.png").is_file()
    with pytest.raises(InputError, match="a report is here already; give --overwrite"):
        explore(source, out)
    (source / "glioma" / "2.png").unlink()
    (out / "mine.txt").write_text("mine")
    explore(source, out, overwrite=True)
    assert not (out / "figures" / "pairs.png").exists()  # there are no pairs any more
    assert (out / "mine.txt").read_text() == "mine"
    for name in ("index.html", "report.json", "figures/balance.png"):
        other = tmp_path / f"other-{Path(name).stem}"
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text("{}")
        for overwrite in (False, True):
            with pytest.raises(InputError, match=f"{name}: tumorlens did not write this file and leaves it alone"):
                explore(source, other, overwrite=overwrite)
        assert [p for p in other.rglob("*") if p.is_file()] == [other / name]


@pytest.mark.usefixtures("blank_figures")
def test_where_a_report_cannot_go(tmp_path):
    save(tmp_path / "set" / "glioma" / "1.png", small_slice(1).image)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: this is a file, not a folder; choose another -o"):
        explore(tmp_path / "set", tmp_path / "file")
    for inside in (tmp_path / "set", tmp_path / "set" / "report"):
        with pytest.raises(InputError, match="cannot lie inside the data"):
            explore(tmp_path / "set", inside)
    (tmp_path / "set" / "index.csv").write_text("image,label\nglioma/1.png,glioma\n")
    explore(tmp_path / "set", tmp_path / "set" / "report")
    assert len(load_samples(tmp_path / "set")) == 1


@pytest.mark.real
def test_a_real_set(real, tmp_path):
    rows = (real / "brisc" / "index.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join([rows[0], *rows[1::100]]) + "\n")
    numbers = explore(f"{tmp_path / 'few.csv'}@{real / 'brisc'}", tmp_path / "out")
    assert set(numbers["classes"]) == set(CLASSES)
    assert numbers["left_out"] == []
    shares = [c["lesion_share_of_head"]["median"] for n, c in numbers["classes"].items() if n != "no_tumor"]
    assert all(0.005 < share < 0.1 for share in shares)
