"""Finds the measured patients and pictures from which weights have learned, by the hashes on the weights' card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tumorlens.data.cards.lineage import PATIENTS, pictures_learned_from
from tumorlens.data.datasets.patient_hashes import hash_patients
from tumorlens.data.datasets.picture_hashes import PictureHashes
from tumorlens.data.datasets.sample import Sample

CHANCE = 0.01  # of slices from another source at most 0.6 % have the hash of a training slice
Patients = Mapping[str, frozenset[str]]  # patient -> hashes: that of the ID, or those of the patient's files


def measured_patients(samples: Sequence[Sample]) -> Patients:
    """The hashes of every patient in the samples."""
    patients: dict[str, set[str]] = {}
    for sample, hashed in zip(samples, hash_patients(samples), strict=True):
        patients.setdefault(sample.patient or str(sample.image), set()).add(hashed)
    return {patient: frozenset(hashes) for patient, hashes in patients.items()}


def leak_warnings(stage: str, card: Mapping[str, Any], patients: Patients, where: str = "measured") -> list[str]:
    """Warnings that weights, or their initial weights, have learned from measured patients.

    Args:
        stage: The stage of the weights.
        card: The card of the weights.
        patients: The measured patients, from `measured_patients`.
        where: Words for these patients: ``"measured"`` or ``"of fold 0"``.

    Returns:
        A line for each reason to mistrust the figures. A patient counts for the first reason that holds: the weights
        learned from the patient, the initial weights did, or the patient was in the validation part.
    """
    weights = f"the {stage} weights"
    listed = _listed(card)
    if listed is None:
        return [
            f"the card of {weights} does not list the patients that they learned from, so it cannot be checked whether "
            "they have seen the measured patients"
        ]
    reasons = {
        "train": f"{weights} have learned from {{}}",
        "start": f"{weights} started from weights that have learned from {{}}",
        "validation": f"the epoch and the operating point of {weights} were chosen on {{}}",
    }
    warnings = []
    uncounted = dict(patients)
    for part, reason in reasons.items():
        hashes_of_part = set(listed[part] or ())
        leaks = [patient for patient, hashes in uncounted.items() if hashes & hashes_of_part]
        for patient in leaks:
            del uncounted[patient]
        if leaks:
            warnings.append(reason.format(f"{len(leaks)} of the {len(patients)} patients {where}"))
    if listed["start"] is None:
        warnings.append(
            f"the card of {weights} does not list the patients that their initial weights "
            f"({card['training'].get('init')}) learned from, so it cannot be checked whether those have seen the "
            "measured patients"
        )
    return warnings


def learned_pictures(cards: Sequence[Mapping[str, Any]]) -> PictureHashes:
    """The pictures from which weights, and their initial weights, have learned; empty where no card lists any."""
    trainings = [card.get("training") for card in cards]
    texts = [pictures_learned_from(training) for training in trainings if isinstance(training, dict)]
    return PictureHashes.from_text("".join(filter(None, texts)))


def picture_warning(known: int, measured: int) -> list[str]:
    """A warning that measured slices were training slices, whatever they and their patients are called.

    Args:
        known: How many have the hash of a training slice.
        measured: How many there are.
    """
    if known <= CHANCE * measured:
        return []
    return [
        f"{known} of {measured} of these slices were training slices of the weights, or are copies of such: figures "
        "on them say nothing about new patients"
    ]


def copy_warning(stage: str, card: Mapping[str, Any], patients: Patients) -> list[str]:
    """A warning with the copies that a training on the same official split counted.

    The hashes do not show these copies: near-duplicates across the split have no common hash.
    """
    count = card.get("leaking_test_slices")
    if not count or not _share(card, patients, "test"):
        return []
    return [
        f"leaks: {count} of the test slices of the {stage} weights are copies of slices that they learned from, or of "
        "such patients"
    ]


def has_unseen_patients(card: Mapping[str, Any], patients: Patients) -> bool:
    """Whether the weights' training held out one of these patients: in its test part, or, where a held-out fold
    validated and nothing tested, in its validation part."""
    return _share(card, patients, _held_out(card))


def is_unseen_fold(card: Mapping[str, Any], patients: Patients) -> bool:
    """Whether the weights' training held out some of these patients, and used none of them otherwise."""
    others = {"train", "validation", "test"} - {_held_out(card)}
    return has_unseen_patients(card, patients) and not _share(card, patients, *others)


def _held_out(card: Mapping[str, Any]) -> str:
    return "validation" if card["training"].get("split") == "holdout" else "test"


def _share(card: Mapping[str, Any], patients: Patients, *parts: str) -> bool:
    listed = _listed(card) or {}
    hashes = {hashed for part in parts for hashed in listed.get(part, ())}
    return any(hashes_of_patient & hashes for hashes_of_patient in patients.values())


def _listed(card: Mapping[str, Any]) -> dict[str, Any] | None:
    training = card.get("training")
    return training.get(PATIENTS) if isinstance(training, dict) else None
