"""Weights as they are shipped: one safetensors file and a JSON card beside it that says what it is.

Loading checks the file's SHA-256 against the card and unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.atomic import whole_file, write_text
from data.errors import InputError
from data.labels import CLASSES
from data.preprocess import PREPROCESS_VERSION
from data.seeds import MAX_SEED

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

CARD_SCHEMA = 1


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(state: dict[str, torch.Tensor], path: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write fp16 weights and their card; returns the card with schema, preprocessing version and hash filled in.

    Args:
        state: A model's ``state_dict``.
        path: Ends in ``.safetensors``; the card gets the same name with ``.json``.
        card: Architecture, classes, data, split, metrics, command ...
    """
    import torch
    from safetensors.torch import save_file

    half = {
        name: (tensor.detach().to("cpu", torch.float16) if tensor.is_floating_point() else tensor.detach().cpu())
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    with whole_file(path) as part:
        save_file({name: tensor.contiguous().clone() for name, tensor in half.items()}, part)
    full = {
        "schema_version": CARD_SCHEMA,
        **card,
        "preprocess_version": PREPROCESS_VERSION,
        "precision": "fp16",
        "sha256": sha256_of(path),
    }
    write_text(path.with_suffix(".json"), json.dumps(full, indent=2) + "\n")
    return full


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
_TEMPERATURES = (0.05, 20.0)  # what classification.calibration searches
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


def checked_content(path: Path, card: dict[str, Any]) -> bytes:
    """A weight file's bytes.

    Raises:
        InputError: Its SHA-256 is not the card's.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.get("sha256"):
        raise InputError(f"{path}: the weights are damaged or changed, their SHA-256 is not the one on the card")
    return content


def read_arrays(path: Path, prefix: str) -> dict[str, NDArray[Any]]:
    """Those tensors of a weight file whose name begins with a prefix, as NumPy arrays; nothing else is read.

    Raises:
        InputError: No valid safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path}: no valid safetensors file ({error})") from None


def load_weights(path: Path, stage: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights as float32 and their card.

    Args:
        path: The ``.safetensors`` file.
        stage: ``"classification"`` or ``"segmentation"``: what the card must say.

    Raises:
        InputError: Files missing, hash wrong, a card that lacks something, another stage or preprocessing version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    card = checked_card(path, stage)
    content = checked_content(path, card)
    try:
        state = load(content)
    except SafetensorError as error:
        raise InputError(f"{path}: no valid safetensors file ({error})") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, card


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


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a ``.safetensors`` or ``.pth`` file; nothing but tensors is unpickled.

    Raises:
        InputError: No such file, or it holds no tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path}: no valid safetensors file ({error})") from None
    except Exception as error:  # torch.load raises a different type for every way a file can be wrong
        raise InputError(f"{path}: cannot be loaded as weights ({type(error).__name__})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: holds no dictionary of tensors")
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def load_into(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load a whole state into a model.

    Raises:
        InputError: The state is of another architecture.
    """
    own = model.state_dict()
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}
    wrong = [n for n in wanted if n not in state or state[n].shape != own[n].shape] + [n for n in state if n not in own]
    if wrong:
        raise InputError(
            f"{path}: the checkpoint is of another architecture ({len(wrong)} tensors do not fit, such as {wrong[0]})"
        )
    model.load_state_dict(state, strict=False)  # strict but for the batch counters, which carry no knowledge
