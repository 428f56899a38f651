"""Every layout of a data set that users have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.scans.phantoms import save_mat, small_slice
from tests.scans.pictures import save
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample, has_truth, read_sample
from tumorlens.data.datasets.sweep import sweep
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.read import read_mask, read_volume_mask
from tumorlens.data.masks.regions import Regions
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.scan import Scan
from tumorlens.data.spellings import canonical_label
from tumorlens.data.training.prepared import prepare


def test_a_mapping_to_nothing_is_blamed_itself():
    with pytest.raises(InputError, match="label 'a' is a number"):
        canonical_label("a", {"a": "7"})


def test_class_folders(tmp_path):
    for folder in ("Training/glioma", "Training/notumor", "Testing/meningioma_tumor", "Testing/Pituitary"):
        save(tmp_path / folder / "1.jpg", small_slice(0).image)
    samples = load_samples(tmp_path)
    found = {(s.split, s.label) for s in samples}
    assert found == {("train", "glioma"), ("train", "no_tumor"), ("test", "meningioma"), ("test", "pituitary")}


def test_class_folders_with_a_mapping(tmp_path):
    save(tmp_path / "tumeur" / "1.png", small_slice(0).image)
    with pytest.raises(InputError, match="tumeur"):
        load_samples(tmp_path)
    assert load_samples(tmp_path, {"tumeur": "glioma"})[0].label == "glioma"


def test_image_and_mask_folders(tmp_path):
    phantom = small_slice(0)
    save(tmp_path / "images" / "a.png", phantom.image)
    save(tmp_path / "images" / "b.png", phantom.image)
    save(tmp_path / "masks" / "a_mask.png", phantom.mask * np.uint8(255))
    samples = load_samples(tmp_path)
    assert [s.mask is not None for s in samples] == [True, False]
    assert [s.label for s in samples] == ["tumor", ""]  # nobody says that b has no lesion
    reading = read_sample(samples[0])
    np.testing.assert_array_equal(reading.image, phantom.image)
    np.testing.assert_array_equal(reading.mask, phantom.mask)
    assert reading.aspect == 1


def test_a_mask_that_belongs_to_no_image_is_named(tmp_path):
    """Else its image, whose name differs, would teach that there is no lesion."""
    for name in ("a", "b", "c"):
        save(tmp_path / "images" / f"{name}.png", small_slice(0).image)
    for name in ("a", "B-seg", "case_c", "case_d"):
        save(tmp_path / "masks" / f"{name}.png", small_slice(0).mask)
    with pytest.raises(
        InputError, match=r"case_c\.png: the mask has no image of its name; `tumorlens data check` lists all 2 problems"
    ):
        load_samples(tmp_path)
    for name in ("case_c", "case_d"):
        (tmp_path / "masks" / f"{name}.png").unlink()
    assert [s.mask is not None for s in load_samples(tmp_path)] == [True, True, False]
    save(tmp_path / "masks" / "a_mask.png", small_slice(0).mask)
    with pytest.raises(InputError, match=r"a\.png: there are two masks of it"):
        load_samples(tmp_path)


def test_a_volume_of_an_image_folder_without_a_mask_has_no_class(tmp_path):
    phantom = phantom_volume(2, "glioma", shape=(48, 56, 16), spacing_mm=(4, 4, 7.5))
    for name, array in (("images/a", phantom.image), ("images/b", phantom.image), ("masks/a", phantom.mask)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, phantom.affine), tmp_path / f"{name}.nii.gz")
    samples = load_samples(tmp_path)
    assert {s.label for s in samples if s.image.name == "a.nii.gz"} == {"tumor", "no_tumor"}
    assert {s.volume_label for s in samples} == {"tumor", ""}
    assert {(s.label, s.mask) for s in samples if s.image.name == "b.nii.gz"} == {("", None)}


def test_volumes_of_an_index_become_slices(tmp_path):
    phantom = phantom_volume(2, "glioma", shape=(48, 56, 16), spacing_mm=(4, 4, 7.5))
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / "t1.nii.gz")
    nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), tmp_path / "mask.nii.gz")
    (tmp_path / "index.csv").write_text("image,mask,label,patient\nt1.nii.gz,mask.nii.gz,glioma,p\n")
    samples = load_samples(tmp_path)
    sick = [s for s in samples if s.label == "glioma"]
    healthy = [s for s in samples if s.label == "no_tumor"]
    assert len(sick) >= 2
    assert len(healthy) >= 5
    for sample in sick:
        reading = read_sample(sample)
        expected = phantom.scan.view(phantom.mask, sample.slice_index)
        np.testing.assert_array_equal(reading.mask, expected)
        assert reading.image.shape == reading.mask.shape
    assert all(s.mask is None for s in healthy)
    (tmp_path / "index.csv").write_text("image,mask,label,patient,every\nt1.nii.gz,mask.nii.gz,glioma,p,3\n")
    assert load_samples(tmp_path) == samples[::3]


def test_a_volume_is_cut_in_the_plane_of_its_row(tmp_path):
    phantom = phantom_volume(2, "glioma", shape=(48, 56, 20), spacing_mm=(4, 4, 8))
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / "t1.nii.gz")
    nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), tmp_path / "mask.nii.gz")
    rows = [f"t1.nii.gz,mask.nii.gz,glioma,p,{cut}" for cut in ("coronal", "", "sagittal")]
    (tmp_path / "index.csv").write_text("\n".join(["image,mask,label,patient,cut", *rows]))
    samples = load_samples(tmp_path)
    shown = {"coronal": (20, 48), "acquisition": (56, 48), "sagittal": (20, 56)}
    assert {s.plane for s in samples} == set(shown)
    for sample in samples:
        reading = read_sample(sample)
        assert reading.image.shape == shown[sample.plane]
        if sample.label == "glioma":
            cut = phantom.scan.with_plane(sample.plane)
            np.testing.assert_array_equal(reading.mask, cut.view(phantom.mask, sample.slice_index))
        assert sample.name.endswith(
            f"[{'' if sample.plane == 'acquisition' else sample.plane + ' '}{sample.slice_index}]"
        )
    for swept in sweep(samples, Preprocess(64)):
        reading = read_sample(samples[swept.index])
        np.testing.assert_array_equal(swept.reading.image, reading.image)
        assert (swept.reading.mask is None) == (reading.mask is None)
    (tmp_path / "index.csv").write_text("image,mask,label,patient,cut\nt1.nii.gz,mask.nii.gz,glioma,p,oblique\n")
    with pytest.raises(InputError, match=r"line 2: plane 'oblique' is not one of"):
        load_samples(tmp_path)


def test_a_volume_that_changed_is_read_again(tmp_path):
    (tmp_path / "index.csv").write_text("image,label\nt1.nii.gz,no_tumor\n")
    for seed in (2, 3):
        phantom = phantom_volume(seed, "no_tumor", shape=(48, 56, 16), spacing_mm=(4, 4, 7.5))
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / "t1.nii.gz")
        sample = load_samples(tmp_path)[2]
        np.testing.assert_array_equal(read_sample(sample).image, phantom.scan.slice(sample.slice_index))


def test_a_sick_volume_without_a_mask_is_refused(tmp_path):
    phantom = phantom_volume(2, "glioma", shape=(48, 56, 16), spacing_mm=(4, 4, 7.5))
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / "t1.nii.gz")
    (tmp_path / "index.csv").write_text("image,label\nt1.nii.gz,glioma\n")
    with pytest.raises(InputError, match=r"line 2: .*t1\.nii\.gz: a volume labeled glioma needs a mask"):
        load_samples(tmp_path)
    (tmp_path / "index.csv").write_text("image,label\nt1.nii.gz,no_tumor\n")
    assert len({s.patient for s in load_samples(tmp_path)}) == 1


def test_volumes_in_folders_become_slices(tmp_path):
    phantom = phantom_volume(2, "glioma", shape=(96, 112, 16), spacing_mm=(2, 2, 7.5))
    for name, array in (("images", phantom.image), ("masks", phantom.mask), ("classes/healthy", phantom.image)):
        (tmp_path / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, phantom.affine), tmp_path / name / "a.nii.gz")
    assert {s.label for s in load_samples(tmp_path)} == {"tumor", "no_tumor"}
    assert len(load_samples(tmp_path)) == len(load_samples(tmp_path / "classes")) > 5


def test_a_mask_that_lies_elsewhere_is_refused_and_rounding_is_not(tmp_path):
    phantom = phantom_volume(2, "glioma", shape=(48, 56, 16), spacing_mm=(4, 4, 7.5))
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / "t1.nii.gz")
    scan = open_scan(tmp_path / "t1.nii.gz")
    near = phantom.affine + np.outer([0.3, -0.4, 1.0, 0], [0, 0, 0, 1])
    nib.save(nib.Nifti1Image(phantom.mask, near), tmp_path / "near.nii.gz")
    np.testing.assert_array_equal(read_volume_mask(tmp_path / "near.nii.gz", scan), phantom.mask)
    nib.save(nib.Nifti1Image(phantom.mask, phantom.affine @ np.diag([-1, 1, 1, 1])), tmp_path / "mirrored.nii.gz")
    with pytest.raises(InputError, match=r"mirrored\.nii\.gz: the mask lies up to .* voxels away"):
        read_volume_mask(tmp_path / "mirrored.nii.gz", scan)


def test_matlab_files_hold_label_and_patient(tmp_path):
    for number in (1, 2, 3):
        save_mat(tmp_path / "part_1" / f"{number}.mat", small_slice(number, "glioma"), number, "100360")
    samples = load_samples(tmp_path)
    assert [s.label for s in samples] == ["meningioma", "glioma", "pituitary"]
    assert {s.patient for s in samples} == {"100360"}


def test_matlab_files_hold_no_regions(tmp_path):
    save_mat(tmp_path / "1.mat", small_slice(1, "glioma"), 2, "p1")
    sample = Sample(tmp_path / "1.mat", "glioma", regions=Regions.parse(["core=1"]))
    with pytest.raises(InputError, match=r"1\.mat: it holds one mask without labels; regions need masks of whole num"):
        read_sample(sample)
    save(tmp_path / "mask.png", 4 * small_slice(1, "glioma").mask)
    other = replace(sample, mask=tmp_path / "mask.png", regions=Regions.parse(["core=4"]))
    np.testing.assert_array_equal(read_sample(other).mask, small_slice(1, "glioma").mask)


def test_matlab_files_in_upper_case_and_hidden_files_of_macos(tmp_path):
    save_mat(tmp_path / "a" / "1.mat", small_slice(1, "glioma"), 2, "p1")
    (tmp_path / "a" / "1.mat").rename(tmp_path / "a" / "1.MAT")
    (tmp_path / "a" / "._1.MAT").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert [(s.label, s.patient) for s in load_samples(tmp_path)] == [("glioma", "p1")]
    save_mat(tmp_path / "a" / "2.mat", small_slice(2, "glioma"), 1, "p2")
    (tmp_path / "a" / "._2.mat").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert [s.patient for s in load_samples(tmp_path)] == ["p1", "p2"]


def test_matlab_files_in_class_folders_keep_their_patient(tmp_path):
    save_mat(tmp_path / "glioma" / "1.mat", small_slice(1, "glioma"), 2, 77)
    (sample,) = load_samples(tmp_path)
    assert prepare([sample], Preprocess(64)).samples[0].patient == "77"
    save_mat(tmp_path / "glioma" / "1.mat", small_slice(1, "glioma"), 3, 77)
    with pytest.raises(InputError, match=r"1\.mat: the file says pituitary, the data set glioma"):
        prepare([sample], Preprocess(64))


def test_a_folder_without_data(tmp_path):
    with pytest.raises(InputError, match="neither an index"):
        load_samples(tmp_path)
    with pytest.raises(InputError, match="no such data folder"):
        load_samples(tmp_path / "x")


def test_jpeg_masks_and_empty_masks(tmp_path):
    phantom = small_slice(0)
    scan = Scan.from_array(phantom.image)
    Image.fromarray(phantom.mask * np.uint8(255)).save(tmp_path / "m.jpg", quality=70)
    assert (read_mask(tmp_path / "m.jpg", scan) != phantom.mask).mean() < 0.005
    save(tmp_path / "e.png", np.zeros((96, 96), np.uint8))
    assert read_mask(tmp_path / "e.png", scan).shape == (96, 96)
    assert not read_mask(tmp_path / "e.png", scan).any()


def test_every_class_of_a_mask_is_lesion(tmp_path):
    drawn = np.zeros((64, 64), np.uint8)
    drawn[10:20], drawn[30:40], drawn[50:60] = 1, 2, 4
    scan = Scan.from_array(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    for name in ("m.png", "m.tif", "m.bmp"):
        save(tmp_path / name, drawn)
        np.testing.assert_array_equal(read_mask(tmp_path / name, scan), drawn > 0)
    smooth = np.where(drawn == 1, 60, np.where(drawn > 1, 255, 0)).astype(np.uint8)  # a border drawn smooth
    save(tmp_path / "gray.png", smooth)
    np.testing.assert_array_equal(read_mask(tmp_path / "gray.png", scan), drawn > 1)
    Image.fromarray(drawn.astype(np.float32) / 4).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "f.tif", scan), drawn > 1)


def test_interpolated_volume_masks_keep_their_borders(tmp_path):
    image = np.arange(12**3, dtype=np.int16).reshape(12, 12, 12)
    mask = np.zeros(image.shape, np.float32)
    mask[4:8], mask[3], mask[8], mask[9] = 1, 0.4, 0.6, 0.1
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "t1.nii.gz")
    scan = open_scan(tmp_path / "t1.nii.gz")
    for values, lesion in ((mask, mask >= 0.5), (mask * 0.4, mask >= 0.5), (np.rint(mask * 3), mask > 0.2)):
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(read_volume_mask(tmp_path / "mask.nii.gz", scan), lesion)


def test_a_mask_of_another_size_names_both_files(tmp_path):
    save(tmp_path / "images" / "a.png", small_slice(0).image)
    save(tmp_path / "masks" / "a.png", np.eye(9, dtype=np.uint8))
    with pytest.raises(InputError, match=r"a\.png: the mask has shape \(9, 9\), its image \(96, 96\)"):
        read_sample(load_samples(tmp_path)[0])


@pytest.mark.parametrize("name", ["notumor", "no_tumor", "No Tumor", "healthy", "NORMAL"])
def test_spellings_of_no_tumor(name):
    assert canonical_label(name) == "no_tumor"


@pytest.mark.real
def test_real_sets(real):
    figshare, brisc = load_samples(real / "figshare"), load_samples(real / "brisc")
    assert (len(figshare), len(brisc)) == (2640, 5228)
    for sample in (*figshare[::400], *brisc[::700]):
        reading = read_sample(sample)
        assert (reading.mask is None) == (sample.label == "no_tumor")
        assert reading.mask is None or reading.mask.shape == reading.image.shape[:2]


@pytest.mark.parametrize("suffix", [".mgz", ".mha", ".nrrd"])
def test_any_volume_stands_for_its_slices(tmp_path, suffix):
    """Not for its first one under the tumor's name."""
    import SimpleITK

    phantom = phantom_volume(7, "meningioma", shape=(48, 56, 12), spacing_mm=(4.0, 4.0, 8.0))
    for name, voxels in (("v", phantom.image), ("m", phantom.mask.astype(np.int16))):
        if suffix == ".mgz":
            nib.save(nib.MGHImage(voxels, phantom.affine.astype(np.float32)), tmp_path / f"{name}{suffix}")
        else:
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels.T), tmp_path / f"{name}{suffix}")
    (tmp_path / "index.csv").write_text(f"image,mask,label,patient\nv{suffix},m{suffix},meningioma,a\n")
    samples = load_samples(tmp_path)
    assert len(samples) > 5
    assert all(s.slice_index is not None for s in samples)
    for sample in samples:
        mask = read_sample(sample).mask
        assert (sample.label == "meningioma") == (mask is not None and bool(mask.any()))


