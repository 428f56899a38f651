"""Lesions moved between heads: label and mask follow, seams say nothing, nobody is donor to themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.augmentation.augment import Augment
from tumorlens.data.augmentation.transplant import Donors, expected_counts
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.masks.boxes import LESION, UNKNOWN, box_truth, fill_boxes
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.loaders import SliceDataset
from tumorlens.data.training.prepared import PreparedSet

N = 24


class Of:
    """A sample of which only the patient matters."""

    source = 0
    sequence = ""

    def __init__(self, patient, weak=False):
        self.patient, self.weak = patient, weak


@pytest.fixture(scope="module")
def heads():
    """Phantoms of all classes, one patient each."""
    preprocess = Preprocess(96)
    images, masks, labels = [], [], []
    for k in range(N):
        phantom = phantom_slice(500 + k, CLASSES[k % 4])
        prepared = preprocess(phantom.image)
        images.append(prepared.image)
        masks.append(preprocess.mask_to_input(phantom.mask, prepared.placement))
        labels.append(k % 4)
    return np.stack(images), np.stack(masks), np.array(labels), [f"p{k}" for k in range(N)]


@pytest.fixture(scope="module")
def donors(heads):
    return Donors(*heads)


def outcomes(donors, index, seeds=60):
    return [donors.transplant(index, seed) for seed in range(seeds)]


def test_a_sick_slice_is_healed_or_grafted(heads, donors):
    images, masks, labels, _ = heads
    healed = 0
    for image, mask, label, whose in outcomes(donors, 1):
        assert whose == 1
        if label == NO_TUMOR:
            healed += 1
            assert not mask.any()
            lesion = masks[1] > 0
            assert (image[lesion] != images[1][lesion]).mean() > 0.5
        else:
            assert label == labels[1]
            np.testing.assert_array_equal(mask, masks[1])
            np.testing.assert_array_equal(image[masks[1] > 0], images[1][masks[1] > 0])
    assert 20 < healed < 60


def test_a_healthy_slice_gets_a_lesion_of_its_donors_type(heads, donors):
    images, masks, labels, _ = heads
    planted = 0
    for image, mask, label, whose in outcomes(donors, 0):
        if label == NO_TUMOR:
            assert not mask.any()
            continue
        planted += 1
        assert labels[whose] == label and (masks[whose] == mask).all()
        assert (image[mask > 0] != images[0][mask > 0]).mean() > 0.5
        far = np.abs(image.astype(int) - images[0])[mask == 0]
        assert (far > 0).mean() < 0.6  # the rest of the head stays
    assert planted > 10


def test_the_same_seed_gives_the_same_picture(donors):
    for a, b in zip(outcomes(donors, 2, 10), outcomes(donors, 2, 10), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[2] == b[2]


def test_nobody_is_donor_to_themselves(heads):
    images, masks, labels, _ = heads
    alone = Donors(images, masks, labels, ["one"] * N)
    for index in range(4):
        image, mask, label, _ = alone.transplant(index, 3)
        np.testing.assert_array_equal(image, images[index])
        np.testing.assert_array_equal(mask, masks[index])
        assert label == labels[index]


def test_a_tumor_without_a_mask_is_left_as_it_is(heads):
    images, masks, labels, patients = heads
    unknown = masks.copy()
    unknown[1] = 0
    donors = Donors(images, unknown, labels, patients)
    for image, mask, label, _ in outcomes(donors, 1, 20):
        np.testing.assert_array_equal(image, images[1])
        assert label == labels[1]
        assert not mask.any()


def test_training_items_follow_the_transplant(heads):
    """Mask and label of an item are those of what was made, through augmentation and all."""
    images, masks, labels, patients = heads

    prepared = PreparedSet([Of(p) for p in patients], images, masks, labels)
    plain = SliceDataset(prepared, None, seed=1)
    moved = SliceDataset(prepared, None, seed=1, transplant=1.0)
    changed = 0
    for k in range(N):
        before, after = plain[(0, k)], moved[(0, k)]
        changed += bool((before["image"] != after["image"]).any())
        assert bool(after["mask"].any()) == (int(after["label"]) != NO_TUMOR)
    assert changed > N // 2


def test_transplants_of_boxes_stay_right(heads):
    """A box goes with its lesion: an item has a core where its label is a tumor, and what is certain is right."""
    images, masks, labels, patients = heads
    boxes = np.stack([fill_boxes(mask) for mask in masks])
    outlined = PreparedSet([Of(p) for p in patients], images, masks, labels)
    weak = PreparedSet(
        [Of(p, i % 2 == 0) for i, p in enumerate(patients)],
        images,
        np.where(np.arange(N)[:, None, None] % 2 == 0, boxes, masks),
        labels,
    )
    truth = SliceDataset(outlined, None, seed=1)
    moved = SliceDataset(weak, None, seed=1, transplant=1.0)
    left_open = 0
    for k in range(N):
        item = moved[(0, k)]
        mask = item["mask"].numpy()
        assert bool((mask == LESION).any()) == (int(item["label"]) != NO_TUMOR)
        left_open += bool((mask == UNKNOWN).any())
        if (item["image"] == truth[(0, k)]["image"]).all():
            np.testing.assert_array_equal(mask, box_truth(boxes[k]) if k % 2 == 0 else masks[k])
    assert left_open


def test_class_weights_account_for_transplants(heads):
    images, masks, labels, patients = heads
    prepared = SliceDataset(PreparedSet([Of(p) for p in patients], images, masks, labels), None, 3, transplant=0.5)
    shown = [int(prepared[(epoch, k)]["label"]) for epoch in range(60) for k in range(N)]
    counted = np.bincount(shown, minlength=4) / 60
    expected = expected_counts(labels, masks, 0.5, 4)
    assert expected[0] == pytest.approx(counted[0], abs=1)  # some slices find no donor, and donors are similar heads
    np.testing.assert_allclose(expected, counted, atol=2)
    assert expected.sum() == pytest.approx(N)
    none = np.zeros_like(masks)
    np.testing.assert_array_equal(expected_counts(labels, none, 0.5, 4), np.bincount(labels))
    few = masks * (np.arange(N) % 8 == 1)[:, None, None]  # half of the gliomas are outlined, nothing else is
    counts = expected_counts(labels, few.astype(np.uint8), 0.3, 4)
    assert counts.sum() == N
    assert counts[2] == counts[3] == N / 4
    assert counts[1] == N / 4 - 3 * 0.2 + 6 * 0.2


def test_turned_slices_turn_their_masks(heads):
    images, masks, _, _ = heads
    straight, turned = Augment(0.0, turn=0.0), Augment(0.0, turn=1.0)
    turns = set()
    for seed in range(30):
        a, b = straight(images[1], masks[1], seed), turned(images[1], masks[1], seed)
        quarters = [k for k in range(4) if (np.rot90(a[0], k) == b[0]).all() and (np.rot90(a[1], k) == b[1]).all()]
        assert quarters
        turns.add(quarters[0])
    assert turns == {1, 2, 3}
