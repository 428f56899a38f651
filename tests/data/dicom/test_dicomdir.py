"""DICOMDIR: the files it lists, missing ones, and paths out of its disk."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from tests.scans.dicom import save_series
from tests.scans.studies import AFFINE, VOLUME
from tumorlens.data.dicom.dicomdir import is_dicomdir, read_dicomdir
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan


def test_a_dicomdir_leads_to_its_files(tmp_path):
    files = save_series(tmp_path / "in", VOLUME, AFFINE)
    directory = FileSet()
    for file in files:
        directory.add(file)
    directory.write(tmp_path / "disk")
    path = tmp_path / "disk" / "DICOMDIR"
    assert is_dicomdir(path) and not is_dicomdir(files[0])
    listed, missing = read_dicomdir(path)
    assert (len(listed), missing) == (9, [])
    assert np.array_equal(open_scan(path).voxels, open_scan(tmp_path / "in").voxels)
    listed[3].rename(listed[3].with_name(listed[3].name.lower()))
    listed[4].rename(listed[4].with_name(f"{listed[4].name}.dcm"))
    assert len(read_dicomdir(path)[0]) == 9
    listed[5].unlink()
    gone = listed[5].relative_to(path.parent).as_posix()
    assert [len(read_dicomdir(path)[0]), read_dicomdir(path)[1]] == [8, [gone]]
    assert f"1 of the 9 files that the DICOMDIR lists are missing (first: {gone})" in open_scan(path).warnings
    for file in read_dicomdir(path)[0]:
        file.unlink()
    with pytest.raises(InputError, match="all of the 9 files that it lists are missing"):
        open_scan(path)


@pytest.mark.parametrize("name", ["../outside/IM0000", "..\\outside\\IM0000", "/outside/IM0000"])
def test_a_dicomdir_cannot_point_out_of_its_medium(tmp_path, name):
    save_series(tmp_path / "outside", VOLUME[..., :1], AFFINE)
    (file,) = save_series(tmp_path / "in", VOLUME[..., :1], AFFINE)
    directory = FileSet()
    directory.add(file)
    directory.write(tmp_path / "disk")
    path = tmp_path / "disk" / "DICOMDIR"
    ds = pydicom.dcmread(path)
    for record in ds.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.add_new(
                "ReferencedFileID",
                "CS",
                name.replace("/outside", str(tmp_path / "outside")) if name.startswith("/") else name.split("\\"),
            )
    pydicom.dcmwrite(path, ds)
    with pytest.raises(InputError, match="lists no file"):
        read_dicomdir(path)


@pytest.mark.parametrize("name", ["IM\0GE", "A" * 300, ["IMAGES", "B" * 5000], ["C", "\0", "D"]])
def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path, name):
    directory = FileSet()
    for file in save_series(tmp_path / "in", VOLUME[..., :2], AFFINE):
        directory.add(file)
    directory.write(tmp_path / "disk")
    path = tmp_path / "disk" / "DICOMDIR"
    ds = pydicom.dcmread(path)
    first = next(record for record in ds.DirectoryRecordSequence if "ReferencedFileID" in record)
    first.add(pydicom.DataElement("ReferencedFileID", "CS", name, validation_mode=pydicom.config.IGNORE))
    pydicom.dcmwrite(path, ds)
    files, missing = read_dicomdir(path)
    assert (len(files), len(missing)) == (1, 1)


@pytest.mark.parametrize(("vr", "content"), [("US", 7), ("LO", "no records"), ("DS", ["1", "2"])])
def test_a_dicomdir_without_records_lists_no_file(tmp_path, vr, content):
    directory = FileSet()
    directory.add(save_series(tmp_path / "in", VOLUME[..., :1], AFFINE)[0])
    directory.write(tmp_path / "disk")
    path = tmp_path / "disk" / "DICOMDIR"
    ds = pydicom.dcmread(path)
    ds["DirectoryRecordSequence"] = pydicom.DataElement("DirectoryRecordSequence", vr, content)
    pydicom.filewriter.dcmwrite(path, ds)
    with pytest.raises(InputError, match="DICOMDIR: it lists no file"):
        open_scan(path)
