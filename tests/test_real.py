"""The shipped models on real scans. They learned from all of these patients but one (BraTS), so the figures here do not
say how good they are. The model card has figures of networks that never saw their test patients."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tumorlens.classification.trust.calibration import THRESHOLD
from tumorlens.data.augmentation.variants import picture_variants
from tumorlens.data.datasets.folds import split_by_fold
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import read_sample
from tumorlens.data.labels import CLASSES, TUMOR_FREE
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.evaluation.end_to_end import PipelineEvaluation, dice
from tumorlens.pipeline.evaluation.protocols import NONE

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def slices(real):
    """BRISC slices of fold 0."""
    samples = load_samples(real / "brisc")
    return [samples[i] for i in split_by_fold(samples, 0).test]


def figures_of(pipeline, samples):
    evaluation = PipelineEvaluation(NONE, seed=0)
    evaluation.measure({"pipeline": pipeline}, samples, fold=None)
    return evaluation.figures_of(evaluation.cases)["slices"]


def test_slices_end_to_end(pipeline, slices):
    figures = figures_of(pipeline, slices[::18])
    assert figures["n"] > 50
    assert figures["accuracy"]["value"] >= 0.95
    assert figures["dice_tumor"]["value"] >= 0.82


def test_healthy_slices_get_no_mask(pipeline, slices):
    healthy = [sample for sample in slices if sample.label == TUMOR_FREE][::3]
    figures = figures_of(pipeline, healthy)
    assert figures["n"] > 60
    assert figures["false_masks"]["value"] <= 0.05


def test_the_label_survives_another_frame(pipeline, slices):
    """The same head in another picture: size, border, aspect, color, JPEG, lettering."""
    preprocess = Preprocess(pipeline.classifier.input_size)
    same = []
    for sample in slices[5::36]:
        image = read_sample(sample).image
        gray = image if image.ndim == 2 else image[..., 0]
        variants = [gray, *picture_variants(gray).values()]
        probabilities = pipeline.classifier.predict(np.stack([preprocess(v).image for v in variants]))
        positive = 1 - probabilities[:, 0] >= THRESHOLD
        labels = np.where(positive, 1 + probabilities[:, 1:].argmax(axis=1), 0)
        same.extend(labels[1:] == labels[0])
    assert len(same) > 300
    assert np.mean(same) >= 0.98


def test_a_healthy_volume_stays_healthy(pipeline, real):
    (path,) = (real / "volumes" / "healthy").glob("*.nii.gz")
    result = pipeline.run(path)
    assert result.label == CLASSES[0]
    assert not result.mask.any()


@pytest.mark.parametrize("visit", ["pre", "post"])
def test_a_volume_with_a_glioma(pipeline, real, visit):
    folder = real / "volumes" / "progression" / "01"
    result = pipeline.run(folder / f"{visit}_t1.nii.gz")
    truth = np.asarray(nib.load(folder / f"{visit}_mask.nii.gz").dataobj) > 0
    assert result.label == "glioma"
    assert result.mask.shape == truth.shape
    assert dice(result.mask, truth) > 0.55


def test_a_skull_stripped_glioma_of_another_hospital(pipeline, real):
    (path,) = (real / "volumes" / "brats").glob("*t1c*.nii.gz")
    result = pipeline.run(path)
    assert result.label == "glioma"
    assert result.tumor_volume_mm3 > 1000
