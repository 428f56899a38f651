"""What is said of a job names no patient, and still says what is wrong."""

from __future__ import annotations

import json
import re
import zipfile

import pytest

from tests.pipeline.services.durable.conftest import running, until_ended
from tests.scans.dicom import edit
from tests.scans.studies import SICK, series
from tumorlens.pipeline.services import durable
from tumorlens.pipeline.services.jobs import DONE, FAILED
from tumorlens.pipeline.services.spool import REST


def test_a_zip_of_a_study_is_one_job_and_no_name_of_it_comes_out(spool, pipeline, tmp_path):
    files = series(tmp_path / "series", SICK)
    arrival = spool.receive(REST)
    with zipfile.ZipFile(arrival.folder / "scan.zip", "w") as archive:
        for file in files:
            archive.write(file, f"DOE_JANE/MR_DOE/{file.name}")
        archive.writestr("DOE_JANE/picture_of_jane.png", b"\x89PNG\r\n\x1a\n broken")
    job = spool.accept(arrival)
    with running(spool, pipeline):
        (job,) = until_ended(spool, job.id)
    assert job.state == DONE
    assert [scan["name"] for scan in job.scans if not scan["error"]] == ["MR series 5-2"]
    assert {"mask.dcm", "measurements.dcm"} <= {name for scan in job.scans for name in scan["files"]}
    texts = json.dumps(job.scans).lower() + job.error.lower()
    texts += "".join(path.read_text().lower() for path in job.results.rglob("*.json"))
    assert "jane" not in texts and "doe" not in texts and str(tmp_path) not in texts
    assert any("picture" not in scan["error"] and scan["error"] for scan in job.scans)
    assert not (job.folder / "unpacked").exists()


def zip_of_bad_pictures(spool, n, folder="DOE/"):
    arrival = spool.receive(REST)
    with zipfile.ZipFile(arrival.folder / "scan.zip", "w") as archive:
        archive.mkdir(folder)
        for k in range(n):
            archive.writestr(f"{folder}jane{k}.png", b"\x89PNG\r\n\x1a\n broken")
    return spool.accept(arrival).id


def test_sentences_about_a_zip_with_folders_are_whole_and_its_names_are_read_once(spool, pipeline, monkeypatch):
    calls = []
    names_in = durable._names_in
    monkeypatch.setattr(durable, "_names_in", lambda folder: calls.append(folder) or names_in(folder))
    id = zip_of_bad_pictures(spool, 30)
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    assert len(calls) == 1
    assert (job.state, len(job.scans)) == (FAILED, 30)
    (plain,) = {scan["error"].replace(scan["name"], "NAME") for scan in job.scans}
    assert plain.startswith("NAME: ") and plain.count("NAME") == 1 and "jane" not in plain and "DOE" not in plain


def test_a_folder_called_like_a_word_of_a_sentence_leaves_the_word(spool, pipeline, tmp_path):
    file = series(tmp_path / "ct", SICK)[0]
    edit([file], Modality="CT")
    arrival = spool.receive(REST)
    with zipfile.ZipFile(arrival.folder / "scan.zip", "w") as archive:
        archive.write(file, "JANE/modality/series/1.dcm")
    id = spool.accept(arrival).id
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    sentence = " ".join([job.error, *(scan["error"] for scan in job.scans)])
    assert "its modality is CT" in sentence and "JANE" not in sentence, sentence


def test_a_damaged_object_is_named_by_its_uid(spool, pipeline):
    arrival, patient = spool.receive(REST), "20481234"
    file = series(arrival.folder / patient, SICK)[3]
    file.write_bytes(file.read_bytes()[:-3000])
    uid = "1.2.826.0.1.3680043.8.498.7.dcm"
    file.rename(file.with_name(uid))
    id = spool.accept(arrival).id
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    assert job.scans[0]["error"] == (
        f"MR series 5: {uid}: the pixel data are damaged or cut off; delete or replace this file"
    )


def zip_of(spool, **files):
    arrival = spool.receive(REST)
    with zipfile.ZipFile(arrival.folder / "scan.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return spool.accept(arrival).id


MHD = "ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = {}\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\nencoding: raw\ndata file: {}\n"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"19610203/77881234.png": b"\x89PNG\r\n\x1a\n broken"}, "scan.png: the png file is damaged"),
        ({"Kim/Lee": b"\x89PNG\r\n\x1a\n broken"}, ""),
        ({"../Kim/Lee.png": b"x"}, "leads out of it (...)"),
        ({"../../19610203/a.png": b"x"}, "leads out of it (...)"),
        ({f"../{'Doe_Jane' * 10}.png": b"x"}, "leads out of it (...)"),
        ({"../Doe\x01Jane.png": b"x"}, "leads out of it (...)"),
        ({"a.mhd": MHD.format("Doe Jane.raw")}, "data file ... is missing"),
        ({"a.mha": MHD.format("Doe.raw")}, "data file ... is missing"),
        ({"a.nrrd": NRRD.format("Doe.raw")}, "data file ... is missing"),
        ({"a.nhdr": NRRD.format("Doe%d.raw 1")}, "data files ... are not a pattern"),
        ({"a.nhdr": NRRD.format("/srv/mri/Doe_Jane/a.raw")}, "outside its own folder, in ...; put both"),
    ],
)
def test_no_sentence_holds_a_short_name_a_number_or_a_name_of_a_header(spool, pipeline, files, sentence):
    id = zip_of(spool, **files)
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    text = " ".join([job.error, *(scan["error"] for scan in job.scans)])
    assert sentence in text and job.state == FAILED, text
    assert not re.search("Kim|Lee|Doe|Jane|srv|19610203|77881234", text), text


def test_a_job_may_have_so_many_scans(spool, pipeline):
    id = zip_of_bad_pictures(spool, 501)
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    assert job.error == "501 scans are more than the 500 of one job; send several jobs"


def test_what_replaces_a_name_is_not_replaced_again(spool):
    job = spool.accept(spool.receive(REST))
    sentence = f"{job.folder}/unpacked/JANE/a b.png: JANE is like series 5 of picture"
    names = {"JANE", "series", "picture", f"{job.folder}/unpacked/JANE/a b.png"}
    assert durable._neutral(sentence, job, "MR series 5", names) == (
        "MR series 5: MR series 5 is like MR series 5 5 of MR series 5"
    )
    assert durable._neutral(f"{job.folder}/unpacked/x/y: bad", job, "scan.png", {"series"}) == "scan.png: bad"
