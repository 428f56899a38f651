"""The pipeline on volumes and arrays: which slices are judged, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import InputError
from data.head import tissue_shares
from data.phantom import phantom_slice, phantom_volume
from data.preprocess import Preprocess
from data.scan import Scan


@pytest.fixture(scope="module")
def tall():
    """A volume that reaches beyond the head at both ends, where it shows noise."""
    volume = phantom_volume(7, "meningioma", shape=(96, 112, 44), spacing_mm=(2, 2, 5))
    noise = np.random.default_rng(0).rayleigh(2.5, volume.image.shape)
    return volume, Scan.from_array((volume.image + noise).astype(np.float32), volume.affine)


def test_slices_of_nothing_but_noise_are_not_judged(pipeline, tall):
    volume, scan = tall
    head = np.array([(volume.scan.slice(k) > 40).mean() for k in range(44)])
    judged = {s["index"] for s in pipeline.run(scan).slices}
    assert not judged & set(np.flatnonzero(head < 0.01))
    assert judged >= set(np.flatnonzero(head > 0.5 * head.max()))


def test_tissue_is_measured_against_the_whole_volume(tall):
    _, scan = tall
    air = int(tissue_shares(scan).argmin())
    assert tissue_shares(scan)[air] < 0.01
    assert Preprocess(224)(scan.slice(air)).head_fraction > 0.5  # alone it would look like a head


@pytest.mark.parametrize("shape", [(64, 64), (16, 64, 64)])
def test_arrays_with_nan_are_refused(pipeline, shape):
    voxels = np.random.default_rng(0).normal(size=shape)
    voxels[3] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        pipeline.run(voxels)
    with pytest.raises(InputError, match="NaN or infinite"):
        pipeline.run(Scan.from_array(voxels))


def test_a_path_an_array_and_a_scan_give_the_same(pipeline, tmp_path):
    from PIL import Image

    image = phantom_slice(7, "meningioma").image
    Image.fromarray(image).save(tmp_path / "a.png")
    results = [pipeline.run(source) for source in (tmp_path / "a.png", image, Scan.from_array(image))]
    for result in results[1:]:
        assert result.probabilities == results[0].probabilities
        np.testing.assert_array_equal(result.mask, results[0].mask)
