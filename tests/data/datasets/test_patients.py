"""DICOM slices of one patient stay together in a data set, and nothing says whose they are."""

from __future__ import annotations

import pytest

from tests.scans.dicom import edit, save_series
from tests.scans.phantoms import read_rows
from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.inspection.check import check_set
from tumorlens.data.inspection.divide import divide, write_index
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.partition import load_partition
from tumorlens.data.training.prepared import prepare, prepare_once

HEAD = phantom_volume(7, "glioma", shape=(72, 90, 8), spacing_mm=(2.6, 2.4, 12))


def slices_of(folder, patient, seed=7, study=None, n=3):
    """Single DICOM files of a patient, as class folders have them."""
    phantom = phantom_volume(seed, "glioma", shape=(72, 90, 8), spacing_mm=(2.6, 2.4, 12))
    uid = {"StudyInstanceUID": study} if study else {}
    paths = save_series(folder / "tmp", phantom.image, phantom.affine, PatientID=patient, **uid)[2 : 2 + n]
    for k, path in enumerate(paths):
        path.rename(folder / f"{seed}_{k}.dcm")
    for path in (folder / "tmp").iterdir():
        path.unlink()
    (folder / "tmp").rmdir()


@pytest.fixture
def hospital(tmp_path):
    """Four patients of a clinic, three slices each."""
    for number in range(4):
        slices_of(tmp_path / "set" / "glioma", f"MRN-{number}", seed=number)
    return tmp_path / "set"


def test_slices_of_one_patient_id_are_one_patient(hospital, tmp_path):
    samples = load_samples(hospital)
    assert len(samples) == 12
    by_patient = {s.patient: {t.image.name[0] for t in samples if t.patient == s.patient} for s in samples}
    assert sorted(map(tuple, by_patient.values())) == [("0",), ("1",), ("2",), ("3",)]
    assert [s.patient for s in prepare(samples, Preprocess(64)).samples] == [s.patient for s in samples]
    index = tmp_path / "index.csv"
    write_index(divide(hospital, shares=(0.5, 0.25, 0.25)), index)
    assert len({(row["patient"], row["split"]) for row in read_rows(index)}) == 4
    run = load_partition(DataConfig((f"{index}@{hospital}",), split="official", size=64))
    assert len({s.patient for s in run.train.samples}) == 2


def test_the_identifier_is_written_nowhere(hospital, tmp_path):
    write_index(divide(hospital), tmp_path / "index.csv")
    samples = load_samples(hospital)
    prepare_once(samples, Preprocess(64), tmp_path / "kept")
    written = [tmp_path / "index.csv", *(tmp_path / "kept").iterdir()]
    assert len(written) == 2
    assert not any(b"MRN" in path.read_bytes() for path in written)
    assert not any("MRN" in str(sample) for sample in samples)
    assert "MRN" not in str(check_set(hospital).as_dict())


@pytest.mark.parametrize("patient", ["", None, "ANONYMOUS", "0000", "REMOVED", "N/A", "anonymous^patient"])
def test_without_a_patient_id_a_study_is_a_patient(tmp_path, patient):
    for seed, study in ((1, "1.2.3"), (2, "1.2.3"), (3, "1.2.4")):
        slices_of(tmp_path / "glioma", patient, seed, study)
    samples = load_samples(tmp_path)
    whose = {s.image.name[0]: s.patient for s in samples}
    assert whose["1"] == whose["2"] != whose["3"]
    assert all(whose.values())


def test_the_index_overrules_the_header(hospital):
    rows = [f"glioma/{k}_0.dcm,glioma,{'mine' if k == 0 else ''}" for k in range(2)]
    (hospital / "index.csv").write_text("\n".join(["image,label,patient", *rows]))
    first, second = load_samples(hospital)
    assert first.patient == "mine"
    assert second.patient.startswith("dicom-")


def test_a_volume_of_dicom_belongs_to_its_patient(tmp_path):
    from tests.scans.dicom import save_enhanced

    for name in ("a", "b"):
        save_enhanced(tmp_path / "no_tumor" / f"{name}.dcm", HEAD.image, HEAD.affine, PatientID="MRN-1")
    assert len({s.patient for s in load_samples(tmp_path)}) == 1
    assert check_set(tmp_path).patients == 1


def test_a_single_slice_is_not_a_volume_without_a_mask(hospital):
    report = check_set(hospital)
    assert report.of("volume_without_mask") == []
    assert len(report.of("no_mask")) == 12
    assert (report.patients, report.slices) == (4, 12)
    files = sorted(hospital.rglob("*.dcm"))
    edit(files[:1], PatientID="MRN-3")
    (hospital / "index.csv").write_text(
        "\n".join(["image,label,split", *(f"{f},glioma,{'test' if f == files[0] else 'train'}" for f in files)])
    )
    (text,) = check_set(hospital).of("patient_in_two_splits")
    assert text.endswith("1 in test, 3 in train")
