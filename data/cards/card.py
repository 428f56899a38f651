"""Reads and checks the JSON card of a weight file, which describes the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tumorlens.data.config import MAX_SEED, PARTS
from tumorlens.data.errors import InputError
from tumorlens.data.labels import OUTLINES, ClassList
from tumorlens.data.preprocessing.preprocess import PREPROCESS_VERSION

CARD_SCHEMA = 1
WEIGHT_FILES = {  # stage -> the name that a training run gives its weights
    "classification": "classifier.safetensors",
    "segmentation": "segmenter.safetensors",
}
HASH_LETTERS = 24  # of a picture's hash in Base64
_LARGEST = 1e30  # of a number without a range of its own: float32 holds it
_TEMPERATURES, _BIASES = (0.05, 20.0), (-6.0, 6.0)  # the ranges in which classification.trust.calibration searches


@dataclass(frozen=True)
class _Rule:
    """A rule for the value under a key of a card.

    Attributes:
        key: With dots, as in ``calibration.temperature``. It is not checked where the object around it is absent.
        expected: The kind of value, in words that continue the sentence "X is not".
        holds: Whether a value follows the rule. It gets None where the key is absent.
        optional: Whether the key may be absent.
    """

    key: str
    expected: str
    holds: Callable[[Any], bool]
    optional: bool = False


def read_card(path: Path) -> dict[str, Any]:
    """The card of a weight file, which lies in the same folder.

    Raises:
        InputError: The weights or the card are missing, or the card is not a JSON object of a known schema.
    """
    if path.is_dir() or (path.is_file() and path.suffix != ".safetensors"):
        raise InputError(f"{path}: not a weight file; a model is a .safetensors file with a .json card next to it")
    card_path = path.with_suffix(".json")
    for needed in (path, card_path):
        if not needed.is_file():
            raise InputError(f"{needed}: no such file; a model is a .safetensors file with a .json card next to it")
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the second, where it is nested too deep
        raise InputError(f"{card_path}: the card is not valid JSON ({error})") from None
    if not isinstance(card, dict) or card.get("schema_version") != CARD_SCHEMA:
        raise InputError(f"{card_path}: the card is of an unknown schema; use weights of this version of tumorlens")
    return card


def stage_card(path: Path, stage: str) -> dict[str, Any]:
    """The card of a stage's weights, with its settings unchecked.

    Args:
        path: The ``.safetensors`` file.
        stage: ``"classification"`` or ``"segmentation"``.

    Raises:
        InputError: As `read_card`, or the weights are of another stage.
    """
    card = read_card(path)
    if card.get("stage") != stage:
        raise InputError(f"{path}: these weights are for {card.get('stage')}, not for {stage}")
    return card


def checked_card(path: Path, stage: str) -> dict[str, Any]:
    """The card of a stage's weights that this program can use; arguments as in `stage_card`.

    Raises:
        InputError: As `stage_card`, or the card is of another preprocessing version, lacks a setting, or has an
            impossible one.
    """
    card = stage_card(path, stage)
    if card.get("preprocess_version") != PREPROCESS_VERSION:
        raise InputError(
            f"{path}: trained with preprocessing version {card.get('preprocess_version')}, "
            f"this program has version {PREPROCESS_VERSION}; train again"
        )
    check_settings(card, path.with_suffix(".json"), stage)
    return card


def check_settings(card: dict[str, Any], path: Path, stage: str) -> None:
    """Raise an `InputError` if a card lacks a setting or has an impossible one."""
    check_training(card.get("training", {}), path)
    missing = [key for key in _NEEDED[stage] if key not in card]
    if missing:
        raise InputError(f"{path}: the card lacks {', '.join(missing)}")
    _check(card, _RULES[stage], path)
    if stage == "segmentation":
        if "regions" in card and "outlines" in card:
            raise InputError(
                f"{path}: the card has regions and outlines, and the network's channels are either of them"
            )
        _check(card, _points("by_region", [region["name"] for region in card.get("regions", ())]), path)
    if stage == "classification":
        try:
            classes = ClassList.from_card(card)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        _check(card, _thresholds(classes.outputs), path)


def check_training(training: Any, path: Path) -> None:
    """Raise an `InputError` if a card's settings of a training, or of the initial weights' training, are impossible."""
    _check({"training": training}, (_object("training"),), path)
    _check(training, _TRAINING, path, "training.")
    if training.get("start") is not None:
        check_training(training["start"], path)


def _check(card: Mapping[str, Any], rules: Iterable[_Rule], path: Path, prefix: str = "") -> None:
    for rule in rules:
        *parents, key = rule.key.split(".")
        place: Any = card
        for parent in parents:  # each is an object or absent: its own rule comes first
            place = None if place is None else place.get(parent)
        if place is None or (rule.optional and key not in place):
            continue
        if not rule.holds(place.get(key)):
            raise InputError(f"{path}: {prefix}{rule.key} {place.get(key)!r} is not {rule.expected}")


def _is_number(value: Any, low: float = -_LARGEST, high: float = _LARGEST) -> bool:
    """Whether a value is a number in a range. True is not, nor is the NaN that Python's JSON reads."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_whole(value: Any, low: int, high: float = _LARGEST) -> bool:
    return isinstance(value, int) and _is_number(value, low, high)


