"""Weights as they are shipped: one safetensors file and a JSON card beside it that says what it is.

Loading checks the file's SHA-256 against the card and unpickles nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.config import MAX_SEED
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.preprocess import PREPROCESS_VERSION

if TYPE_CHECKING:
    pass

CARD_SCHEMA = 1


def read_card(path: Path) -> dict[str, Any]:
    """The card beside a weight file.

    Raises:
        InputError: No weights or no card there, or the card is no JSON object of a known schema.
    """
    card_path = path.with_suffix(".json")
    for needed in (path, card_path):
        if not needed.is_file():
            raise InputError(f"{needed}: no such file; a model is a .safetensors file with a .json card beside it")
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{card_path}: the card is no valid JSON ({error})") from None
    if not isinstance(card, dict) or card.get("schema_version") != CARD_SCHEMA:
        raise InputError(f"{card_path}: the card is of an unknown schema")
    return card


_NEEDED = {
    "classification": ("architecture", "classes", "input_size", "operating_point"),
    "segmentation": ("architecture", "encoder", "decoder_channels", "input_size", "operating_point"),
}

_MOST = 1e30  # of what has no range of its own, so that float32 holds it
_TEMPERATURES = (0.05, 20.0)  # what tumorlens.classification.trust.calibration searches
_POINTS = {"classification": {"tumor_threshold": 1.0}, "segmentation": {"mask_threshold": 1.0, "min_lesion_px": 1e9}}


def checked_card(path: Path, stage: str) -> dict[str, Any]:
    """The card of weights of a stage; the weights themselves are not read.

    Args:
        path: The ``.safetensors`` file.
        stage: ``"classification"`` or ``"segmentation"``: what the card must say.

    Raises:
        InputError: Files missing, a card that lacks something, another stage or preprocessing version.
    """
    card = read_card(path)
    if card.get("stage") != stage:
        raise InputError(f"{path}: these weights are for {card.get('stage')}, not for {stage}")
    if card.get("preprocess_version") != PREPROCESS_VERSION:
        raise InputError(
            f"{path}: trained with preprocessing version {card.get('preprocess_version')}, "
            f"this program has version {PREPROCESS_VERSION}; train again"
        )
    check_settings(card, path.with_suffix(".json"), stage)
    return card


def check_training(training: Any, path: Path) -> None:
    """Raise an `InputError` if what a card says of a training, and of what that started from, cannot be so."""
    if not isinstance(training, dict):
        raise InputError(f"{path}: training is no JSON object")
    for key in ("fold", "seed"):
        if not isinstance(training.get(key, 0), int) or isinstance(training.get(key, 0), bool):
            raise InputError(f"{path}: training.{key} {training[key]!r} is no whole number")
    if not 0 <= training.get("seed", 0) <= MAX_SEED:
        raise InputError(f"{path}: training.seed {training['seed']!r} is no number from 0 to {MAX_SEED}")
    data = training.get("data", [])
    if not isinstance(data, list) or not all(isinstance(source, str) for source in data):
        raise InputError(f"{path}: training.data {data!r} is no list of names")
    if training.get("start") is not None:
        check_training(training["start"], path)


def check_settings(card: dict[str, Any], path: Path, stage: str) -> None:
    """Raise an `InputError` if a card lacks something or says the impossible."""
    check_training(card.get("training", {}), path)
    missing = [key for key in _NEEDED[stage] if key not in card]
    if missing:
        raise InputError(f"{path}: the card lacks {', '.join(missing)}")
    size = card["input_size"]
    if not isinstance(size, int) or size < 32 or (stage == "segmentation" and size % 32):
        wanted = "multiple of 32" if stage == "segmentation" else "whole number from 32 on"
        raise InputError(f"{path}: input_size {size!r} is no {wanted}")
    if not isinstance(card["architecture"], str):
        raise InputError(f"{path}: architecture {card['architecture']!r} is no name")
    point = card["operating_point"] if isinstance(card["operating_point"], dict) else {}
    for key, most in _POINTS[stage].items():
        value = point.get(key)
        if not _is_number(value, 0, most):
            raise InputError(f"{path}: operating_point.{key} {value!r} is no number from 0 to {most:g}")
    if not _is_number(point.get("volume_threshold", 0.5), 0, 1):
        told = point["volume_threshold"]
        raise InputError(f"{path}: operating_point.volume_threshold {told!r} is no number from 0 to 1")
    channels = card.get("decoder_channels", [1] * 5)
    if not isinstance(channels, list) or len(channels) != 5 or not all(isinstance(n, int) and n > 0 for n in channels):
        raise InputError(f"{path}: decoder_channels {channels!r} are not five whole numbers")
    if not isinstance(card.get("encoder", ""), str):
        raise InputError(f"{path}: encoder {card['encoder']!r} is no name")
    if "normalization" in card:
        _check_normalization(card["normalization"], path)
    if stage == "classification":
        _check_trust(card, path)


def _check_normalization(told: Any, path: Path) -> None:
    facts = _as_object(told, "normalization", path)
    for key, least in (("mean", -_MOST), ("std", 1e-6)):
        three = facts.get(key)
        if not isinstance(three, list) or len(three) != 3 or not all(_is_number(n, least) for n in three):
            wanted = "numbers above 0" if key == "std" else "numbers"
            raise InputError(f"{path}: normalization.{key} {three!r} are not three {wanted}")


def _check_trust(card: dict[str, Any], path: Path) -> None:
    """What says when to believe a classifier: each part may be absent, none may be nonsense."""
    if "calibration" in card:
        temperature = _as_object(card["calibration"], "calibration", path).get("temperature")
        if not _is_number(temperature, *_TEMPERATURES):
            low, high = _TEMPERATURES
            raise InputError(f"{path}: calibration.temperature {temperature!r} is no number from {low:g} to {high:g}")
    if "conformal" in card:
        told = _as_object(card["conformal"], "conformal", path).get("thresholds")
        thresholds = _as_object(told, "conformal.thresholds", path)
        if set(thresholds) != set(CLASSES):
            raise InputError(f"{path}: conformal.thresholds are for {sorted(thresholds)}, not for {sorted(CLASSES)}")
        for name, value in thresholds.items():
            if value is not None and not _is_number(value, 0, 1):
                raise InputError(
                    f"{path}: conformal.thresholds.{name} {value!r} is neither a number from 0 to 1 nor null"
                )
    if "refusal" in card:
        refusal = _as_object(card["refusal"], "refusal", path)
        if not isinstance(refusal.get("layer"), str):
            raise InputError(f"{path}: refusal.layer {refusal.get('layer')!r} is no name")
        for key in ("bias", "limit"):
            if not _is_number(refusal.get(key)):
                raise InputError(f"{path}: refusal.{key} {refusal.get(key)!r} is no number")


def _as_object(value: Any, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {name} {value!r} is no JSON object")
    return value


def _is_number(value: Any, low: float = -_MOST, high: float = _MOST) -> bool:
    """Whether a value of a card is a number of a range; truths are none, nor is the NaN that Python's JSON knows."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
