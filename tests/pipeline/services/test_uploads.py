"""Uploads: limits while a file is read, names, the scans in the files, folders that go with the visit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.scans.pictures import save
from tests.scans.studies import SICK, T1, T2, save_study, series
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.options import UploadLimits
from tumorlens.pipeline.services.facts import facts_html, n_frames_of, progress_of
from tumorlens.pipeline.services.jobs import DONE, FAILED, JobQueue
from tumorlens.pipeline.services.uploads import Visits, safe_name

MB = 1_000_000


@pytest.fixture(scope="module")
def queue(pipeline):
    queue = JobQueue(lambda: pipeline)
    queue.start()
    yield queue
    queue.close()


@pytest.fixture
def visits(queue, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    visits = Visits(queue, UploadLimits(upload_mb=2, upload_files=4))
    yield visits
    visits.close()


@pytest.fixture
def visit(visits):
    return visits.enter("tab")


def send(visit, name: str, content: bytes, announced: int = 0, taken: list[int] | None = None) -> None:
    async def chunks():
        for start in range(0, len(content), 100_000):
            if taken is not None:
                taken.append(start)
            yield content[start : start + 100_000]

    asyncio.run(visit.receive(name, chunks(), announced))


def stored(visit) -> list[str]:
    return sorted(file.name for file in visit.folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("scan.nii.gz", "scan.nii.gz"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\scan.png", "scan.png"),
        ("..", "file"),
        ("", "file"),
        (".hidden.png", "hidden.png"),
        ("a\x00b\n.png", "ab.png"),
        ("Kopf, süß.png", "Kopf, süß.png"),
        ("x" * 500 + ".nii.gz", "x" * 193 + ".nii.gz"),
        ("脳" * 118 + ".png", "脳" * 65 + ".png"),  # 255 bytes are the limit of file systems, not letters
    ],
)
def test_names_cannot_leave_the_folder(name, safe):
    assert safe_name(name) == safe


def test_a_file_over_the_limit_is_refused_while_it_is_read(visit):
    taken: list[int] = []
    with pytest.raises(InputError, match="MB are more than the 2 MB that are allowed"):
        send(visit, "large.nii", bytes(50 * MB), taken=taken)
    assert len(taken) <= 22, "the rest was not read"
    assert stored(visit) == []
    send(visit, "small.png", bytes(MB))
    assert stored(visit) == ["small.png"], "what was refused does not count"


def test_an_announced_length_over_the_limit_is_refused_before_anything_is_read(visit):
    taken: list[int] = []
    with pytest.raises(InputError, match="600 MB are more"):
        send(visit, "large.nii", bytes(MB), announced=600 * MB, taken=taken)
    assert taken == [] and stored(visit) == []
    assert visit.problems == ["600 MB are more than the 2 MB that are allowed; use `tumorlens run`"]


def test_files_together_may_not_be_over_the_limit(visit):
    send(visit, "one", bytes(MB + 500_000))
    with pytest.raises(InputError, match="MB are more"):
        send(visit, "two", bytes(MB))
    assert stored(visit) == ["one"]
    for n in range(3):
        send(visit, f"{n}", b"x")
    with pytest.raises(InputError, match="5 files are more than the 4 that are allowed; put the files of a series"):
        send(visit, "fifth", b"x")


def test_a_broken_connection_leaves_no_part(visit):
    async def chunks():
        yield b"begin"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(visit.receive("scan.png", chunks()))
    assert stored(visit) == []
    assert visit.take_received() == []


def test_files_of_one_name_do_not_replace_each_other(visit):
    for content in (b"one", b"two"):
        send(visit, "a/IM1", content)
    assert stored(visit) == ["2-IM1", "IM1"]


def png(tmp_path: Path) -> bytes:
    path = tmp_path / "picture.png"
    save(path, phantom_slice(2, "meningioma").image)
    return path.read_bytes()


def test_files_become_jobs_and_a_bad_one_has_its_sentence(visit, tmp_path):
    send(visit, "sick.png", png(tmp_path))
    send(visit, "bad.png", b"no picture")
    jobs = {job.name: job for job in visit.take_received()}
    assert set(jobs) == {"sick.png", "bad.png"}
    assert all(job.ended.wait(60) for job in jobs.values())
    assert jobs["sick.png"].state == DONE
    assert jobs["sick.png"].result.heat is not None
    assert jobs["bad.png"].state == FAILED and jobs["bad.png"].error.startswith("bad.png: ")
    assert visit.jobs == [jobs["bad.png"], jobs["sick.png"]]
    assert visit.take_received() == []


def test_loose_dicom_files_and_a_zip_of_them_are_one_scan_each(visit, tmp_path):
    visit.limits = UploadLimits()
    files = series(tmp_path / "series", SICK)
    for file in files:
        send(visit, file.name, file.read_bytes())
    zipped = tmp_path / "study.zip"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"IMAGES/{file.name}")
    (loose,) = visit.take_received()
    assert loose.name == "MR series 5"
    visit.clear()
    send(visit, "study.zip", zipped.read_bytes())
    (packed,) = visit.take_received()
    assert len(loose.scan.files) == len(packed.scan.files) == len(files)


def test_loose_dicom_series_have_names_of_their_own(visit, tmp_path):
    visit.limits = UploadLimits()
    names = []
    for study in (save_study(tmp_path / "both", T1, T2), series(tmp_path / "other", SeriesNumber=3)):
        for file in study:
            send(visit, file.name, file.read_bytes())
        names += [job.name for job in visit.take_received()]
    assert names == ["MR series 3", "MR series 4", "MR series 3 (2)"]
    assert all(job.ended.wait(60) for job in visit.jobs)
    assert not any("tmp" in job.error for job in visit.jobs)
    (last,) = visit.run_again(visit.jobs[-1], frame=0)
    assert last.name == "MR series 3 (2)"


def test_a_frame_of_a_4d_file_can_be_chosen(visit, tmp_path):
    path = tmp_path / "echoes.nii"
    frames = np.stack([SICK.image, SICK.image], axis=-1)
    nib.save(nib.Nifti1Image(frames, SICK.affine), path)
    visit.limits = UploadLimits(upload_mb=50)
    send(visit, path.name, path.read_bytes())
    (job,) = visit.take_received()
    assert job.ended.wait(60) and n_frames_of(job) == 2
    assert progress_of(job, 0, True) == "the NIfTI is 4-D with 2 frames; choose frame 0 to 1"
    (again,) = visit.run_again(job, frame=1)
    assert again.ended.wait(60) and again.state == DONE and n_frames_of(again) == 0
    assert "<td>1</td>" in facts_html(again.result, 1.0).partition("Frame")[2]
    assert visit.jobs == [again]
    (forced,) = visit.run_again(again, force=True)
    assert (forced.options.frame, forced.options.force) == (1, True)


def test_a_removed_scan_leaves_no_file(visit, tmp_path):
    send(visit, "sick.png", png(tmp_path))
    send(visit, "other.png", png(tmp_path))
    other, sick = visit.take_received()
    assert other.ended.wait(60) and sick.ended.wait(60)
    visit.remove(sick)
    ends = time.monotonic() + 20
    while {name.partition(".")[0] for name in stored(visit)} != {other.id, "other"} and time.monotonic() < ends:
        time.sleep(0.05)
    assert {name.partition(".")[0] for name in stored(visit)} == {other.id, "other"}
    assert visit.jobs == [other]


def test_an_archive_without_a_scan_is_a_sentence_without_our_folders(visit, tmp_path):
    zipped = tmp_path / "empty.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("notes.txt", "no scan")
    send(visit, "empty.zip", zipped.read_bytes())
    assert visit.take_received() == []
    assert visit.problems == ["empty.zip: the archive holds no scan"]


def wait_until_gone(path: Path) -> bool:
    ends = time.monotonic() + 20
    while path.exists() and time.monotonic() < ends:
        time.sleep(0.05)
    return not path.exists()


def test_the_folder_goes_with_the_last_page(visits, visit, tmp_path):
    send(visit, "sick.png", png(tmp_path))
    visit.take_received()
    assert visits.enter("tab") is visit, "a reload finds its visit"
    assert visits.enter("other") is not visit
    assert visits.find(visit.id) is visit
    assert visits.find("unknown") is None
    visits.leave(visit)
    assert visit.folder.is_dir()
    visits.leave(visit)
    assert wait_until_gone(visit.folder)
    assert visits.find(visit.id) is None


def test_the_folder_is_private_and_gone_after_closing(visits, visit):
    send(visit, "sick.png", b"x")
    assert visit.folder.stat().st_mode & 0o077 == 0
    root = visit.folder.parent
    assert root.stat().st_mode & 0o077 == 0
    visits.close()
    assert not root.exists()


def test_clearing_makes_room(visit):
    for n in range(4):
        send(visit, f"{n}", bytes(400_000))
    visit.clear()
    for n in range(4):
        send(visit, f"{n}", bytes(400_000))
    assert len(visit.take_received()) == 4


def test_the_files_of_a_killed_server_are_deleted_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = tmp_path / f"tumorlens-{gone.pid}-abcdefgh.tmp"
    dead.mkdir()
    (dead / "scan.nii").touch()
    visits = Visits(JobQueue(lambda: None), UploadLimits())
    assert not dead.exists() and len(list(tmp_path.iterdir())) == 1
    visits.close()
