"""The patients and pictures from which the initial weights of a training (``--init``) learned.

A training copies them to its own card, because the file of the initial weights may be replaced later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tumorlens.data.cards.card import HASH_LETTERS, WEIGHT_FILES, check_settings, check_training, read_card
from tumorlens.data.config import TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of

START_HASH = "init_sha256"
PATIENTS, PICTURES = "patient_hashes", "picture_hashes"
_COPIED = ("data", "fold", "split", "seed", "init", START_HASH)


def known_start(training: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the weights that a training starts from.

    Args:
        training: The settings of the training, as in ``config.yaml``. A record in them is taken over. Without one, the
            card of the weights is read.

    Returns:
        ``{"start": ...}`` with stage, data, fold, split and seed of the initial weights' own training. Its entry
        ``patient_hashes`` lists all patients from which they and their own initial weights learned, or is None where
        their card does not list them; ``picture_hashes`` is the text of their pictures, if their card has one.
        ``{"start": None}`` for weights of other programs. Empty where the file is missing or holds other weights now,
        or its card cannot be read.
    """
    if "start" in training:
        return {"start": training["start"]}
    if training.get("init") == "shipped":  # its record could not be written
        return {}
    path = Path(str(training.get("init", "")))
    if path.suffix not in (".safetensors", ".ckpt"):  # what a run writes
        return {"start": None}
    if not path.is_file() or (START_HASH in training and training[START_HASH] != sha256_of(path)):
        return {}
    weights = _weights_of(path)
    if not weights.with_suffix(".json").is_file():
        return {} if path.suffix == ".ckpt" else {"start": None}
    try:
        card = read_card(weights)
        check_training(card.get("training", {}), weights.with_suffix(".json"))
    except InputError:
        return {}
    start = card.get("training", {})
    copied = {key: start[key] for key in _COPIED if key in start}
    pictures = pictures_learned_from(start)
    listed = {PATIENTS: learned_from(start), **({} if pictures is None else {PICTURES: pictures})}
    return {"start": {"stage": card.get("stage"), **copied, **listed}}


def learned_from(training: Mapping[str, Any]) -> list[str] | None:
    """The hashes of all patients from which weights and their initial weights learned; None if the card lacks some.

    Validation patients are among them, unless the run validated once, at its end, and so chose nothing by them.
    """
    parts = training.get(PATIENTS)
    if parts is None or parts.get("start") is None:
        return None
    chose = training.get("validate_every", 1) < training.get("epochs", 2)
    names = ("train", "start", *(("validation",) if chose else ()))
    return sorted({patient for part in names for patient in parts[part]})


def pictures_learned_from(training: Mapping[str, Any]) -> str | None:
    """The text of the hashes of all pictures that a card lists for weights and their initial weights, see
    `data.datasets.picture_hashes`; None if it lists none."""
    parts = training.get(PICTURES)
    return None if parts is None else parts["train"] + (parts["start"] or "")


def pictures_of(train: str, start: str | None) -> dict[str, str | None]:
    """A card's entry for pictures: those of the training, and those from which only its initial weights learned.

    Args:
        train: The text of the training slices' hashes.
        start: That of the initial weights; None where it is not known.
    """
    trained, started = (
        {text[i : i + HASH_LETTERS] for i in range(0, len(text), HASH_LETTERS)} for text in (train, start or "")
    )
    return {"train": train, "start": None if start is None else "".join(sorted(started - trained))}


def patients_of_run(
    training: Mapping[str, Any], parts: Mapping[str, list[str]], pictures: str | None = None
) -> dict[str, Any]:
    """The settings of a training with its patients and pictures, for a card.

    Args:
        training: The settings, as in ``config.yaml``.
        parts: The hashes of ``train``, ``validation`` and ``test``, one for each sample.
        pictures: The text of the training slices' hashes, see `data.datasets.picture_hashes`.

    Returns:
        The settings with ``patient_hashes``: the sorted hashes of the three parts and, as ``start``, of the patients
        from which only the initial weights learned. ``start`` is None where these patients are not known. With
        `pictures` also ``picture_hashes``: ``train``, and ``start`` of the initial weights, or None.
    """
    settings = dict(training)
    record = known_start(training)
    start = record.get("start")
    of_start: list[str] | None = [] if record else None
    if start is not None:
        of_start = start.get(PATIENTS)
        settings["start"] = {key: value for key, value in start.items() if key not in (PATIENTS, PICTURES)}
    listed = {name: sorted(set(hashes)) for name, hashes in parts.items()}
    only_of_start = None if of_start is None else sorted(set(of_start) - set(listed["train"]))
    settings[PATIENTS] = {**listed, "start": only_of_start}
    if pictures is not None:
        of_others = "" if record else None  # ImageNet's weights, or a file that is not there any more
        settings[PICTURES] = pictures_of(pictures, of_others if start is None else start.get(PICTURES))
    return settings


def card_of(path: Path | None) -> dict[str, Any]:
    """The card that describes a file of weights, or a checkpoint of a finished run; empty where there is none.

    Raises:
        InputError: The card cannot be read, or is damaged.
    """
    if path is None or path.suffix not in (".safetensors", ".ckpt"):
        return {}
    weights = _weights_of(path)
    if not (weights.is_file() and weights.with_suffix(".json").is_file()):
        return {}
    card = read_card(weights)
    if card.get("stage") in tuple(WEIGHT_FILES):
        check_settings(card, weights.with_suffix(".json"), card["stage"])
    return card


def size_of_start(config: TrainingConfig) -> int | None:
    """The input size of initial weights that are a whole network of the run's kind; None for all others.

    Raises:
        InputError: Their card cannot be read.
    """
    card = card_of(config.init_file)
    own = (config.stage, getattr(config, "arch", None), getattr(config, "encoder", None))
    return card["input_size"] if (card.get("stage"), card.get("architecture"), card.get("encoder")) == own else None


def _weights_of(path: Path) -> Path:
    """The weight file whose card describes a file: the file itself, or the weights of a checkpoint's run."""
    if path.suffix == ".safetensors":
        return path
    run = path.parent.parent
    return next((run / name for name in WEIGHT_FILES.values() if (run / name).is_file()), path)
