"""The pipeline on volumes and arrays: which slices are judged, and what is refused."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.preprocessing.head import tissue_shares
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.scan import Scan
from tumorlens.pipeline.outputs.write import write_result


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


def test_the_shown_slice_is_that_of_the_largest_lesion(pipeline, monkeypatch):
    """Not that of the largest area: a flat false piece must not stand for the scan."""
    import tumorlens.pipeline.pipeline as module

    phantom = phantom_volume(7, "meningioma")
    mask = np.zeros(phantom.image.shape, np.uint8)
    mask[60:70, 60:70, 3:9] = 1  # 600 voxels, 100 a slice
    mask[100:115, 100:120, 15] = 1  # 300 voxels in one slice
    monkeypatch.setattr(module.Pipeline, "to_source_grid", lambda *_: mask)
    result = pipeline.run(phantom.scan)
    assert [lesion.voxels for lesion in result.lesions] == [600, 300]
    assert 3 <= result.shown_slice < 9 and result.tumor_area_px == 100


def test_specks_of_a_volume_are_left_out(pipeline, monkeypatch):
    import tumorlens.pipeline.pipeline as module

    phantom = phantom_volume(7, "meningioma")  # voxels of 5 mm3
    mask = np.zeros(phantom.image.shape, np.uint8)
    mask[60:64, 60:65, 3] = 1  # 100 mm3
    mask[100, 100:119, 15] = 1  # 95 mm3
    monkeypatch.setattr(module.Pipeline, "to_source_grid", lambda *_: mask)
    result = pipeline.run(phantom.scan)
    assert [lesion.volume_mm3 for lesion in result.lesions] == [100]
    assert result.mask.sum() == 20


def test_a_volume_of_unknown_orientation_is_sent_to_review(pipeline):
    result = pipeline.run(phantom_volume(7, "meningioma").image)
    assert any("nothing of size and orientation" in reason for reason in result.review)


def test_a_volume_of_known_size_and_unknown_orientation_has_no_side(pipeline, tmp_path):
    phantom = phantom_volume(7, "meningioma")
    image = nib.Nifti1Image(phantom.image, None)
    image.header.set_zooms(np.linalg.norm(phantom.affine[:3, :3], axis=0))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii.gz")
    result = pipeline.run(tmp_path / "a.nii.gz")
    assert any("nothing of orientation" in reason and "no side is known" in reason for reason in result.review)
    assert result.tumor_volume_mm3 > 0 and result.lesions
    assert {(lesion.side, lesion.centroid_ras_mm) for lesion in result.lesions} == {(None, None)}
    content = write_result(result, tmp_path / "out", "a.nii.gz")
    assert content["scan"]["plane"] is None and {"overlay.png", "montage.png"} < set(content["files"])
    mask = nib.load(tmp_path / "out" / "mask.nii.gz").header
    assert (int(mask["qform_code"]), int(mask["sform_code"]), mask.get_xyzt_units()[0]) == (0, 0, "mm")
    assert mask.get_zooms() == image.header.get_zooms()
