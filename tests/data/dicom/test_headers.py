"""Headers of DICOM files: read without a word on the log, and bombs are refused."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.scans.dicom import save_series, small_volume
from tumorlens.data.dicom import headers
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan


@pytest.mark.parametrize("limit_mib", [1, pytest.param(512, marks=pytest.mark.slow)])
def test_a_deflated_bomb_is_refused_before_it_is_inflated(tmp_path, monkeypatch, limit_mib):
    assert headers._MAX_INFLATED == 512 * 2**20
    monkeypatch.setattr(headers, "_MAX_INFLATED", limit_mib * 2**20)
    volume, affine = small_volume(shape=(20, 24, 1))
    (path,) = save_series(tmp_path / "a", volume, affine)
    ds = pydicom.dcmread(path)
    ds.add_new((0x0009, 0x0010), "LO", "X")
    ds.add_new((0x0009, 0x1001), "OB", bytes((limit_mib + max(1, limit_mib // 6)) * 2**20))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "bomb.dcm", ds, implicit_vr=False, little_endian=True)
    with pytest.raises(InputError, match=f"would inflate to over {limit_mib} MiB"):
        open_scan(tmp_path / "bomb.dcm")


def test_reading_leaves_the_warning_filters_of_the_program_alone(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path, volume, affine)
    open_scan(paths[0])
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_scan, paths * 6))
    assert warnings.filters == before
