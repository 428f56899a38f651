"""Objects on their way in: whole on the disk, gathered by study, closed to jobs, found again after a restart."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from tests.pipeline.services.dicom_node.conftest import LIMITS, bytes_of, stored
from tests.scans.dicom import IDENTIFIERS
from tests.scans.dicom_results import written
from tests.scans.studies import LOCALIZER, SMALL_STUDY, T1, T1C, save_study
from tumorlens.data.dicom.headers import read_header
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.pipeline.services.dicom_node.archive import Archive
from tumorlens.pipeline.services.dicom_node.intake import BrokenError, Intake
from tumorlens.pipeline.services.dicom_node.puller import Puller
from tumorlens.pipeline.services.jobs import DONE, FAILED, WAITING
from tumorlens.pipeline.services.spool import DICOM, FullError


def close_all(intake):
    time.sleep(0.6)
    intake.close_complete()


def files_of(job):
    return sorted(file.name for file in (job.files / SMALL_STUDY).iterdir())


@pytest.fixture
def study(tmp_path):
    return save_study(tmp_path / "study", LOCALIZER, T1, T1C)


def test_a_study_becomes_one_job_once_nothing_has_come_for_a_while(intake, study):
    assert stored(intake, study) == [SMALL_STUDY] * len(study)
    intake.close_complete()
    assert not intake.spool.jobs(DICOM)
    close_all(intake)
    (job,) = intake.spool.jobs(DICOM)
    assert (job.state, job.details) == (WAITING, {"study": SMALL_STUDY})
    assert len(files_of(job)) == len(study)
    close_all(intake)
    assert len(intake.spool.jobs(DICOM)) == 1


def test_an_object_is_stored_byte_for_byte(intake, study):
    stored(intake, study[:1])
    (file,) = intake.spool.folder.rglob("*.dcm")
    assert file.read_bytes() == study[0].read_bytes()


def test_no_name_of_a_file_or_folder_names_the_patient(intake, study, caplog):
    caplog.set_level("INFO")
    stored(intake, study)
    with pytest.raises(BrokenError):
        intake.store(study[0].read_bytes(), "1.2.3")
    close_all(intake)
    names = caplog.text + "".join(str(path) for path in intake.spool.folder.rglob("*"))
    assert SMALL_STUDY in caplog.text and not [word for word in IDENTIFIERS if word in names]


def test_what_is_not_run_is_taken_and_dropped(intake, study, tmp_path):
    """Our own results come back where an archive sends on all that is new: they must not begin a study."""
    series = tmp_path / "series"
    series.mkdir()
    for path in study:
        if pydicom.dcmread(path).SeriesNumber == T1C["SeriesNumber"]:
            (series / path.name).write_bytes(path.read_bytes())
    own = written(tmp_path / "own", open_scan(series))
    assert stored(intake, own) == ["", "", ""]
    close_all(intake)
    assert not intake.spool.jobs(DICOM) and not intake.spool.unaccepted(DICOM)


def test_broken_objects_are_set_aside_and_the_others_go_on(intake, study):
    header = pydicom.dcmread(study[0])
    del header.StudyInstanceUID
    evil = pydicom.dcmread(study[1])
    evil.StudyInstanceUID = "../../1.2"
    contents = [b"no DICOM at all", study[2].read_bytes()[:150], bytes_of(header), bytes_of(evil)]
    for content in contents:
        with pytest.raises(BrokenError, match="an object that was received is damaged"):
            intake.store(content, "1.2.3")
    with pytest.raises(BrokenError, match="was sent as") as other:
        intake.store(study[3].read_bytes(), "1.2.3")
    assert other.value.is_another
    places = list((intake.spool.folder / "aside").iterdir())
    assert len(places) == 5
    assert all((place / "reason.txt").read_text() and (place / "object.dcm").is_file() for place in places)
    assert stored(intake, study[4:]) == [SMALL_STUDY] * len(study[4:])


def test_a_restart_goes_on_with_open_studies(intake, study):
    stored(intake, study[:5])
    (intake.spool.folder / "parts" / "half.dcm").write_bytes(b"of an object whose sender was not told")
    again = Intake(intake.spool, LIMITS)
    stored(again, study[5:])
    close_all(again)
    assert not again.spool.jobs(DICOM), "nobody knows whether all has come"
    assert not list((intake.spool.folder / "parts").iterdir())
    again.note_end(SMALL_STUDY, time.monotonic())
    again.close_complete()
    (job,) = again.spool.jobs(DICOM)
    assert len(files_of(job)) == len(study)


def test_a_process_killed_while_a_study_was_closed_and_more_came_loses_nothing(intake, study):
    stored(intake, study[:5])
    intake._open.clear()  # as `close` does first; then it was killed, after one more object
    stored(intake, study[5:])
    assert len(intake.spool.unaccepted(DICOM)) == 2
    again = Intake(intake.spool, replace(LIMITS, incomplete_timeout=0.5))
    close_all(again)
    (job,) = again.spool.jobs(DICOM)
    assert len(files_of(job)) == len(study)
    assert not again.spool.unaccepted(DICOM)


def test_late_objects_make_a_job_of_the_whole_study(intake, study):
    stored(intake, study[:9])
    close_all(intake)
    stored(intake, study[9:])
    close_all(intake)
    late, early = intake.spool.jobs(DICOM)
    assert (len(files_of(early)), len(files_of(late))) == (9, len(study))


def test_a_study_stays_open_while_the_disk_is_full(intake, study, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    stored(intake, study[:9])
    close_all(intake)
    stored(intake, study[9:])
    with monkeypatch.context() as disk:
        disk.setattr("os.link", full)
        disk.setattr("shutil.copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            close_all(intake)
    assert len(intake.spool.jobs(DICOM)) == 1
    close_all(intake)
    late, _ = intake.spool.jobs(DICOM)
    assert len(files_of(late)) == len(study)


def test_objects_that_come_again_are_not_run_again_unless_there_is_no_answer(intake, study):
    def again(state, delivery="sent"):
        (job,) = intake.spool.claim(1)
        intake.spool.finish(job.id, state)
        intake.spool.set_details(job.id, {**job.details, "delivery": {"state": delivery}})
        stored(intake, study[3:7])
        close_all(intake)
        return len(intake.spool.jobs(DICOM))

    stored(intake, study)
    close_all(intake)
    assert again(DONE) == 1 and not intake.spool.unaccepted(DICOM)
    intake.spool.delete(intake.spool.jobs(DICOM)[0].id)
    stored(intake, study)
    close_all(intake)
    assert again(FAILED) == 2
    assert again(DONE, "given up") == 3


@pytest.mark.parametrize("again", ["all but the damaged", "the damaged alone", "the rest"])
def test_what_comes_after_a_failure_replaces_or_completes(intake, study, again):
    """A series that comes again without an object does not get it back from the job that failed for it."""
    series = [path for path in study if pydicom.dcmread(path).SeriesNumber == T1C["SeriesNumber"]]
    stored(intake, study if again != "the rest" else set(study) - set(series[:4]))
    close_all(intake)
    (job,) = intake.spool.claim(1)
    intake.spool.finish(job.id, FAILED)
    stored(intake, {"all but the damaged": series[1:], "the damaged alone": series[:1], "the rest": series[:4]}[again])
    close_all(intake)
    late, _ = intake.spool.jobs(DICOM)
    assert len(files_of(late)) == len(study) - (again == "all but the damaged")


def test_a_full_folder_refuses(spool, study):
    there = [path for path in spool.folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in there) + sum(path.stat().st_size for path in study) // 2
    intake = Intake(spool, replace(LIMITS, spool_gb=size / 1e9))
    with pytest.raises(FullError, match=r"--spool-gb"):
        stored(intake, study)
    assert 0 < len(list(spool.folder.rglob("*.dcm"))) < len(study)
    with pytest.raises(FullError, match=r"--free-gb"):
        stored(Intake(spool, replace(LIMITS, free_gb=1e6)), study)


def test_a_study_that_finds_no_room_for_its_folder_leaves_none(intake, study, monkeypatch):
    make, full = Path.mkdir, OSError(errno.ENOSPC, "No space left on device")

    def mkdir(path, *args, **kwargs):
        if path.name == SMALL_STUDY:
            raise full
        return make(path, *args, **kwargs)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "mkdir", mkdir)
        with pytest.raises(OSError, match="No space left"):
            stored(intake, study)
    assert not list((intake.spool.folder / "jobs").iterdir())


def test_a_full_disk_is_called_so(intake):
    intake.limits = replace(LIMITS, spool_gb=1e12)
    with pytest.raises(FullError, match="the disk is full"):
        intake.check_room(10**18)


class FolderArchive:
    """Files of a study in the place of an archive: the network is not what is tested here."""

    url = "folder"

    def __init__(self, paths):
        self.paths = paths

    def studies(self, days):
        return []

    def series(self, study):
        return {"1.2": len(self.paths)}

    def objects(self, study, series):
        for path in self.paths:
            yield path.read_bytes(), str(pydicom.dcmread(path).SOPInstanceUID)


@pytest.mark.parametrize("fault", [FullError("no room"), RuntimeError("of the parser")], ids=repr)
def test_a_study_that_finds_no_room_is_fetched_again_and_never_run_in_part(spool, study, monkeypatch, caplog, fault):
    intake = Intake(spool, LIMITS)
    puller = Puller(intake, FolderArchive(study), False, 1, LIMITS)

    def poll():
        puller._memory.to_do = {SMALL_STUDY: (0, 0.0, time.time())}
        puller.poll()
        close_all(intake)
        return spool.jobs(DICOM)

    size = sum(path.stat().st_size for path in study) // 2
    intake.limits = replace(LIMITS, spool_gb=(intake._n_bytes + size) / 1e9)
    assert poll() == [] and not list(spool.folder.rglob("*.dcm")), "the sum is too much"
    intake.limits = LIMITS
    store, n_left = intake.store, [4]

    def fills_up(content, instance):
        n_left[0] -= 1
        if not n_left[0]:
            raise fault
        return store(content, instance)

    with monkeypatch.context() as disk:
        disk.setattr(intake, "store", fills_up)
        assert poll() == [] and not list(spool.folder.rglob("*.dcm"))
    assert caplog.text.count("not fetched") == 2
    (job,) = poll()
    assert len(files_of(job)) == len(study)


def test_what_an_archive_calls_an_object_is_no_path(spool, study, tmp_path, caplog):
    evil = pydicom.dcmread(study[0])
    evil.SOPInstanceUID = "../../../escaped"
    evil.save_as(study[0], enforce_file_format=True)
    puller = Puller(Intake(spool, LIMITS), FolderArchive(study), False, 1, LIMITS)
    puller._memory.to_do = {SMALL_STUDY: (0, 0.0, time.time())}
    puller.poll()
    assert not list(tmp_path.rglob("escaped*"))
    (job,) = spool.jobs(DICOM)
    assert len(files_of(job)) == len(study) - 1
    assert "damaged: it has no valid Study or SOP Instance UID; it was set aside" in caplog.text


def test_orthanc_is_asked_again_for_a_study_whose_job_failed(spool, study, monkeypatch):
    """An object that was replaced under its own UID changes no number."""
    intake, archive = Intake(spool, LIMITS), FolderArchive(study)
    archive.last_change = lambda: 0
    archive.stable_studies = lambda since: ([SMALL_STUDY], since + 1, True)
    puller = Puller(intake, archive, True, 1, LIMITS)
    puller.poll()
    puller.poll()
    puller.poll()
    (job,) = spool.claim(9)  # fetched once
    spool.finish(job.id, FAILED)
    replaced = pydicom.dcmread(study[0])
    replaced.SeriesDescription = "repaired"
    replaced.save_as(study[0])
    puller.poll()
    newest, _ = spool.jobs(DICOM)
    assert (newest.files / SMALL_STUDY / f"{replaced.SOPInstanceUID}.dcm").read_bytes() == study[0].read_bytes()


def test_an_answer_that_is_no_answer_ends_no_node(spool, monkeypatch, caplog):
    archive = Archive("http://127.0.0.1:9", is_orthanc=True)
    archive.last_change = lambda: 0
    changes = {"Changes": [{"ID": "a", "ChangeType": "StableStudy"}], "Last": 1, "Done": True}
    monkeypatch.setattr(archive, "_get", lambda path, missing=None: changes if missing is None else ["no object"])
    puller = Puller(Intake(spool, LIMITS), archive, True, 1, LIMITS)
    for _ in range(3):
        puller.poll()
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "no studies can be looked for: its answer cannot be read (AttributeError); tried again and again"
    ]


@pytest.mark.parametrize("content", ["", "null", "[]", "{}"])
def test_a_damaged_list_of_what_was_fetched_is_begun_anew(spool, study, caplog, content):
    file = spool.folder / "fetched.json"
    file.write_text(content)
    puller = Puller(Intake(spool, LIMITS), FolderArchive(study), False, 1, LIMITS)
    (message,) = caplog.messages
    assert message.startswith("fetched.json: damaged; studies may be fetched again")
    puller._memory.to_do = {SMALL_STUDY: (0, 0.0, time.time())}
    puller.poll()
    assert len(spool.jobs(DICOM)) == 1 and SMALL_STUDY in json.loads(file.read_text())["seen"]


def test_the_list_of_what_was_fetched_is_on_the_disk_before_it_gets_its_name(spool, monkeypatch):
    flushed = []
    monkeypatch.setattr(
        "tumorlens.pipeline.services.dicom_node.puller.flush",
        lambda path: flushed.append((path.name, path.read_text())),
    )
    Puller(Intake(spool, LIMITS), FolderArchive([]), False, 1, LIMITS).poll()
    ((name, content),) = flushed
    assert name != "fetched.json" and content == (spool.folder / "fetched.json").read_text()


def test_studies_on_a_page_are_not_forgotten_if_the_next_page_fails(spool, study):
    intake, archive, asked = Intake(spool, LIMITS), FolderArchive(study), []
    archive.last_change = lambda: 0
    archive.problem = str

    def stable_studies(since):
        asked.append(since)
        if asked == [0, 5]:
            raise ValueError("Orthanc starts again")
        return [SMALL_STUDY] if since == 0 else [], since + 5, since > 0

    archive.stable_studies = stable_studies
    puller = Puller(intake, archive, True, 1, LIMITS)
    puller.poll()
    puller.poll()
    assert asked == [0, 5] and not spool.jobs(DICOM)
    puller.poll()
    assert asked == [0, 5, 0, 5] and len(spool.jobs(DICOM)) == 1


def test_a_loss_that_is_heard_of_late_was_made_good_before(intake, study):
    """The first association was lost, the second brought all, and then the first was found to be dead."""
    stored(intake, study)
    lost = time.monotonic()
    intake.note_end(SMALL_STUDY, time.monotonic())
    intake.note_loss(SMALL_STUDY, lost)
    close_all(intake)
    assert len(intake.spool.jobs(DICOM)) == 1
    stored(intake, study[:1])
    intake.note_loss(SMALL_STUDY)
    close_all(intake)
    assert len(intake.spool.jobs(DICOM)) == 1


def test_a_file_of_a_failed_job_that_is_gone_keeps_no_study_open(intake, study, monkeypatch):
    stored(intake, study)
    close_all(intake)
    (job,) = intake.spool.claim(9)
    intake.spool.finish(job.id, FAILED)
    gone = sorted((job.files / SMALL_STUDY).iterdir())[-1]

    def read(file, keys):
        if file.name == gone.name:  # deleted after it was listed
            raise InputError("no such file")
        return read_header(file, keys)

    monkeypatch.setattr("tumorlens.pipeline.services.dicom_node.intake.read_header", read)
    again = [path for path in study if str(pydicom.dcmread(path).SOPInstanceUID) != gone.stem][:1]
    again[0].write_bytes(again[0].read_bytes() + b"\0\0")  # other bytes, so that something is new
    stored(intake, again)
    close_all(intake)
    newest, _ = intake.spool.jobs(DICOM)
    assert gone.name not in files_of(newest) and len(files_of(newest)) == len(study) - 1


def test_a_full_queue_refuses(spool, study):
    spool.most_waiting = 0
    with pytest.raises(FullError, match="0 jobs are waiting"):
        stored(Intake(spool, LIMITS), study)


def test_what_was_set_aside_goes_after_a_while(intake):
    with pytest.raises(BrokenError):
        intake.store(b"no DICOM", "1.2.3")
    intake.tidy()
    assert len(list((intake.spool.folder / "aside").iterdir())) == 1
    intake.limits = replace(LIMITS, keep_hours=0.0)
    intake.tidy()
    assert not list((intake.spool.folder / "aside").iterdir())
