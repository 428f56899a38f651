"""The data report: its numbers against independent counts, its page, its folder, and sets that lack things."""

from __future__ import annotations

import base64
import io
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.scans.pictures import save, save_volume
from tumorlens.data.datasets.duplicates import alike_pairs, signatures
from tumorlens.data.datasets.folds import make_folds
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.sweep import Unread, sweep
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.inspection.explore import explore
from tumorlens.data.inspection.numbers import count_copies, folds_of, source_auc
from tumorlens.data.inspection.statistics import BINS, UNLABELED, choose_examples, gray_levels, measure
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
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


def test_means_and_histograms_against_arrays_held_at_once(phantom_set):
    samples = load_samples(phantom_set)
    stats = measure(samples, Preprocess(96))
    whole = prepare(samples, Preprocess(96))
    for name in CLASSES:
        own = whole.labels == CLASSES.index(name)
        sums = stats.sums[name]
        assert np.allclose(sums.image / sums.n, whole.images[own].mean(axis=0))
        assert np.allclose(sums.lesion, whole.masks[own].sum(axis=0))
        assert sums.stored.sum() == pytest.approx(sums.n)
        assert sums.prepared.sum() == pytest.approx(sums.n)
    one = measure(samples[:1], Preprocess(96)).sums["no_tumor"]
    values = np.asarray(Image.open(samples[0].image))
    assert np.allclose(one.stored, np.histogram(values, BINS, (0, 256))[0] / values.size)
    assert np.allclose(stats.signatures, signatures(whole.images), atol=1e-6)


def test_gray_levels():
    eight = np.array([[3, 7]], np.uint8)
    assert gray_levels(eight).tolist() == [[3, 7]]
    assert gray_levels(np.array([[-50, 0], [50, 50]], np.int16)).tolist() == [[0, 127.5], [255, 255]]
    assert gray_levels(np.dstack([eight] * 3)).shape == (1, 2)


def test_examples_are_of_different_patients_first():
    samples = [Sample(Path(f"{i}"), "glioma", patient=f"p{i // 5}") for i in range(20)]
    chosen = choose_examples(samples, 4)
    assert {samples[i].patient for i in chosen} == {"p0", "p1", "p2", "p3"}
    assert len(choose_examples(samples, 6)) == 6
    assert choose_examples(samples, 4, seed=1) != chosen


def test_a_frame_that_gives_the_class_away_is_called_out(tmp_path):
    for i in range(6):
        healthy = phantom_slice(i, "no_tumor", size=96, pixel_mm=2.3).image
        save(tmp_path / "set" / "notumor" / f"{i}.png", healthy[:, :80] if i else healthy)
        save(tmp_path / "set" / "glioma" / f"{i}.png", phantom_slice(50 + i, "glioma", size=96, pixel_mm=2.3).image)
    stats = measure(load_samples(tmp_path / "set"), Preprocess(64))
    areas = source_auc(stats)
    assert areas["columns"] == pytest.approx((5 + 0.5) / 6)  # five of six told apart, one tied with all
    assert areas["rows"] == 0.5
    numbers = explore(tmp_path / "set", tmp_path / "out")
    assert any("tells healthy from sick by its" in remark and "columns" in remark for remark in numbers["remarks"])
    assert any("No slice shows meningioma, pituitary" in remark for remark in numbers["remarks"])
    assert any("The patient of 12 slices is not known" in remark for remark in numbers["remarks"])
    assert any("No slice has a mask" in remark for remark in numbers["remarks"])


def test_copies_and_the_borders_they_cross():
    images = [phantom_slice(s, "glioma").image for s in range(4)]
    images += [images[0][:, ::-1], images[1]]
    patients = ["a", "b", "c", "d", "e", "b"]
    splits = ["train", "train", "train", "test", "test", "test"]
    labels = ["glioma"] * 4 + ["pituitary", "glioma"]
    samples = [
        Sample(Path(f"{i}.png"), labels[i], patients[i], fold=(0, 0, 1, 2, 1, 0)[i], split=splits[i]) for i in range(6)
    ]
    marks = signatures(np.stack([Preprocess()(image).image for image in images]))
    stats = measure([], Preprocess())
    stats.samples, stats.signatures = samples, marks
    numbers = count_copies(samples, alike_pairs(marks), folds_of(stats))
    expected = {"alike_pairs": 2, "alike_slices": 4, "mirrored_pairs": 1, "pairs_of_two_patients": 1}
    expected |= {"pairs_of_two_labels": 1, "pairs_across_folds": 1, "pairs_across_official_split": 2}
    expected |= {"test_slices_with_a_copy_in_training": 2, "patients_across_official_split": 1}
    expected |= {"patients_across_folds": 0, "equal_files": 0, "pairs_without_patient": 0}
    assert {key: numbers[key] for key in expected} == expected


