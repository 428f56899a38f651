"""The regions of a scan's true mask, from label maps, palettes, DICOM Segmentations and the folders of results."""

import struct
import zlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.scans.dicom_results import ALGORITHM
from tests.scans.pictures import save
from tests.scans.studies import SICK, series
from tumorlens.data.dicom.seg import write_mask_dicom
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.placed import lay_on
from tumorlens.data.masks.regions import Regions
from tumorlens.data.masks.truth import found_labels, known_regions, mask_files, read_regions, read_truth, shows_lesion
from tumorlens.data.scan import Scan

REGIONS = Regions.parse(["whole=1,2,4", "core=1,4", "enhancing=4"])
VALUES = np.array([[0, 1, 2, 4], [4, 2, 3, 0]], np.uint8)  # 3 belongs to no region
BITS = [[0, 3, 1, 7], [7, 1, 0, 0]]


def picture():
    return Scan.from_array(np.arange(8.0).reshape(2, 4))


def save_palette(path, values):
    image = Image.fromarray(values)
    image.putpalette([channel for k in range(256) for channel in (k * 40 % 256, 7, 255 - k)])
    image.save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "palette.png", "palette.gif"])
def test_the_numbers_of_a_picture_are_labels(name, tmp_path):
    path = tmp_path / name
    if name.startswith("palette"):
        save_palette(path, VALUES)
    else:
        save(path, VALUES)
    assert read_regions(path, picture(), REGIONS).tolist() == BITS
    assert found_labels(path, REGIONS) == ("1", "2", "3", "4")


