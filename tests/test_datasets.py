"""Every layout of a data set that users have."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data.datasets import load_samples, read_mask, read_sample
from data.errors import InputError
from data.labels import canonical_label
from data.phantom import phantom_slice, phantom_volume


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


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
    ("text", "reason"),
    [
        ("picture,label\n", "column image is missing"),
        ("image,label\n", "no rows"),
        ("image,label\nindex.csv,zebra\n", "line 2: label 'zebra'"),
        ("image,label,fold\nindex.csv,glioma,x\n", "line 2"),
        ("image,label,every\nindex.csv,glioma,0\n", "line 2: every"),
    ],
)
def test_broken_index(tmp_path, text, reason):
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        load_samples(tmp_path)


def test_class_folders(tmp_path):
    for folder in ("Training/glioma", "Training/notumor", "Testing/meningioma_tumor", "Testing/Pituitary"):
        save(tmp_path / folder / "1.jpg", phantom_slice(0).image)
    samples = load_samples(tmp_path)
    found = {(s.split, s.label) for s in samples}
    assert found == {("train", "glioma"), ("train", "no_tumor"), ("test", "meningioma"), ("test", "pituitary")}


def test_class_folders_with_a_mapping(tmp_path):
    save(tmp_path / "tumeur" / "1.png", phantom_slice(0).image)
    with pytest.raises(InputError, match="tumeur"):
        load_samples(tmp_path)
    assert load_samples(tmp_path, {"tumeur": "glioma"})[0].label == "glioma"


def test_image_and_mask_folders(tmp_path):
    phantom = phantom_slice(0)
    save(tmp_path / "images" / "a.png", phantom.image)
    save(tmp_path / "images" / "b.png", phantom.image)
    save(tmp_path / "masks" / "a_mask.png", phantom.mask * np.uint8(255))
    samples = load_samples(tmp_path)
    assert [s.mask is not None for s in samples] == [True, False]
    image, mask, aspect = read_sample(samples[0])
    np.testing.assert_array_equal(image, phantom.image)
    np.testing.assert_array_equal(mask, phantom.mask)
    assert aspect == 1


def test_volumes_of_an_index_become_slices(tmp_path):
    phantom = phantom_volume(2, "glioma", shape=(96, 112, 16), spacing_mm=(2, 2, 7.5))
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / "t1.nii.gz")
    nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), tmp_path / "mask.nii.gz")
    (tmp_path / "index.csv").write_text("image,mask,label,patient\nt1.nii.gz,mask.nii.gz,glioma,p\n")
    samples = load_samples(tmp_path)
    sick = [s for s in samples if s.label == "glioma"]
    healthy = [s for s in samples if s.label == "no_tumor"]
    assert len(sick) >= 2
    assert len(healthy) >= 5
    for sample in sick:
        image, mask, _ = read_sample(sample)
        expected = phantom.scan.view(phantom.mask, sample.slice_index)
        np.testing.assert_array_equal(mask, expected)
        assert image.shape == mask.shape
    assert all(s.mask is None for s in healthy)
    (tmp_path / "index.csv").write_text("image,mask,label,patient,every\nt1.nii.gz,mask.nii.gz,glioma,p,3\n")
    assert load_samples(tmp_path) == samples[::3]


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="neither an index"):
        load_samples(tmp_path)
    with pytest.raises(InputError, match="no such data folder"):
        load_samples(tmp_path / "x")


def test_masks_kept_as_jpeg_and_empty_masks(tmp_path):
    mask = phantom_slice(0).mask
    Image.fromarray(mask * np.uint8(255)).save(tmp_path / "m.jpg", quality=70)
    assert (read_mask(tmp_path / "m.jpg") != mask).mean() < 0.005
    save(tmp_path / "e.png", np.zeros((7, 9), np.uint8))
    assert read_mask(tmp_path / "e.png").shape == (7, 9)
    assert not read_mask(tmp_path / "e.png").any()


def test_a_mask_of_another_size_names_both_files(tmp_path):
    save(tmp_path / "images" / "a.png", phantom_slice(0).image)
    save(tmp_path / "masks" / "a.png", np.eye(9, dtype=np.uint8))
    with pytest.raises(InputError, match=r"a\.png: the mask has shape \(9, 9\), its image \(256, 256\)"):
        read_sample(load_samples(tmp_path)[0])


@pytest.mark.parametrize("name", ["notumor", "no_tumor", "No Tumor", "healthy", "NORMAL"])
def test_spellings_of_no_tumor(name):
    assert canonical_label(name) == "no_tumor"


@pytest.mark.real
def test_real_sets(real):
    figshare, brisc = load_samples(real / "figshare"), load_samples(real / "brisc")
    assert (len(figshare), len(brisc)) == (2640, 5228)
    for sample in (*figshare[::400], *brisc[::700]):
        image, mask, _ = read_sample(sample)
        assert (mask is None) == (sample.label == "no_tumor")
        assert mask is None or mask.shape == image.shape[:2]
