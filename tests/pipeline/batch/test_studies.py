"""Scans of one study whose answers contradict each other say so, each with what all of them say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scans.pictures import table
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.batch.studies import disagree, study_of


def jobs_of(folder, **labels):
    """A picture of a phantom with each label."""
    jobs = []
    for n, (name, label) in enumerate(labels.items()):
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{name}.png", phantom_slice(n, label).image)
        jobs.append(Job(folder / f"{name}.png", f"{name}.png"))
    return jobs


def reasons_in(out):
    """Scan -> what its table and its result.json say about its study; both must say the same."""
    reasons = {}
    for row in table(out):
        review = json.loads((out / row["scan"].removesuffix(".png") / "result.json").read_text())["review"]
        assert row["review"] == "; ".join(review)
        reasons[row["scan"]] = [reason for reason in review if "do not agree" in reason]
    return reasons


def test_a_contradiction_is_in_the_review_of_all_scans_of_the_study(pipeline, tmp_path):
    jobs = jobs_of(tmp_path / "in", p1_t1="no_tumor", p1_t1c="meningioma", p2_t1="no_tumor", p2_t2="no_tumor")
    run_batch(pipeline, jobs, tmp_path / "out")
    reasons = reasons_in(tmp_path / "out")
    (first,), (second,) = reasons.pop("p1_t1.png"), reasons.pop("p1_t1c.png")
    assert first == second
    assert "p1_t1.png" in first and ": no tumor 1.00, p1_t1c.png" in first and ": meningioma 1.00" in first
    assert reasons == {"p2_t1.png": [], "p2_t2.png": []}


def test_the_reason_goes_with_the_contradiction(pipeline, tmp_path):
    """`--continue` with a scan that is another one now: neither a second reason nor an old one."""
    jobs, out = jobs_of(tmp_path / "in", p_t1="no_tumor", p_t2="meningioma"), tmp_path / "out"
    for _ in range(2):
        run_batch(pipeline, jobs, out, resume=True)
        assert [len(reasons) for reasons in reasons_in(out).values()] == [1, 1]
    jobs_of(tmp_path / "in", p_t1="meningioma")
    assert run_batch(pipeline, jobs, out, resume=True).kept == 1
    assert list(reasons_in(out).values()) == [[], []]


def test_the_reason_stays_while_the_other_scans_are_not_run_again(pipeline, tmp_path):
    jobs, out = jobs_of(tmp_path / "in", p_t1="no_tumor", p_t2="meningioma"), tmp_path / "out"
    run_batch(pipeline, jobs, out)
    run_batch(pipeline, jobs[:1], out, resume=True)
    assert [len(reasons) for reasons in reasons_in(out).values()] == [1, 1]


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (("a/BraTS-GLI-00001-000-t1c.nii.gz", "a/BraTS-GLI-00001-000-t2f.nii.gz"), True),
        (("a/sub-01_T1w.nii.gz", "a/sub-01_FLAIR.nii"), True),
        (("a/T1.nii", "a/T2.nii"), True),
        (("a/T1.nii", "b/T2.nii"), False),
        (("a/t1_1.png", "a/t1_2.png"), False),
        (("a/pre_t1.nii", "a/post_t1.nii"), False),
    ],
)
def test_files_of_a_study_differ_in_the_sequence_only(names, same):
    first, second = (study_of(Job(Path(name), name)) for name in names)
    assert first and (first == second) == same


def test_a_file_without_a_sequence_in_its_name_is_on_its_own():
    assert study_of(Job(Path("a/scan1.nii"), "scan1.nii")) == ""


def test_series_of_a_study_are_known_by_its_uid():
    assert study_of(Job(Path("a/t1.dcm"), "t1.dcm", study="1.2.3")) == "1.2.3"


@pytest.mark.parametrize(
    ("labels", "contradict"),
    [
        (["glioma"], False),
        (["glioma", "tumor"], False),
        (["glioma", "meningioma"], True),
        (["tumor", "no_tumor"], True),
        (["tumor", "tumor"], False),
        ([], False),
    ],
)
def test_labels_that_contradict_each_other(labels, contradict):
    assert disagree(labels) == contradict