def test_a_gray_png_of_four_bits_is_not_stretched(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(int(a) << 4 | int(b) for a, b in row.reshape(-1, 2)) for row in VALUES)
    header = struct.pack(">IIBBBBB", 4, 2, 4, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert read_regions(tmp_path / "a.png", picture(), REGIONS).tolist() == BITS


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_the_numbers_of_a_volume_are_labels(kind, tmp_path):
    values = np.stack([VALUES, VALUES[:, ::-1]], axis=2)
    nib.save(nib.Nifti1Image(values.astype(kind), np.eye(4)), tmp_path / "a.nii.gz")
    bits = read_regions(tmp_path / "a.nii.gz", Scan.from_array(values + 1.0, np.eye(4)), REGIONS)
    assert bits.dtype == np.uint8 and bits[..., 0].tolist() == BITS
    with pytest.raises(InputError, match=r"the mask has shape \(2, 4, 2\), its scan \(2, 4, 3\)"):
        read_regions(tmp_path / "a.nii.gz", Scan.from_array(np.ones((2, 4, 3)).cumsum(2), np.eye(4)), REGIONS)


def test_a_lesion_lies_in_a_region(tmp_path):
    scan = save(tmp_path / "scan.png", VALUES + 9)
    other = save(tmp_path / "other.png", (VALUES == 3).astype(np.uint8) * 3)
    assert shows_lesion(other, scan) and not shows_lesion(other, scan, REGIONS)
    assert shows_lesion(save_palette(tmp_path / "palette.png", VALUES), scan, REGIONS)


@pytest.mark.parametrize(
    ("name", "mask", "reason"),
    [
        ("a.jpg", VALUES, "JPEG does not keep numbers"),
        ("a.png", np.stack([VALUES, VALUES * 2, VALUES], axis=2), "it holds colors"),
        ("a.png", np.arange(80, dtype=np.uint8).reshape(8, 10), "it holds gray levels"),
        ("a.tif", VALUES / np.float32(3), "it holds fractions"),
    ],
)
def test_what_cannot_hold_regions_is_refused(name, mask, reason, tmp_path):
    scan = Scan.from_array(np.arange(mask[..., 0].size if mask.ndim == 3 else mask.size).reshape(mask.shape[:2]) + 0.0)
    with pytest.raises(InputError, match=f"{name}: this mask cannot hold regions, because {reason}; give it with"):
        read_regions(save(tmp_path / name, mask), scan, REGIONS)


def test_boxes_cannot_hold_regions(tmp_path):
    (tmp_path / "a.txt").write_text("0 .5 .5 .2 .2\n")
    with pytest.raises(InputError, match="boxes and outlines of YOLO and COCO cannot hold regions; give masks"):
        read_regions(tmp_path / "a.txt", picture(), REGIONS)


def test_a_result_has_its_regions(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    save(tmp_path / "mask.png", 255 * (VALUES > 0).astype(np.uint8))
    with pytest.raises(InputError, match=r"the result has no regions.nii.gz or regions.png; give a mask of whole"):
        read_regions(tmp_path, picture(), REGIONS)
    save_palette(tmp_path / "regions.png", REGIONS.paint(REGIONS.planes(REGIONS.bits(VALUES))))
    assert read_regions(tmp_path, picture(), REGIONS).tolist() == BITS
    assert (read_truth(tmp_path, picture()) == (VALUES > 0)).all()


def corrected_result(folder, lesion):
    (folder / "result.json").write_text("{}")
    save(folder / "mask.png", 255 * (VALUES > 0).astype(np.uint8))
    save(folder / "mask.reviewed.png", 255 * lesion.astype(np.uint8))
    save_palette(folder / "regions.png", VALUES)
    return folder


def test_what_a_reviewer_has_removed_is_in_no_region(tmp_path):
    left = VALUES == 4
    corrected_result(tmp_path, left)
    assert read_regions(tmp_path, picture(), REGIONS).tolist() == np.where(left, BITS, 0).tolist()
    assert known_regions(tmp_path, picture(), REGIONS).tolist() == np.where(left, BITS, 0).tolist()
    corrected_result(tmp_path, VALUES > 0)  # a value of no region is not what a reviewer has added
    assert read_regions(tmp_path, picture(), REGIONS).tolist() == BITS


def test_what_a_reviewer_has_added_has_no_region(tmp_path):
    corrected_result(tmp_path, np.ones(VALUES.shape))
    with pytest.raises(InputError, match="the correction adds voxels without a region; give a mask of whole numbers"):
        read_regions(tmp_path, picture(), REGIONS)
    assert known_regions(tmp_path, picture(), REGIONS) is None
    assert (read_truth(tmp_path, picture()) == 1).all()


def test_a_correction_belongs_to_the_files_of_regions(tmp_path):
    corrected_result(tmp_path, VALUES > 0)
    assert [file.name for file in mask_files(tmp_path, REGIONS)] == ["regions.png", "mask.reviewed.png"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("Whole", "core (predicted)", "enhancing"), (1, 2, 4)),
        (("2", "1", "4"), (1, 3, 7)),
        (("edema", "1", "4"), (0, 3, 7)),
    ],
)
def test_the_segments_of_dicom_are_called_as_regions_or_values(labels, expected, tmp_path):
    series(tmp_path / "scan", SICK)
    scan = open_scan(tmp_path / "scan")
    lesion = lay_on(SICK.mask != 0, SICK.affine, scan, tmp_path)
    numbers = (lesion * (1 + np.arange(lesion.shape[0]) % 3)[:, None, None]).astype(np.uint16)
    write_mask_dicom(tmp_path / "truth.dcm", numbers, scan, "glioma", ALGORITHM)
    dataset = pydicom.dcmread(tmp_path / "truth.dcm")
    for segment, label in zip(dataset.SegmentSequence, labels, strict=True):
        segment.SegmentLabel = label
    dataset.save_as(tmp_path / "truth.dcm")
    bits = read_regions(tmp_path / "truth.dcm", scan, REGIONS)
    np.testing.assert_array_equal(bits, np.array([0, *expected], np.uint8)[numbers])
    assert found_labels(tmp_path / "truth.dcm", REGIONS) == labels