def _is_list(value: Any, holds: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and length in (None, len(value)) and all(map(holds, value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_region(value: Any) -> bool:
    """Whether a value is a region with its values in masks, as far as this folder knows; see `data.masks.regions`."""
    return (
        isinstance(value, dict)
        and _is_name(value.get("name"))
        and _is_list(value.get("values"), lambda number: _is_whole(number, 1, 255))
    )


def _is_hash_text(value: Any) -> bool:
    """Whether a value is the Base64 of hashes of 18 bytes, see `data.datasets.picture_hashes`."""
    return (
        isinstance(value, str) and len(value) % HASH_LETTERS == 0 and re.fullmatch(r"[A-Za-z0-9+/]*", value) is not None
    )


def _object(key: str) -> _Rule:
    return _Rule(key, "a JSON object", lambda value: isinstance(value, dict), optional=True)


def _name(key: str) -> _Rule:
    return _Rule(key, "a name", _is_name)


def _number(key: str, low: float, high: float, optional: bool = False) -> _Rule:
    return _Rule(key, f"a number from {low:g} to {high:g}", lambda value: _is_number(value, low, high), optional)


def _thresholds(names: Sequence[str]) -> tuple[_Rule, ...]:
    """The rules of the prediction sets of some classes."""
    return (
        _Rule(
            "conformal.thresholds",
            f"a JSON object with a threshold for each of {', '.join(names)}",
            lambda value: isinstance(value, dict) and set(value) == set(names),
            optional=True,
        ),
        *(
            _Rule(
                f"conformal.thresholds.{name}",
                "a number from 0 to 1 or null",
                lambda value: value is None or _is_number(value, 0, 1),
            )
            for name in names
        ),
    )


def _points(key: str, names: Sequence[str]) -> tuple[_Rule, ...]:
    """The rules of the operating points of some channels."""
    return (
        _object(f"operating_point.{key}"),
        *(
            rule
            for place in (f"operating_point.{key}.{name}" for name in names)
            for rule in (
                _object(place),
                _number(f"{place}.mask_threshold", 0, 1),
                _number(f"{place}.min_lesion_px", 0, 1e9),
            )
        ),
    )


_TRAINING = (
    _Rule("fold", "a whole number from 0 on", lambda value: _is_whole(value, 0), True),
    _Rule("seed", f"a whole number from 0 to {MAX_SEED}", lambda value: _is_whole(value, 0, MAX_SEED), True),
    *(
        _Rule(name, "a whole number from 1 on", lambda value: _is_whole(value, 1), True)
        for name in ("epochs", "validate_every")
    ),
    _Rule("data", "a list of names", lambda value: _is_list(value, _is_name), True),
    _object("patient_hashes"),
    *(_Rule(f"patient_hashes.{part}", "a list of hashes", lambda value: _is_list(value, _is_name)) for part in PARTS),
    _Rule("patient_hashes.start", "a list of hashes or null", lambda value: value is None or _is_list(value, _is_name)),
    _object("picture_hashes"),
    _Rule("picture_hashes.train", "a text of hashes", _is_hash_text),
    _Rule("picture_hashes.start", "a text of hashes or null", lambda value: value is None or _is_hash_text(value)),
)
_NORMALIZATION = (
    _object("normalization"),
    _Rule("normalization.mean", "a list of three numbers", lambda value: _is_list(value, _is_number, 3)),
    _Rule(
        "normalization.std",
        "a list of three numbers above 0",
        lambda value: _is_list(value, lambda number: _is_number(number, 1e-6), 3),
    ),
)
_NEEDED = {
    "classification": ("architecture", "classes", "input_size", "operating_point"),
    "segmentation": ("architecture", "encoder", "decoder_channels", "input_size", "operating_point"),
}
_RULES = {
    "classification": (
        _Rule("input_size", "a whole number from 32 on", lambda value: _is_whole(value, 32)),
        _name("architecture"),
        _object("operating_point"),
        _number("operating_point.tumor_threshold", 0, 1),
        *_NORMALIZATION,
        _object("calibration"),
        _number("calibration.temperature", *_TEMPERATURES),
        _number("calibration.tumor_bias", *_BIASES, optional=True),
        _object("conformal"),
        _Rule(
            "conformal",
            "a JSON object with thresholds, or with too_few, the reason why there are none",
            lambda value: "thresholds" in value or _is_name(value.get("too_few")),
            optional=True,
        ),
        _object("lesion_rule"),
        *(
            _Rule(f"lesion_rule.{key}", "a number", _is_number, optional=True)
            for key in ("bias", "map", "slices", "both", "size", "depth")
        ),
        _number("lesion_rule.nothing", 0, 1, optional=True),
        _object("refusal"),
        _name("refusal.layer"),
        *(_Rule(f"refusal.{key}", "a number", _is_number) for key in ("bias", "limit")),
        _object("sequence"),
        _Rule("sequence.names", "a list of names", lambda value: _is_list(value, _is_name)),
    ),
    "segmentation": (
        _Rule("input_size", "a multiple of 32", lambda value: _is_whole(value, 32) and value % 32 == 0),
        _name("architecture"),
        _name("encoder"),
        _Rule(
            "decoder_channels",
            "a list of five whole numbers above 0",
            lambda value: _is_list(value, lambda channels: _is_whole(channels, 1), 5),
        ),
        _object("operating_point"),
        _number("operating_point.mask_threshold", 0, 1),
        _number("operating_point.min_lesion_px", 0, 1e9),
        _Rule(
            "outlines",
            f"a list of names from {', '.join(OUTLINES)}",
            lambda value: _is_list(value, lambda name: name in OUTLINES) and 0 < len(value) == len(set(value)),
            optional=True,
        ),
        *_points("by_outline", OUTLINES),
        _Rule("regions", "a list of regions with a name and values", lambda value: _is_list(value, _is_region), True),
        *_NORMALIZATION,
    ),
}
