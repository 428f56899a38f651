"""A second call with the same output folder: the results that are kept, made again, or left out of the inputs."""

from __future__ import annotations

import json
import math

import nibabel as nib
import numpy as np
import pytest

from tests.pipeline.batch.results import HEALTHY_PICTURE, SICK_PICTURE, time_of
from tests.scans.pictures import save, save_volume, table
from tests.scans.volumes import save_nrrd
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_volume
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.resume import find_earlier, quarantine_record
from tumorlens.pipeline.outputs import QUARANTINE

VOLUME = phantom_volume(7, "meningioma", shape=(96, 112, 12), spacing_mm=(2, 2, 10))


def test_continue_keeps_finished_results(tumorlens, pictures, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", pictures / "a", "-o", out).exit_code == 0
    assert tumorlens("run", pictures / "a", "-o", out).exit_code == 2  # neither --continue nor --overwrite
    before = (out / "sick" / "result.json").stat().st_mtime_ns
    (pictures / "a" / "new.png").write_bytes((pictures / "b" / "twin.png").read_bytes())
    assert tumorlens("run", pictures / "a", "-o", out, "--continue").exit_code == 0
    assert [row["scan"] for row in table(out)] == ["new.png", "sick.png"]
    assert (out / "sick" / "result.json").stat().st_mtime_ns == before
    (out / "sick" / "mask.png").unlink()  # an incomplete scan is run again
    assert tumorlens("run", pictures / "a", "-o", out, "--continue").exit_code == 0
    assert (out / "sick" / "mask.png").is_file()
    assert tumorlens("run", pictures / "a" / "new.png", "-o", out, "--continue").exit_code == 0
    assert {row["scan"] for row in table(out)} == {"new.png", "sick.png"}  # earlier rows stay
    assert tumorlens("run", pictures / "a", "-o", out, "--overwrite").exit_code == 0
    assert (out / "sick" / "result.json").stat().st_mtime_ns > before


def test_continue_runs_a_scan_again_if_its_content_or_the_settings_changed(tumorlens, tmp_path):
    path, out = tmp_path / "1.png", tmp_path / "out"
    labels = []
    for image, options in (
        (SICK_PICTURE, []),
        (HEALTHY_PICTURE, []),
        (SICK_PICTURE, ["--threshold", "1"]),
        (SICK_PICTURE, []),
    ):
        save(path, image)
        assert tumorlens("run", path, "-o", out, *options, *(["--continue"] if labels else [])).exit_code == 0
        (row,) = table(out)
        labels.append(row["label"])
    assert labels == ["meningioma", "no_tumor", "no_tumor", "meningioma"]


def test_results_of_other_runs_are_not_scans(tumorlens, tmp_path):
    save(tmp_path / "in" / "1.png", HEALTHY_PICTURE)
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "in" / "first").exit_code == 0
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "second").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "second")] == ["1.png"]
    assert tumorlens("run", f"{tmp_path}/in/**/*.png", "-o", tmp_path / "third").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "third")] == ["1.png"]


def test_results_inside_the_input_folder_are_not_scans(tumorlens, tmp_path):
    save(tmp_path / "1.png", HEALTHY_PICTURE)
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out").exit_code == 0
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out", "--overwrite").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["1.png"]


def test_continue_sees_a_change_in_each_file_of_a_volume(tumorlens, tmp_path):
    for k in range(12):
        (tmp_path / f"s{k:02d}.raw").write_bytes(VOLUME.image[..., k].astype("<i2").tobytes("F"))
    fields = ("type: short", "dimension: 3", "sizes: 96 112 12", "endian: little", "encoding: raw", "spacings: 2 2 10")
    path = save_nrrd(tmp_path / "a.nhdr", *fields, "data file: s%02d.raw 0 11 1")
    times = []
    for change in (False, False, True):
        if change:
            (tmp_path / "s05.raw").write_bytes((tmp_path / "s06.raw").read_bytes())
        assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
        times.append(time_of(tmp_path / "out" / "a"))
    assert times[0] == times[1] < times[2]


def test_a_frame_matters_to_four_dimensions_only(tumorlens, tmp_path):
    save_volume(tmp_path / "in" / "three.nii.gz", VOLUME)
    frames = np.stack([VOLUME.image, VOLUME.image], axis=3)
    nib.save(nib.Nifti1Image(frames, VOLUME.affine), tmp_path / "in" / "four.nii.gz")
    out = tmp_path / "out"
    assert tumorlens("run", tmp_path / "in", "-o", out).exit_code == 1
    before = time_of(out / "three")
    assert tumorlens("run", tmp_path / "in", "-o", out, "--continue", "--frame", "1").exit_code == 0
    assert time_of(out / "three") == before


def test_continue_runs_again_with_another_operating_point(tumorlens, pipeline, tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", SICK_PICTURE)
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    before = (tmp_path / "out" / "x" / "result.json").stat().st_mtime_ns
    point = {"mask_threshold": 0.99, "min_lesion_px": 60}
    monkeypatch.setitem(pipeline.segmenter.card, "operating_point", point)
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert (tmp_path / "out" / "x" / "result.json").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("classifier", "calibration", {"temperature": 3.0}),
        ("classifier", "conformal", {"thresholds": dict.fromkeys(CLASSES, 0.001)}),
        ("classifier", "refusal", {"layer": "layer3", "bias": 0.5, "limit": 9.0}),
        ("classifier", "operating_point", {"tumor_threshold": 0.5}),
        ("classifier", "normalization", {"mean": [0.5] * 3, "std": [0.5] * 3}),
        ("segmenter", "normalization", {"mean": [0.5] * 3, "std": [0.5] * 3}),
    ],
)
def test_continue_runs_again_with_another_card_of_the_same_weights(
    tumorlens, pipeline, tmp_path, monkeypatch, stage, key, value
):
    path, result = save(tmp_path / "x.png", HEALTHY_PICTURE), tmp_path / "out" / "x" / "result.json"
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    before = result.stat().st_mtime_ns
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert result.stat().st_mtime_ns == before
    monkeypatch.setitem(getattr(pipeline, stage).card, key, value)
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert result.stat().st_mtime_ns > before


