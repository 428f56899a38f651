"""Which of the measured patients the weights have learnt from, by the hashes on their card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tumorlens.data.cards.lineage import PATIENTS
from tumorlens.data.datasets.patient_hashes import hash_patients
from tumorlens.data.datasets.sample import Sample

Patients = Mapping[str, frozenset[str]]  # patient -> its hashes: one of its ID, or one of each of its files


def measured_patients(samples: Sequence[Sample]) -> Patients:
    """The hashes of every patient among some samples."""
    patients: dict[str, set[str]] = {}
    for sample, hashed in zip(samples, hash_patients(samples), strict=True):
        patients.setdefault(sample.patient or str(sample.image), set()).add(hashed)
    return {patient: frozenset(hashes) for patient, hashes in patients.items()}


def leak_warnings(stage: str, card: Mapping[str, Any], patients: Patients, where: str = "measured") -> list[str]:
    """How many of the measured patients the weights, or those that they started from, have learnt from.

    Args:
        stage: Of the weights.
        card: Of the weights.
        patients: Whom they are measured on, from `measured_patients`.
        where: Which patients these are: ``"measured"`` or ``"of fold 0"``.

    Returns:
        A line for each reason to mistrust the figures. A patient counts in the first that holds: the weights learnt
        from it, the initial weights did, or it was in the validation part.
    """
    weights = f"the {stage} weights"
    listed = _listed(card)
    if listed is None:
        return [
            f"the card of {weights} does not list the patients that they learnt from, so it cannot be checked whether "
            "they have seen the measured patients"
        ]
    reasons = {
        "train": f"{weights} have learnt from {{}}",
        "start": f"{weights} started from weights that have learnt from {{}}",
        "validation": f"the epoch and the operating point of {weights} were chosen on {{}}",
    }
    warnings = []
    left = dict(patients)
    for part, reason in reasons.items():
        known = set(listed[part] or ())
        leaks = [patient for patient, hashes in left.items() if hashes & known]
        for patient in leaks:
            del left[patient]
        if leaks:
            warnings.append(reason.format(f"{len(leaks)} of the {len(patients)} patients {where}"))
    if listed["start"] is None:
        warnings.append(
            f"the card of {weights} does not list the patients that their initial weights "
            f"({card['training'].get('init')}) learnt from, so it cannot be checked whether those have seen the "
            "measured patients"
        )
    return warnings


def copy_warning(stage: str, card: Mapping[str, Any], patients: Patients) -> list[str]:
    """What a training on the same official split counted: near-duplicates across the split have no common hash."""
    count = card.get("leaking_test_slices")
    if not count or not has_test_patients(card, patients):
        return []
    return [
        f"leaks: {count} of the test slices of the {stage} weights are copies of slices that they learnt from, or of "
        "such patients"
    ]


def has_test_patients(card: Mapping[str, Any], patients: Patients) -> bool:
    """Whether some of these patients were in the test part of the weights' training."""
    return _share(card, patients, "test")


def is_test_fold(card: Mapping[str, Any], patients: Patients) -> bool:
    """Whether the weights' training tested on these patients, and neither learnt from nor validated on any of them."""
    return has_test_patients(card, patients) and not _share(card, patients, "train", "validation")


def _share(card: Mapping[str, Any], patients: Patients, *parts: str) -> bool:
    listed = _listed(card) or {}
    hashes = {hashed for part in parts for hashed in listed.get(part, ())}
    return any(own & hashes for own in patients.values())


def _listed(card: Mapping[str, Any]) -> dict[str, Any] | None:
    training = card.get("training")
    return training.get(PATIENTS) if isinstance(training, dict) else None
