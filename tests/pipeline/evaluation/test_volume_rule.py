"""The fit of the rule for volumes: stacks from pictures, the regression, and the card."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.evaluation.volume_rule import Judged, _read, calibrate, fit_rule, volumes_of
from tumorlens.pipeline.volumes.rule import Features, Rule


@pytest.fixture(scope="module")
def volume_set(tmp_path_factory):
    """Two volumes with their masks, as an index."""
    folder = tmp_path_factory.mktemp("volumes")
    rows = ["image,mask,label,patient"]
    for seed in (7, 8):
        volume = phantom_volume(seed, "meningioma", shape=(64, 75, 12), spacing_mm=(3, 3, 10))
        for name, array in (("t1", volume.image), ("mask", volume.mask)):
            nib.save(nib.Nifti1Image(array, volume.affine), folder / f"{seed}_{name}.nii.gz")
        rows.append(f"{seed}_t1.nii.gz,{seed}_mask.nii.gz,meningioma,p{seed}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


def features(certainty, tumor):
    return Features(certainty, tumor, certainty * tumor, -3.0, 3.0)


def test_numbered_pictures_of_a_patient_are_a_stack_in_order():
    names = [f"CS_4941_{k:02d}_{word}" for word in ("t1c", "flair") for k in (*range(9, -1, -1), 11)]
    pictures = [Sample(Path(f"{name}.png"), "glioma", "a") for name in names]
    few = [Sample(Path(f"CS_5000_{k}_t1c.png"), "glioma", "b") for k in range(7)]
    stacks = list(volumes_of([*pictures, *few, Sample(Path("other.png"), "glioma", "c")]))
    assert [[s.image.stem for s in stack] for stack in stacks] == [
        [f"CS_4941_{k:02d}_{word}" for k in (*range(10), 11)] for word in ("t1c", "flair")
    ]


def test_pictures_without_a_patient_are_no_stack():
    assert list(volumes_of([Sample(Path(f"Tr-gl_{k:04d}.jpg"), "glioma", "") for k in range(20)])) == []


def test_a_stack_is_read_in_the_channel_of_its_pictures(tmp_path):
    pictures = []
    for k in range(8):
        image = np.zeros((40, 40, 3), np.uint8)
        image[10:] = (30, 100 + k, 200)
        write_png(tmp_path / f"a_{k}.png", image)
        pictures.append(Sample(tmp_path / f"a_{k}.png", "no_tumor", "a", channel=1))
    stack, truth = _read(pictures)
    assert [int(stack.slice(k)[-1, 0]) for k in range(8)] == list(range(100, 108))
    assert truth.shape == (8, 40, 40) and not truth.any()


def test_a_tumor_without_a_mask_teaches_no_rule(tmp_path):
    write_png(tmp_path / "a_0.png", phantom_slice(0, "glioma").image)
    with pytest.raises(InputError, match="a tumor without a mask"):
        _read([Sample(tmp_path / "a_0.png", "glioma", "a")])


def test_slices_of_a_volume_stay_together():
    slices = [
        Sample(Path("a.nii"), "glioma", "a", slice_index=k, plane=p) for p in ("axial", "coronal") for k in (3, 4)
    ]
    assert [[s.slice_index for s in volume] for volume in volumes_of(slices)] == [[3, 4], [3, 4]]


def test_the_rule_learns_what_tells_lesions():
    rng = np.random.default_rng(0)
    volumes = [
        Judged(
            [features(0.8 + 0.1 * rng.random(), 2 + rng.random()), features(0.4, -1 - rng.random())],
            [True, False],
            True,
        )
        for _ in range(30)
    ]
    rule = fit_rule([*volumes, *[Judged([], [], False)] * 8])
    assert rule.confidence(features(0.85, 2.5)) > 0.9
    assert rule.confidence(features(0.4, -1.5)) < 0.1
    assert rule.nothing == pytest.approx(0.00625 / (0.00625 + 0.98))  # 0.2 of 32, 9.8 of 10


def test_a_set_of_sick_volumes_does_not_make_an_empty_one_suspicious():
    sick = Judged([features(0.8, 2.0), features(0.3, -1.0)], [True, False], True)
    assert fit_rule([*[sick] * 46, Judged([], [], True)]).nothing < 0.05


def test_a_missed_lesion_counts_three_times():
    """Of four suspicions that look alike one is real: odds of one to one."""
    alike = [Judged([features(0.5, 0.0)] * 4, [True, False, False, False], True)] * 10
    assert fit_rule(alike).confidence(features(0.5, 0.0)) == pytest.approx(0.5, abs=0.01)


def test_suspicions_of_one_kind_teach_nothing():
    with pytest.raises(InputError, match="on lesions and beside them"):
        fit_rule([Judged([features(0.5, 1.0)], [True], True)])


def test_the_rule_is_written_to_the_card(weights, volume_set, monkeypatch):
    def known(judged):
        assert judged and all(len(one.features) == len(one.real) for one in judged)
        return Rule(bias=-1.23456)

    monkeypatch.setattr("tumorlens.pipeline.evaluation.volume_rule.fit_rule", known)
    request = EvaluationRequest(data=(str(volume_set),), stage="pipeline", **weights)
    classifier = Path(weights["classifier"])
    before = json.loads(classifier.with_suffix(".json").read_text())
    rule, n = calibrate(request, classifier)
    card = json.loads(classifier.with_suffix(".json").read_text())
    classifier.with_suffix(".json").write_text(json.dumps(before))
    assert (rule.bias, n) == (-1.23456, 2)
    assert card["lesion_rule"]["bias"] == -1.2346 and "2 volumes" in card["lesion_rule"]["method"]
    assert {key: value for key, value in card.items() if key != "lesion_rule"} == before
