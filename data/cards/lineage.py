"""What the initial weights of a training (``--init``) had learnt from; copied, in case their file is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tumorlens.data.cards.card import check_training, read_card
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of

START_HASH = "init_sha256"
PATIENTS = "patient_hashes"
_COPIED = ("data", "fold", "split", "seed", "init", START_HASH)
_WEIGHTS = ("classifier.safetensors", "segmenter.safetensors")  # beside the folder of a run's checkpoints


def known_start(training: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the weights that a training starts from.

    Args:
        training: Its settings, as in ``config.yaml``. A copy in them is believed, else the file is read.

    Returns:
        ``{"start": ...}``: stage, data, fold, split and seed of the start's own training, and under ``patient_hashes``
        all patients that it and its own start learnt from, None where its card does not list them. ``{"start": None}``
        for weights of other programs. Empty where nothing is known: the file is not there, holds other weights by now,
        or its card cannot be read.
    """
    if "start" in training:
        return {"start": training["start"]}
    path = Path(str(training.get("init", "")))
    if path.suffix not in (".safetensors", ".ckpt"):  # what a run writes
        return {"start": None}
    if not path.is_file() or (START_HASH in training and training[START_HASH] != sha256_of(path)):
        return {}
    weights = _finished(path)
    if not weights.with_suffix(".json").is_file():
        return {} if path.suffix == ".ckpt" else {"start": None}
    try:
        card = read_card(weights)
        check_training(card.get("training", {}), weights.with_suffix(".json"))
    except InputError:
        return {}
    own = card.get("training", {})
    copy = {key: own[key] for key in _COPIED if key in own}
    return {"start": {"stage": card.get("stage"), **copy, PATIENTS: learnt_from(own)}}


def learnt_from(training: Mapping[str, Any]) -> list[str] | None:
    """The hashes of all patients that weights learnt from, their start included; None where the card lacks some."""
    parts = training.get(PATIENTS)
    if parts is None or parts["start"] is None:
        return None
    return sorted({patient for part in ("train", "validation", "start") for patient in parts[part]})


def patients_of_run(training: Mapping[str, Any], parts: Mapping[str, list[str]]) -> dict[str, Any]:
    """What a card says of the patients of a training: sorted hashes, each part for itself.

    Args:
        training: Its settings, as in ``config.yaml``.
        parts: The hashes of ``train``, ``validation`` and ``test``, one for each sample.

    Returns:
        The settings with ``patient_hashes``: the three parts and ``start``, the patients that only the initial weights
        learnt from, or None where that is not known.
    """
    settings = dict(training)
    known = known_start(training)
    start = known.get("start")
    more: list[str] | None = None if not known else []
    if start is not None:
        more = start.get(PATIENTS)
        settings["start"] = {key: value for key, value in start.items() if key != PATIENTS}
    listed = {name: sorted(set(hashes)) for name, hashes in parts.items()}
    rest = None if more is None else sorted(set(more) - set(listed["train"]))
    return {**settings, PATIENTS: {**listed, "start": rest}}


def _finished(path: Path) -> Path:
    """The weights whose card tells of a file: those of its run, if it is a checkpoint."""
    if path.suffix == ".safetensors":
        return path
    run = path.parent.parent
    return next((run / name for name in _WEIGHTS if (run / name).is_file()), path)
