"""The true mask of a scan, from a file, a DICOM Segmentation, a folder that holds it, or the folder of a result."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.scans.dicom_results import ALGORITHM
from tests.scans.pictures import save
from tests.scans.studies import SICK, series
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.patient_hashes import hash_patients
from tumorlens.data.datasets.sample import read_sample
from tumorlens.data.dicom.seg import write_mask_dicom
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.inspection.check import check_set
from tumorlens.data.inspection.findings import PROBLEMS
from tumorlens.data.masks.placed import lay_on
from tumorlens.data.masks.truth import is_unreviewed, read_truth, shows_lesion
from tumorlens.data.scan import Scan


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A DICOM series in ``scan``, its mask as SEG in ``seg``, and both in ``both``; and the mask."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "scan").mkdir()
    for path in series(folder / "tmp", SICK):
        path.rename(folder / "scan" / path.name)
    scan = open_scan(folder / "scan")
    mask = lay_on(SICK.mask != 0, SICK.affine, scan, folder)
    write_mask_dicom(folder / "seg" / "truth.dcm", mask.astype(np.uint16), scan, "glioma", ALGORITHM)
    shutil.copytree(folder / "scan", folder / "both")
    shutil.copy(folder / "seg" / "truth.dcm", folder / "both")
    return folder, mask


@pytest.mark.parametrize("place", ["seg/truth.dcm", "seg", "both"])
def test_a_segmentation_or_its_folder_is_the_truth(study, place):
    folder, mask = study
    assert mask.any()
    np.testing.assert_array_equal(read_truth(folder / place, open_scan(folder / "scan")), mask)


@pytest.mark.parametrize(("image", "mask"), [("scan", "seg/truth.dcm"), ("scan", "seg"), ("both", "both")])
def test_a_row_of_an_index_may_be_a_series_and_its_segmentation(study, tmp_path, image, mask):
    folder, truth = study
    index = tmp_path / "index.csv"
    index.write_text(f"image,mask,label\n{image},{mask},\n")
    source = f"{index}@{folder}"
    samples = load_samples(source)
    assert {s.label for s in samples} == {"tumor", "no_tumor"}
    assert all(s.patient.startswith("dicom-") for s in samples)
    sick = next(s for s in samples if s.label == "tumor")
    scan = open_scan(folder / "scan")
    np.testing.assert_array_equal(read_sample(sick).mask, scan.view(truth, sick.slice_index))
    assert not [finding for finding in check_set(source).findings if finding.kind in PROBLEMS]
    assert len(hash_patients(samples)) == len(samples)


def test_the_folder_of_a_result_is_the_truth_and_a_corrected_mask_comes_first(tmp_path):
    scan, full = Scan.from_array(np.arange(30.0).reshape(5, 6)), np.ones((5, 6), np.uint8)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match="the result has no mask, because the scan was refused"):
        read_truth(tmp_path, scan)
    save(tmp_path / "mask.png", 0 * full)
    assert not read_truth(tmp_path, scan).any() and not shows_lesion(tmp_path, tmp_path / "scan.png")
    save(tmp_path / "mask.reviewed.png", 255 * full)
    assert read_truth(tmp_path, scan).all() and shows_lesion(tmp_path, tmp_path / "scan.png")


def test_what_is_no_mask_is_named(study, tmp_path):
    folder, _ = study
    scan = open_scan(folder / "scan")
    with pytest.raises(InputError, match="the folder holds no mask; a mask is a file, a DICOM Segmentation or RT"):
        read_truth(folder / "scan", scan)
    for name in ("one.dcm", "two.dcm"):
        shutil.copy(folder / "seg" / "truth.dcm", tmp_path / name)
    with pytest.raises(InputError, match=r"the folder holds 2 DICOM masks \(one.dcm, two.dcm ...\)"):
        read_truth(tmp_path, scan)
    with pytest.raises(InputError, match="a DICOM mask needs a volume"):
        read_truth(folder / "seg", Scan.from_array(np.eye(5)))


def test_a_mask_of_another_patient_is_refused(study, tmp_path):
    folder, mask = study
    for tags, fits in (({"PatientID": "other"}, True), ({"PatientID": "other", "StudyInstanceUID": "1.2.3"}, False)):
        series(tmp_path / str(fits), SICK, **tags)
        scan = open_scan(tmp_path / str(fits))
        if fits:  # of the same study: an identifier was written in two ways
            assert read_truth(folder / "seg", scan).sum() == mask.sum()
        else:
            with pytest.raises(InputError, match="of another patient and study"):
                read_truth(folder / "seg", scan)


def test_the_answer_of_a_network_is_known_from_a_corrected_one(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    assert is_unreviewed(tmp_path)
    save(tmp_path / "mask.reviewed.png", np.zeros((5, 6), np.uint8))
    assert not is_unreviewed(tmp_path) and not is_unreviewed(tmp_path / "mask.reviewed.png")