def test_without_a_label_the_mask_says_whether_there_is_a_tumor(tmp_path):
    """With neither, nothing is known, and neither stage takes the slice."""
    for name, mask in (("sick", small_slice(0).mask), ("healthy", 0 * small_slice(0).mask)):
        save(tmp_path / f"{name}.png", small_slice(0).image)
        save(tmp_path / f"{name}_mask.png", mask * np.uint8(255))
    save(tmp_path / "unknown.png", small_slice(0).image)
    rows = "sick.png,sick_mask.png,\nhealthy.png,healthy_mask.png,\nunknown.png,,\nsick.png,sick_mask.png,glioma\n"
    (tmp_path / "index.csv").write_text(f"image,mask,label\n{rows}")
    samples = load_samples(tmp_path)
    assert [s.label for s in samples] == ["tumor", "no_tumor", "", "glioma"]
    assert [has_truth(s) for s in samples] == [True, True, False, True]
    (tmp_path / "index.csv").write_text("image,mask\nsick.png,sick_mask.png\n")
    assert [s.label for s in load_samples(tmp_path)] == ["tumor"]


def test_a_tumor_without_a_mask_does_not_teach_where_it_is():
    assert not has_truth(Sample(Path("a.png"), "tumor"))
    assert not has_truth(Sample(Path("a.png"), "glioma"))
    assert has_truth(Sample(Path("a.png"), "tumor", mask=Path("m.png"))) and has_truth(
        Sample(Path("a.png"), "no_tumor")
    )