def test_folds_that_training_would_make(phantom_set):
    from dataclasses import replace

    samples = [replace(sample, fold=None) for sample in load_samples(phantom_set)]
    made = folds_of(measure(samples, Preprocess(64)))
    assert made.origin == "made"
    assert made.numbers == make_folds(samples)
    few = folds_of(measure(samples[:6], Preprocess(64)))
    assert few.numbers is None
    assert few.reason == "3 patients are too few for 5 folds"


def test_a_bad_file_is_left_out_and_said(tmp_path):
    for i in range(3):
        save(tmp_path / "set" / "glioma" / f"{i}.png", phantom_slice(i).image)
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


def test_masks_without_labels_and_colors_and_one_patient(tmp_path):
    for i in range(3):
        phantom = phantom_slice(i, size=96, pixel_mm=2.3)
        save(tmp_path / "set" / "images" / f"{i}.png", np.dstack([phantom.image, phantom.image // 2, phantom.image]))
        save(tmp_path / "set" / "masks" / f"{i}.png", phantom.mask * np.uint8(255))
    numbers = explore(tmp_path / "set", tmp_path / "out")
    assert set(numbers["classes"]) == {UNLABELED}
    assert numbers["classes"][UNLABELED]["masks"] == numbers["classes"][UNLABELED]["color_slices"] == 3
    assert numbers["source_auc"] is None
    assert numbers["folds"]["table"] is None
    assert "figures/folds.png" not in numbers["figures"]
    assert "figures/lesion_sizes.png" in numbers["figures"]
    assert "3 patients are too few for 5 folds" in (tmp_path / "out" / "index.html").read_text()


def test_volumes_are_opened_once_and_no_neighbour_is_a_copy(tmp_path, monkeypatch):
    phantom = phantom_volume(7, "glioma", shape=(72, 90, 20), spacing_mm=(2.6, 2.4, 9))
    source = tmp_path / "set"
    save_volume(source / "t1.nii.gz", phantom)
    nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), source / "mask.nii.gz")
    (source / "index.csv").write_text("image,mask,label\nt1.nii.gz,mask.nii.gz,glioma\n")
    samples = load_samples(source)
    whole = prepare(samples, Preprocess(64))
    opened = []
    os.utime(source / "t1.nii.gz", (1, 1))  # another file than the one that is kept open
    for module in ("datasets.sample", "masks.read"):
        monkeypatch.setattr(
            f"tumorlens.data.{module}.open_scan", lambda path, **how: opened.append(path) or open_scan(path, **how)
        )
    swept = list(sweep(samples, Preprocess(64)))
    assert sorted(path.name for path in opened) == ["mask.nii.gz", "t1.nii.gz"]
    for slice_, image, mask in zip(swept, whole.images, whole.masks, strict=True):
        assert np.array_equal(slice_.prepared.image, image)
        assert np.array_equal(np.zeros_like(mask) if slice_.mask is None else slice_.mask, mask)
    numbers = explore(source, tmp_path / "out")
    assert numbers["files"] == 1
    assert numbers["slices"] == len(samples)
    assert numbers["copies"]["alike_pairs"] == 0
    (source / "t1.nii.gz").write_bytes(b"")
    broken = list(sweep(samples, Preprocess(64)))
    assert len(broken) == len(samples)
    assert all(isinstance(slice_, Unread) and "t1.nii.gz" in slice_.reason for slice_ in broken)


def test_names_are_no_markup(tmp_path):
    folder = tmp_path / "<script>alert(1)</script>&"
    for i in range(2):
        save(folder / "glioma" / f"<b>{i}.png", phantom_slice(1).image)
    (folder / "glioma" / "<i>.png").write_bytes(b"")
    explore(folder, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    Page(text)
    assert "<script>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in text


def test_files_of_others_are_left_alone(tmp_path):
    source, out = tmp_path / "set", tmp_path / "out"
    save(source / "glioma" / "1.png", phantom_slice(1).image)
    save(source / "glioma" / "2.png", phantom_slice(1).image[:, ::-1])
    explore(source, out)
    assert (out / "figures" / "pairs.png").is_file()
    with pytest.raises(InputError, match="a report is here already; give --overwrite"):
        explore(source, out)
    (source / "glioma" / "2.png").unlink()
    (out / "mine.txt").write_text("mine")
    explore(source, out, overwrite=True)
    assert not (out / "figures" / "pairs.png").exists()  # of the earlier report, and there are no pairs any more
    assert (out / "mine.txt").read_text() == "mine"
    for name in ("index.html", "report.json", "figures/balance.png"):
        other = tmp_path / f"other-{Path(name).stem}"
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text("{}")
        for overwrite in (False, True):
            with pytest.raises(InputError, match=f"{name}: tumorlens did not write this file and leaves it alone"):
                explore(source, other, overwrite=overwrite)
        assert [p for p in other.rglob("*") if p.is_file()] == [other / name]


def test_where_a_report_cannot_go(tmp_path):
    save(tmp_path / "set" / "glioma" / "1.png", phantom_slice(1).image)
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
