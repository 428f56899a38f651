"""Headers of DICOM files: read without a word on the log, and bombs are refused."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.scans.dicom import save_enhanced, save_series, small_volume
from tumorlens.data.dicom import headers, sequence
from tumorlens.data.dicom.geometry import planes_of
from tumorlens.data.dicom.headers import header_file, read_header
from tumorlens.data.dicom.series import find_series
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


def test_a_sequence_in_the_place_of_a_text_is_no_text():
    inner, ds = pydicom.Dataset(), pydicom.Dataset()
    inner.PatientName = "Doe^Jane"
    for name in ("ImageType", "SeriesDescription"):
        ds[name] = pydicom.DataElement(name, "SQ", pydicom.Sequence([inner]))
    # As read from a file, an element of an unknown kind raises only when somebody looks at it.
    raw = RawDataElement(Tag(0x505C, 0x4952), "MA", 4, b"abcd", 0, False, True)
    inner._dict[raw.tag] = raw
    assert headers.text(ds, "ImageType") == headers.text(ds, "SeriesDescription") == ""
    assert headers.numbers(ds, "ImageType") is None
    assert sequence.is_original(ds) and sequence.weighting_of(ds) is None
    assert sequence.refusal_of(ds) is None


@pytest.mark.parametrize("vr", ["US", "LO", "FD", "OB"])
def test_what_is_not_a_sequence_has_no_items(vr):
    ds, content = pydicom.Dataset(), {"US": 5, "LO": "abc", "FD": [1.5, 2.5], "OB": b"abcd"}[vr]
    for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "DirectoryRecordSequence"):
        ds[name] = pydicom.DataElement(name, vr, content)
        assert headers.items(ds, name) == []
    assert headers.frame_items(ds, 0) == [ds]
    ds = pydicom.Dataset()
    ds.DirectoryRecordSequence = [pydicom.Dataset(), pydicom.Dataset()]
    assert len(headers.items(ds, "DirectoryRecordSequence")) == 2 and headers.items(ds, "SourceImageSequence") == []


def test_the_header_of_dicom_json_is_that_of_the_file(tmp_path):
    """As those read it who choose a series; and the size that the pixels will have."""
    volume, affine = small_volume()
    latin = {"SeriesDescription": "Schädel", "SpecificCharacterSet": "ISO_IR 100"}
    path = save_enhanced(tmp_path / "enhanced", volume, affine, **latin)
    whole = pydicom.dcmread(path)
    whole.add_new(0x00191008, "LO", "PRIVATE")
    content = whole.to_json_dict(bulk_data_threshold=64, bulk_data_element_handler=lambda _: "http://h/pixels")
    data, n_pixels = header_file(content)
    (tmp_path / "header").write_bytes(data)
    assert n_pixels == len(whole.PixelData)
    one, other = (find_series([file]).series[0] for file in (path, tmp_path / "header"))
    assert replace(one, files=()) == replace(other, files=()) and one.description == "Schädel"
    header = read_header(tmp_path / "header")
    assert header[0x00191008].value == "PRIVATE"
    for a, b in zip(planes_of(whole, 0), planes_of(header, 0), strict=True):
        assert np.array_equal(a.position, b.position) and np.array_equal(a.normal, b.normal)