def test_continue_keeps_a_result_that_holds_more_than_is_asked_for(tumorlens, tmp_path):
    path, result = save(tmp_path / "x.png", SICK_PICTURE), tmp_path / "out" / "x"
    extras = ["--explain", "--maps", "--secondary-capture"]
    assert tumorlens("run", path, "-o", tmp_path / "out", *extras[:2]).exit_code == 0
    before = time_of(result)
    for fewer in ([], ["--report"], ["--explain"], ["--maps"]):
        assert tumorlens("run", path, "-o", tmp_path / "out", "--continue", *fewer).exit_code == 0
        assert time_of(result) == before
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue", "--no-overlay").exit_code == 0
    assert time_of(result) == before
    assert (result / "explanation.png").is_file() and (result / "probability.png").is_file()
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue", *extras).exit_code == 0
    assert time_of(result) > before  # there was no secondary capture
    before = time_of(result)
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue", "--keep-identifiers").exit_code == 0
    assert time_of(result) > before


def test_continue_adds_overlays_that_were_left_out(tumorlens, tmp_path):
    path, result = save(tmp_path / "x.png", SICK_PICTURE), tmp_path / "out" / "x"
    done = tumorlens("run", path, "-o", tmp_path / "out", "--no-overlay")
    assert done.exit_code == 0 and "overlay:" not in done.stdout
    assert sorted(p.name for p in result.iterdir()) == ["mask.png", "result.json"]
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out", "--continue").exit_code == 0  # its files are no scans
    assert sorted(p.name for p in result.iterdir()) == ["mask.png", "overlay.png", "result.json"]
    assert [row["scan"] for row in table(tmp_path / "out")] == ["x.png"]


def test_the_output_folder_is_not_a_scan_that_failed(tumorlens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "1.png", HEALTHY_PICTURE)
    assert tumorlens("run", "1.png", "-o", "out").exit_code == 0
    assert tumorlens("run", "1.png", "out", "-o", "out", "--continue").exit_code == 0  # as a shell expands *
    assert [row["scan"] for row in table(tmp_path / "out")] == ["1.png"]


@pytest.mark.parametrize("file", ["mask.png", "overlay.png", "result.json"])
def test_a_file_that_a_power_failure_has_emptied_is_made_again(tumorlens, tmp_path, file):
    path, out = save(tmp_path / "x.png", SICK_PICTURE), tmp_path / "out"
    assert tumorlens("run", path, "-o", out).exit_code == 0
    (out / "x" / file).write_bytes(b"")
    assert tumorlens("run", path, "-o", out, "--continue").exit_code == 0
    assert (out / "x" / file).stat().st_size > 100


DAMAGES = {
    "no label": lambda content: content.pop("label"),
    "a text for a number": lambda content: content.update(confidence="0.9"),
    "a list of lists": lambda content: content.update(review=[["a"], ["b"]]),
    "a text for a table": lambda content: content.update(probabilities="high"),
    "no volume": lambda content: content.pop("tumor_volume_mm3"),
    "files that are numbers": lambda content: content.update(files=[1, 2]),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "nested too deep"])
def test_a_result_that_somebody_has_edited_is_made_again(tumorlens, tmp_path, damage):
    save(tmp_path / "sick.png", SICK_PICTURE)
    out, path = tmp_path / "out", tmp_path / "out" / "sick" / "result.json"
    assert tumorlens("run", tmp_path / "sick.png", "-o", out).exit_code == 0
    expected = table(out)
    if damage in DAMAGES:
        content = json.loads(path.read_text())
        DAMAGES[damage](content)
        path.write_text(json.dumps(content))
    else:
        path.write_text("[" * 100_000)
    done = tumorlens("run", tmp_path / "sick.png", "-o", out, "--continue")
    assert (done.exit_code, table(out)) == (0, expected), done.output
    assert json.loads(path.read_text())["label"] == "meningioma"


@pytest.mark.parametrize(
    ("limit", "is_tried"), [(None, []), (9.0, [9.5, math.inf])], ids=["ends its process", "takes too long"]
)
def test_a_scan_that_took_too_long_is_tried_again_with_more_time(tumorlens, tmp_path, limit, is_tried):
    job, out = Job(save(tmp_path / "sick.png", SICK_PICTURE), "sick.png"), tmp_path / "out"
    assert tumorlens("run", job.path, "-o", out).exit_code == 0
    result = out / job.folder / "result.json"
    content = json.loads(result.read_text())
    settings = {name: value for name, value in content["made_of"].items() if name != "source_sha256"}
    record = quarantine_record(job, settings, 3, limit) | {"made_of": content["made_of"]}
    (result.parent / QUARANTINE).write_text(json.dumps(record))
    assert find_earlier(job, out, settings, 5.0) == content  # what another run has written counts
    for name in ("result.json", *content["files"]):
        (result.parent / name).unlink(missing_ok=True)
    for seconds in (5.0, 9.0, 9.5, math.inf):
        if seconds in is_tried:
            assert find_earlier(job, out, settings, seconds) is None
        else:
            with pytest.raises(InputError, match=QUARANTINE):
                find_earlier(job, out, settings, seconds)
    done = tumorlens("run", job.path, "-o", out, "--continue")
    assert done.exit_code == (0 if is_tried else 1), done.output
