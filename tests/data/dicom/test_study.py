"""The series of a study that is read: the best one, or the one that the user names."""

from __future__ import annotations

import numpy as np
import pytest

from tests.scans.dicom import save_series
from tests.scans.studies import AFFINE, CT, LOCALIZER, T1, T1C, T2, VOLUME, save_study
from tumorlens.data.dicom.series import find_series
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan


def test_a_study_without_a_usable_series_is_refused_with_all_reasons(tmp_path):
    save_study(tmp_path, LOCALIZER, CT)
    with pytest.raises(
        InputError, match=r"no series can be run: #1: it is a localizer; #20: its modality is CT, not MR"
    ):
        open_scan(tmp_path)


def test_a_series_is_chosen_by_uid_or_number(tmp_path):
    files = save_study(tmp_path, T1, T1C, T2)
    by_number = open_scan(tmp_path, series="4")
    uid = next(s.uid for s in find_series(files).series if s.number == 4)
    assert np.array_equal(open_scan(tmp_path, series=uid).voxels, by_number.voxels)
    assert by_number.dicom.facts["series_number"] == 4
    with pytest.raises(InputError, match=r"0 series are called '77'; there are #3 \(.*, #4 \(.*, #8 \("):
        open_scan(tmp_path, series="77")


def test_a_series_without_number_goes_by_its_tag(tmp_path):
    save_study(tmp_path, {**T1C, "SeriesNumber": None, "series": "1.2.3.12345678"}, T1)
    assert open_scan(tmp_path, series="#12345678").dicom.facts["series_number"] is None
    with pytest.raises(InputError, match="0 series are called 'None'"):
        open_scan(tmp_path, series="None")


def test_unreadable_files_are_a_warning(tmp_path):
    files = save_study(tmp_path, T1C)
    (tmp_path / "cut").write_bytes(files[0].read_bytes()[:140])
    assert "1 DICOM file could not be read (cut)" in open_scan(tmp_path).warnings


def test_several_studies_are_not_mixed(tmp_path):
    save_series(tmp_path / "a", VOLUME, AFFINE)
    save_series(tmp_path / "b", VOLUME, AFFINE)
    with pytest.raises(InputError, match="several studies"):
        open_scan(tmp_path)
