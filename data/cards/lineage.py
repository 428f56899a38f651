"""What first weights had learnt from. A run copies it to its own card, for their file may not last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tumorlens.data.cards.card import check_training, read_card
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of

START_HASH = "init_sha256"
_KEPT = ("stage", "data", "fold", "split", "seed", "init", START_HASH, "leaking_test_slices")
_OURS = (".safetensors", ".ckpt")  # what a run writes


def known_start(training: Mapping[str, Any], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What is known of the weights that a training started from.

    Args:
        training: Its settings, as on its card. A copy in them is believed; else the file is looked for.
        above: Files that were looked at on the way to it.

    Returns:
        ``{"start": ...}``: stage, sources, fold, split and seed of the start's own training, and its own start; None
        where there was no such training, as in weights of other programs. Empty where nothing is known: the file is not
        there, holds other weights by now, or its card cannot be read.
    """
    if "start" in training:
        return {"start": training["start"]}
    path = Path(str(training.get("init", "")))
    if path.suffix not in _OURS:
        return {"start": None}
    if path.resolve() in above:  # retrained in turns, under the same names: told already
        return {"start": None}
    if not path.is_file() or (START_HASH in training and training[START_HASH] != sha256_of(path)):
        return {}
    try:
        own = _training_of(path)
    except InputError:
        return {}
    if own is None:
        return {"start": None}
    kept = {key: own[key] for key in _KEPT if key in own}
    return {"start": kept | known_start(own, (*above, path.resolve()))}


def _training_of(weights: Path) -> dict[str, Any] | None:
    """The settings of the run that wrote a weight file: its card's, or a checkpoint's folder's; None where neither is
    there.

    Raises:
        InputError: They cannot be read.
    """
    if weights.suffix == ".ckpt":
        return _of_folder(weights.parent.parent / "config.yaml")
    card_path = weights.with_suffix(".json")
    if not card_path.is_file():
        return None
    card = read_card(weights)
    check_training(card.get("training", {}), card_path)
    return {**card.get("training", {}), **{key: card[key] for key in ("stage", "leaking_test_slices") if key in card}}


def _of_folder(config: Path) -> dict[str, Any] | None:
    if not config.is_file():
        return None
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{config}: cannot be read ({type(error).__name__})") from None
    check_training(settings, config)
    return {"stage": "segmentation" if "encoder" in settings else "classification", **settings}
