"""DICOM Secondary Capture: the overlay keeps its pixels and names its slice and its directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread

from tests.scans.dicom_results import ALGORITHM, errors_in, result_of, saved
from tumorlens.data.dicom.reader import read_series
from tumorlens.data.dicom.seg import write_mask_dicom
from tumorlens.data.errors import InputError
from tumorlens.pipeline.outputs.dicom_overlay import write_overlay_dicom

pytest.importorskip("highdicom")


@pytest.mark.parametrize(("kind", "directions"), [("axial", "LP"), ("coronal", "LF"), ("sagittal", "PF")])
def test_the_overlay_keeps_its_pixels_and_names_its_directions(tmp_path, kind, directions):
    scan = read_series(saved(tmp_path, kind))
    picture = np.random.default_rng(0).integers(0, 255, (31, 45, 3)).astype(np.uint8)  # an odd number of bytes
    write_overlay_dicom(tmp_path / "sc.dcm", picture, result_of(scan))
    ds = dcmread(tmp_path / "sc.dcm")
    np.testing.assert_array_equal(ds.pixel_array, picture)
    assert "".join(ds.PatientOrientation) == directions
    assert ds.SeriesDescription == ds.DerivationDescription == "tumorlens overlay, for research only"
    assert (ds.SeriesNumber, ds.BurnedInAnnotation) == (503, "NO")
    (shown,) = ds.SourceImageSequence
    assert shown.ReferencedSOPInstanceUID == scan.dicom.datasets[scan.dicom.places[1][0]].SOPInstanceUID
    assert errors_in(tmp_path / "sc.dcm") == []


def test_the_overlay_of_a_multi_frame_file_names_the_frame(tmp_path):
    scan = read_series(saved(tmp_path, "enhanced"))
    ds = write_overlay_dicom(tmp_path / "sc.dcm", np.zeros((20, 20, 3), np.uint8), result_of(scan))
    assert ds.SourceImageSequence[0].ReferencedFrameNumber == scan.dicom.places[1][1] + 1


def test_the_overlay_of_another_plane_refers_to_all_instances(tmp_path):
    scan = replace(read_series(saved(tmp_path, "axial")), plane_axis=0)
    ds = write_overlay_dicom(tmp_path / "sc.dcm", np.zeros((20, 20, 3), np.uint8), result_of(scan))
    assert len(ds.SourceImageSequence) == len(scan.dicom.datasets)
    assert list(ds.PatientOrientation) == ["P", "F"]


def test_a_picture_without_geometry_has_an_overlay_and_no_mask(tmp_path):
    (path,) = saved(tmp_path, "single")
    ds = dcmread(path)
    del ds.ImageOrientationPatient, ds.ImagePositionPatient
    ds.save_as(path)
    scan = read_series([path])
    assert not scan.volume
    write_overlay_dicom(tmp_path / "sc.dcm", np.zeros((20, 20, 3), np.uint8), result_of(scan))
    assert errors_in(tmp_path / "sc.dcm") == []
    with pytest.raises(InputError, match="no ImageOrientationPatient"):
        write_mask_dicom(tmp_path / "seg.dcm", np.ones(scan.voxels.shape, np.uint16), scan, "glioma", ALGORITHM)
