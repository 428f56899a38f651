"""Weight files: written as fp16 safetensors with a card, read without unpickling."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.cards.card import CARD_SCHEMA, checked_card, read_card
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of, whole_file, write_text
from tumorlens.data.preprocessing.preprocess import PREPROCESS_VERSION

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


def save_weights(state: dict[str, torch.Tensor], path: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write fp16 weights and their card. Returns the card with schema, preprocessing version and hash filled in.

    Args:
        state: A model's ``state_dict``.
        path: Ends in ``.safetensors``. The card gets the same name with ``.json``.
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
    write_text(path.with_suffix(".json"), card_text(full))
    return full


_HASH_LIST = re.compile(r'\[\n\s+"[0-9a-f]{12}"(,\n\s+"[0-9a-f]{12}")*\n\s+\]')
_HASHES_A_LINE = 7


def card_text(card: dict[str, Any]) -> str:
    """A card as JSON for readers: one key a line, and seven hashes of patients a line."""

    def short(match: re.Match[str]) -> str:
        hashes, indent = match[0].split()[1:-1], " " * 8
        lines = [indent + " ".join(hashes[i : i + _HASHES_A_LINE]) for i in range(0, len(hashes), _HASHES_A_LINE)]
        return "\n".join(["[", *lines, " " * 6 + "]"])

    return _HASH_LIST.sub(short, json.dumps(card, indent=2)) + "\n"


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
    """The tensors of a weight file whose names begin with a prefix, as NumPy arrays. The others are not read.

    Raises:
        InputError: It is not a valid safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from None


def checked_arrays(path: Path, card: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """All tensors of a weight file as NumPy arrays, in the precision of the file.

    Raises:
        InputError: Its SHA-256 is not the card's, or it is not a valid safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(checked_content(path, card))
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from None


def load_weights(path: Path, stage: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights as float32 and their card.

    Args:
        path: The ``.safetensors`` file.
        stage: ``"classification"`` or ``"segmentation"``, as on the card.

    Raises:
        InputError: A file is missing, the hash is wrong, or the card fails `data.cards.card.checked_card`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    card = checked_card(path, stage)
    content = checked_content(path, card)
    try:
        state = load(content)
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, card


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` or ``.pth`` file. Nothing but tensors is unpickled.

    Raises:
        InputError: No such file, it holds no tensors, or its SHA-256 is not that of the card next to it.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such weight file")
    if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
        checked_content(path, read_card(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from None
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
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    wrong = [n for n in needed if n not in state or state[n].shape != own[n].shape] + [n for n in state if n not in own]
    if wrong:
        raise InputError(
            f"{path}: the checkpoint is of another architecture ({len(wrong)} tensors do not fit, such as {wrong[0]})"
        )
    model.load_state_dict(state, strict=False)  # only batch counters may be missing: they carry no knowledge
