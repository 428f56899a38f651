"""The probe tells classifiers that look at the brain from those that look at the frame, the outline or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from PIL import Image

from tumorlens.classification import shortcut
from tumorlens.classification.predict import Look
from tumorlens.classification.shortcut import probe
from tumorlens.data.augmentation.variants import picture_variants
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import read_sample
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess

SIZE = 96


@dataclass(frozen=True)
class Judge:
    """Stands for a classifier: the tumor probability is a function of the prepared slice, so the truth is known."""

    rule: object
    input_size: int = SIZE
    tumor_threshold: float = 0.5

    def predict(self, images):
        tumor = np.array([float(self.rule(image)) for image in images])
        return np.stack([1 - tumor, tumor, 0 * tumor, 0 * tumor], axis=1).astype(np.float32)

    def look(self, images):
        return Look(np.log(self.predict(images).clip(1e-6)), None, None)

    def labels(self, probabilities):
        return np.where(probabilities[:, 1] >= self.tumor_threshold, 1, 0)

    def judge(self, prepared):
        labels = self.labels(self.predict([p.image for p in prepared]))
        return np.where([p.head_fraction > 0 for p in prepared], labels, -1)


def brightest(image):
    """Reads the brain: phantoms' lesions are its largest bright part."""
    inner = image[SIZE // 5 : -SIZE // 5, SIZE // 5 : -SIZE // 5]
    return (inner > 170).mean() > 0.03


def outline(image):
    """Reads the head's outline."""
    return (image > 0).mean()


@pytest.fixture(scope="module")
def set_of(tmp_path_factory):
    """A set by whether its healthy heads are narrow, so that the outline shows the source."""

    @cache
    def make(narrow):
        folder = tmp_path_factory.mktemp("set")
        rows = ["image,mask,label,patient"]
        for seed in range(24):
            label = "meningioma" if seed % 2 else "no_tumor"
            phantom = phantom_slice(seed, label)
            image, mask = phantom.image, phantom.mask * np.uint8(255)
            if narrow and label == "no_tumor":
                image = np.asarray(Image.fromarray(image).resize((170, 256)))
                mask = np.zeros_like(image)
            Image.fromarray(image).save(folder / f"{seed}.png")
            Image.fromarray(mask).save(folder / f"{seed}_mask.png")
            rows.append(f"{seed}.png,{seed}_mask.png,{label},p{seed}")
        (folder / "index.csv").write_text("\n".join(rows) + "\n")
        return load_samples(folder)

    return make


@pytest.fixture(autouse=True)
def dozen_of_slices_in_frames(monkeypatch):
    """Each slice in a dozen frames takes most of the time."""
    monkeypatch.setattr(shortcut, "_FRAMED", 12)


@pytest.fixture
def few_frames(monkeypatch):
    """For tests that look neither at the frames nor at the intervals."""
    monkeypatch.setattr(shortcut, "_FRAMED", 3)
    monkeypatch.setattr(shortcut, "_DRAWS", 20)


def test_a_classifier_that_reads_the_brain_passes(set_of):
    report = probe(Judge(brightest), set_of(narrow=False))
    assert report["blanked"]["auc"]["flat"]["value"] == pytest.approx(0.5, abs=0.1)
    assert report["blanked"]["n_healthy"] == report["blanked"]["n_sick"] == 12
    assert report["frames"]["kept"]["value"] > 0.9
    before, after = (report["erased"][f"tumor_probability_{when}"]["value"] for when in ("before", "after"))
    assert before > 0.8 > 0.3 > after


def test_a_classifier_that_reads_the_outline_is_caught(set_of, few_frames):
    report = probe(Judge(outline), set_of(narrow=True))
    assert report["blanked"]["worst"] > 0.95
    assert report["blanked"]["passed"] is None, "a dozen of each is too few to pass or to fail"
    assert report["erased"]["tumor_probability_after"]["value"] == pytest.approx(
        report["erased"]["tumor_probability_before"]["value"], abs=0.02
    )


def test_saturated_probabilities_hide_nothing(set_of, few_frames):
    """A network that is sure of every blanked head still ranks them."""

    class Sure(Judge):
        def logits(self, images):
            outlines = np.array([outline(image) for image in images])
            return np.stack([-40 - 10 * outlines, *(0 * outlines,) * 3], axis=1)

    assert probe(Sure(outline), set_of(narrow=True))["blanked"]["worst"] > 0.95


def test_enough_slices_pass_or_fail(set_of, few_frames, monkeypatch):
    monkeypatch.setattr(shortcut, "_LEAST", 10)
    assert probe(Judge(outline), set_of(narrow=True))["blanked"]["passed"] is False
    assert probe(Judge(lambda image: image[0, 0] > 300), set_of(narrow=True))["blanked"]["passed"] is True


def test_a_score_that_is_always_wrong_is_caught_as_well(set_of, few_frames):
    report = probe(Judge(lambda image: 1 - outline(image)), set_of(narrow=True))
    assert min(a["value"] for a in report["blanked"]["auc"].values()) < 0.05
    assert report["blanked"]["worst"] > 0.95


def test_a_classifier_that_reads_the_frame_is_caught(set_of):
    """Sharpness says how a picture was stored."""
    samples = set_of(narrow=False)

    def sharpness(image):
        return np.abs(np.diff(image.astype(float), axis=1)).mean()

    preprocess = Preprocess(SIZE)
    usual = np.median([sharpness(preprocess(read_sample(s).image).image) for s in samples])
    report = probe(Judge(lambda image: sharpness(image) > usual), samples)
    kept = report["frames"]["kept"]
    assert kept["low"] < kept["value"] < kept["high"]
    assert kept["value"] < 0.99
    assert not report["frames"]["passed"]
    assert set(report["frames"]["by_frame"]) == set(picture_variants(np.zeros((64, 64), np.uint8)))


def test_a_slice_that_is_refused_with_and_without_a_frame_keeps_no_label(set_of):
    """Half of the slices are refused as they are; of those, one frame in twelve is judged, which is another answer."""

    class Refusing(Judge):
        def judge(self, prepared):
            labels = np.zeros(len(prepared), np.int64)
            if self.rule(prepared[0].image):
                labels[:] = -1
                labels[1] = 0
            return labels

    samples = [s for s in set_of(narrow=False) if s.label != "no_tumor"][:8]
    preprocess = Preprocess(SIZE)
    means = np.array([preprocess(read_sample(s).image).image.mean() for s in samples])
    frames = probe(Refusing(lambda image: image.mean() > np.median(means)), samples)["frames"]
    refused = 4 * 11  # slices, frames
    assert frames["refused_in_both"] == refused
    assert frames["kept"]["value"] == pytest.approx(4 * 12 / (8 * 12 - refused))
    assert frames["kept"]["low"] < frames["kept"]["value"] < frames["kept"]["high"]
    assert [f["value"] for f in frames["by_frame"].values()] == [0.5] + 11 * [1.0]
    assert frames["passed"] is False
    nothing = probe(Refusing(lambda image: True), samples[:1])["frames"]
    assert (nothing["kept"]["value"], nothing["refused_in_both"]) == (0.0, 11)

    class Blind(Judge):
        def judge(self, prepared):
            return np.full(len(prepared), -1)

    blind = probe(Blind(brightest), samples)["frames"]
    assert (blind["kept"], blind["passed"], blind["refused_in_both"]) == (None, None, 8 * 12)


def test_parts_that_a_set_does_not_allow(set_of, few_frames):
    samples = set_of(narrow=False)
    sick = [s for s in samples if s.label != "no_tumor"]
    assert probe(Judge(brightest), sick)["blanked"] is None
    healthy = [s for s in samples if s.label == "no_tumor"]
    assert probe(Judge(brightest), healthy)["erased"] is None
    assert probe(Judge(brightest), []) == {"blanked": None, "frames": None, "erased": None}


def test_progress_reaches_its_end(set_of, few_frames):
    steps = []
    probe(Judge(brightest), set_of(narrow=False), progress=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] == len(steps)
