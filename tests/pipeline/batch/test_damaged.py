"""A damaged file that crashes its decoder costs its own row, not the batch."""

from __future__ import annotations

import zipfile

import pytest

from tests.scans.dicom import save_killer
from tests.scans.pictures import save, table
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.workers import isolation


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_others_are_done(tumorlens, tmp_path, jobs):
    folder = tmp_path / "scans"
    good = ["a.png", "b.tif", "d.webp", "e.jpg", "z.bmp"]
    for seed, name in enumerate(good):
        save(folder / name, phantom_slice(seed, "meningioma").image)
    save_killer(folder / "c.dcm")
    (folder / "cut.tif").write_bytes((folder / "b.tif").read_bytes()[:900])
    done = tumorlens("run", folder, "-o", tmp_path / "out", "--jobs", str(jobs))
    assert done.exit_code == 1, done.output
    rows = {row["scan"]: row for row in table(tmp_path / "out")}
    assert {name for name, row in rows.items() if row["label"] and not row["error"]} == set(good)
    (killer,) = (row["error"] for name, row in rows.items() if name not in {*good, "cut.tif"})
    assert "c.dcm: the decoder crashed on this file (SIGABRT), which is damaged; delete or replace it" in killer
    assert "damaged or cut off" in rows["cut.tif"]["error"]


def test_a_picture_starts_no_worker(tumorlens, tmp_path):
    isolation._end_all()
    isolation._idle.clear()
    path = save(tmp_path / "a.png", phantom_slice(3, "glioma").image)
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    assert not isolation._workers


def test_a_damaged_entry_of_a_zip_costs_its_own_row(tumorlens, tmp_path):
    zips = tmp_path / "scans"
    zips.mkdir()
    with zipfile.ZipFile(zips / "a.zip", "w") as archive:
        for seed, name in enumerate(("one.png", "two.png", "deep/three.png")):
            archive.write(save(tmp_path / "p" / name, phantom_slice(seed, "meningioma").image), name)
        archive.writestr("__MACOSX/._one.png", b"of a Mac")
        archive.writestr("readme.txt", b"to be read")
    content = (zips / "a.zip").read_bytes()
    for at in (content.index(b"two.png") + 100, content.index(b"of a Mac"), content.index(b"to be read")):
        content = content[:at] + b"?" + content[at + 1 :]
    (zips / "a.zip").write_bytes(content)
    done = tumorlens("run", zips, "-o", tmp_path / "out")
    assert done.exit_code == 1, done.output
    assert "left alone (1): a.zip/readme.txt" in done.stderr
    rows = {row["scan"]: row for row in table(tmp_path / "out")}
    assert set(rows) == {"a.zip/one.png", "a.zip/two.png", "a.zip/deep/three.png"}
    reason = f"{zips / 'a.zip' / 'two.png'}: the entry of the zip archive is damaged or cannot be unpacked"
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {"a.zip/two.png": reason}
