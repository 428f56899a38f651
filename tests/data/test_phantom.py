"""Phantoms: seeded, labeled, and with masks that lie on their lesions."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume


@pytest.mark.parametrize("label", CLASSES)
def test_slices_are_seeded(label):
    one, same, other = phantom_slice(1, label), phantom_slice(1, label), phantom_slice(2, label)
    np.testing.assert_array_equal(one.image, same.image)
    assert (one.image != other.image).any()
    assert one.mask.any() == (label != "no_tumor")
    assert one.image.dtype == np.uint8


@pytest.mark.parametrize("label", ["meningioma", "pituitary"])
def test_solid_lesions_are_brighter_than_their_surroundings(label):
    phantom = phantom_slice(3, label)
    head = phantom.image > 30
    assert phantom.image[phantom.mask == 1].mean() > 1.5 * np.median(phantom.image[head])


def test_volume_has_its_lesion_in_neighboring_slices():
    phantom = phantom_volume(1, "glioma")
    sick = np.flatnonzero(phantom.mask.any(axis=(0, 1)))
    assert 4 <= len(sick) <= 12
    assert np.ptp(sick) == len(sick) - 1
    assert phantom.scan.plane == "axial"
    assert phantom.scan.spacing_mm == (1, 1, 5)


def test_an_unknown_label():
    with pytest.raises(InputError, match="'zebra' is not one of"):
        phantom_slice(0, "zebra")