@pytest.mark.parametrize(
    ("there", "named", "reason"),
    [
        ("scan7.PNG", "scan7.png", r"\(there is scan7.PNG; upper and lower case count\)"),
        ("scan7.png", "scan7", r"\(there is scan7.png; a row names the file with its ending\)"),
        ("scan7.nii.gz", "scan7.nii", r"\(there is scan7.nii.gz; a row names the file with its ending\)"),
        ("series/1.png", "series", "it is a folder without DICOM files or a result"),
        ("scan7.png", "images/scan7.png", r"\(there is no folder .*images; .* give INDEX@FOLDER\)"),
        ("other.png", "scan7.png", "no such file .*scan7.png; `tumorlens data check`"),
    ],
)
def test_an_index_says_what_lies_there_instead(tmp_path, there, named, reason):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    (tmp_path / "index.csv").write_text(f"image,label\n{named},glioma\n{named},glioma\n")
    with pytest.raises(InputError, match=reason):
        load_samples(tmp_path)


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ("labels.csv", "it holds labels.csv: if that is its index, name the file itself, as a CSV file"),
        ("a/index.tsv", "it holds a/index.tsv: if that is its index"),
        ("1.png", "it holds 1.png .1 scans in all., but no folder says of which class"),
        ("slices.npy", "it holds slices.npy, which is not called as a scan is"),
        (".hidden", "it is empty"),
    ],
)
def test_a_folder_that_is_no_data_set_says_what_it_holds(tmp_path, there, reason):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    with pytest.raises(InputError, match=f"neither an index.csv.*; {reason}"):
        load_samples(tmp_path)
