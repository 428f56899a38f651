"""Zip archives that are sound, damaged and hostile."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from tests.scans.dicom import save_series
from tumorlens.data.errors import DiskFullError, InputError
from tumorlens.data.formats import archives
from tumorlens.data.formats.archives import unpack
from tumorlens.data.formats.open import open_scan

VOLUME = np.random.default_rng(2).integers(0, 900, (12, 14, 9)).astype(np.int16)


def pack(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_zipped_series_reads_as_its_folder(tmp_path):
    files = save_series(tmp_path / "in", VOLUME, np.diag([1.0, 1, 5, 1]))
    path = pack(tmp_path / "s.zip", {f"deep/er/{f.name}": f.read_bytes() for f in files})
    zipped, folder = open_scan(path), open_scan(tmp_path / "in")
    assert np.array_equal(zipped.voxels, folder.voxels)
    assert len(zipped.dicom.datasets) == 9


@pytest.mark.parametrize("name", ["../out.dcm", "a/../../out.dcm", "/out.dcm", "..\\out.dcm", "C:\\out.dcm"])
def test_entries_that_lead_out_are_refused(tmp_path, name):
    path = pack(tmp_path / "evil.zip", {"good.txt": b"1", name: b"2"})
    with pytest.raises(InputError, match="leads out of it"):
        unpack(path, tmp_path / "in" / "side")
    assert [p.name for p in tmp_path.rglob("*")] == ["evil.zip"]


def test_a_bomb_is_not_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros", "w", force_zip64=True) as file,
    ):
        for _ in range(200):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match=r"would unpack to 0.2 GiB, \d+ times its size"):
        unpack(tmp_path / "bomb.zip", tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_header_that_lies_about_the_size_gives_no_more_than_it_says(tmp_path):
    path = pack(tmp_path / "liar.zip", {"zeros": bytes(5_000_000)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace((5_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(InputError, match="damaged"):
        unpack(path, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_password_and_damage_are_reported(tmp_path):
    path = pack(tmp_path / "a.zip", {"a": b"x" * 100})
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(raw)
    with pytest.raises(InputError, match="password"):
        unpack(tmp_path / "locked.zip", tmp_path / "in")
    (tmp_path / "half.zip").write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="damaged"):
        unpack(tmp_path / "half.zip", tmp_path / "in")


def test_an_entry_without_a_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="leads out of it"):
        unpack(pack(tmp_path / "dot.zip", {".": b"1"}), tmp_path / "in")
    path = pack(tmp_path / "empty.zip", {"a": b"1"})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[26:28] = raw[at + 28 : at + 30] = bytes(2)
    del raw[at + 46], raw[30]
    end = raw.index(b"PK\x05\x06")
    raw[end + 12 : end + 20] = (46).to_bytes(4, "little") + (at - 1).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"empty\.zip: "):
        unpack(path, tmp_path / "in")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_of_one_name_and_odd_characters_are_reported(tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(InputError, match="several entries of the archive have one name"):
        unpack(tmp_path / "twice.zip", tmp_path / "in")
    with pytest.raises(InputError) as caught:
        unpack(pack(tmp_path / "esc.zip", {"../\x1b[31m\nx": b"1"}), tmp_path / "in")
    assert "(../?[31m?x)" in str(caught.value)


def test_every_damaged_compression_is_reported(tmp_path):
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        path = tmp_path / f"{method}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a", np.random.default_rng(0).bytes(5000))
        raw = bytearray(path.read_bytes())
        raw[60:120] = bytes(60)
        path.write_bytes(raw)
        with pytest.raises(InputError, match="damaged"):
            unpack(path, tmp_path / "in")


def test_an_archive_without_scans_is_refused(tmp_path):
    path = pack(tmp_path / "text.zip", {"notes.txt": b"no scan"})
    with pytest.raises(InputError, match=r"text\.zip: .*without DICOM"):
        open_scan(path)
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    (tmp_path / "empty.zip").write_bytes(empty.getvalue())
    with pytest.raises(InputError, match=r"empty\.zip"):
        open_scan(tmp_path / "empty.zip")


def spoil(path, name, what):
    """Damage one entry of an archive, and nothing else."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(name)
    raw = bytearray(path.read_bytes())
    start, central = entry.header_offset, raw.rindex(b"PK\x01\x02", 0, raw.rindex(name.encode()))
    if what == "content":
        first = start + 30 + len(name)
        raw[first : first + 40] = bytes(40)
    elif what == "sum":
        raw[start + 14] ^= 1
        raw[central + 16] ^= 1
    elif what == "method":
        raw[start + 8], raw[central + 10] = 97, 97
    elif what == "password":
        raw[start + 6] |= 1
        raw[central + 8] |= 1
    elif what == "header":
        raw[start] = 0
    path.write_bytes(raw)


@pytest.mark.parametrize("what", ["content", "sum", "method", "password", "header"])
def test_a_damaged_entry_costs_no_other(tmp_path, what):
    noise = np.random.default_rng(0).bytes(3000)
    path = pack(tmp_path / "a.zip", {"in/good": b"1" * 900, "in/bad": noise, "last": b"3"})
    spoil(path, "in/bad", what)
    (file, reason), *others = unpack(path, tmp_path / "in").items()
    assert file == tmp_path / "in" / "in" / "bad" and "entry of the zip archive is damaged" in reason and not others
    assert {p.name for p in (tmp_path / "in").rglob("*") if p.is_file()} == {"good", "last"}
    assert (tmp_path / "in" / "in" / "good").read_bytes() == b"1" * 900


def test_entries_that_no_disk_takes_cost_no_other(tmp_path):
    path = pack(tmp_path / "a.zip", {"a": b"1", "a/b": b"2", "x" * 300: b"3", "c": b"4"})
    skipped = unpack(path, tmp_path / "in")
    assert {file.name for file in skipped} == {"b", "x" * 300}
    assert {p.name for p in (tmp_path / "in").iterdir()} == {"a", "c"}


def test_a_full_disk_is_not_the_fault_of_an_entry(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = pack(tmp_path / "a.zip", {"a": b"1", "b": b"2"})
    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(DiskFullError, match=r"cannot be unpacked \(No space left"):
        unpack(path, tmp_path / "in")
    with pytest.raises(DiskFullError, match=r"a\.zip: .*cannot be unpacked \(No space left"):
        open_scan(path)
    for total, kind in ((10, DiskFullError), (1, InputError)):  # no wait makes room on a disk that is too small
        usage = SimpleNamespace(free=1, total=total)
        monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder, usage=usage: usage)
        with pytest.raises(InputError, match="there is not enough space on the disk to unpack the archive") as error:
            unpack(path, tmp_path / "in")
        assert error.type is kind
    assert not (tmp_path / "in").exists()


def test_a_zipped_series_says_which_of_its_files_is_damaged(tmp_path):
    files = save_series(tmp_path / "in", VOLUME, np.diag([1.0, 1, 5, 1]))
    path = pack(tmp_path / "s.zip", {f.name: f.read_bytes() for f in files})
    spoil(path, files[-1].name, "sum")
    scan = open_scan(path)
    assert scan.voxels.shape[2] == 8
    assert any(text.startswith(f"{files[-1].name}: the entry of the zip") for text in scan.warnings)
