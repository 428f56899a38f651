"""OpenVINO's models, made from the weights once and kept in the user's cache folder.

The safetensors file stays the one source. What is kept is named by all that it was made from, is checked before each
use, and is made again where it is missing or damaged. Processes that make the same model at once do not disturb each
other: each makes its own, and the first one to be ready stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import openvino
from platformdirs import user_cache_path

from tumorlens.data.cards.card import checked_card
from tumorlens.data.cards.weights import checked_content
from tumorlens.data.files import UMASK, sha256_of
from tumorlens.pipeline.engines.engine import UnsupportedNetworkError

_GRAPHS = 2  # goes up when `pipeline.engines.graphs` changes what a model gives
_MODEL, _WEIGHTS, _STAMP = "model.xml", "model.bin", "stamp.json"
_MOST_KEPT = 16  # models; older ones go when a new one comes
_ABANDONED_S = 86_400.0  # after which a model in the making is one of a process that was killed
_OF_CARD = ("sha256", "architecture", "encoder", "decoder_channels", "input_size", "normalization")
_converting = Lock()  # torch and what stands on it cannot be imported by two threads at once
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where models are kept: ``$TUMORLENS_CACHE``, or the user's cache folder."""
    told = os.environ.get("TUMORLENS_CACHE")
    return (Path(told) if told else user_cache_path("tumorlens")) / "openvino"


def read_model(core: openvino.Core, path: Path, stage: str) -> openvino.Model:
    """A stage's network as OpenVINO's model, from the cache or from its weights.

    Args:
        core: OpenVINO's.
        path: The ``.safetensors`` file, its card beside it.
        stage: ``classification`` or ``segmentation``.

    Raises:
        InputError: Weights missing, damaged, of another stage, or of an architecture that OpenVINO cannot take.
    """
    card = checked_card(path, stage)
    folder = cache_folder() / f"{stage}-{_key(card)}"
    if _is_whole(folder, path, card):
        try:
            model = core.read_model(folder / _MODEL)
            with suppress(OSError):
                os.utime(folder)  # used lately, so it stays
            return model
        except RuntimeError as error:
            _log.info("%s: cannot be read, is made again (%s)", folder, error)
    _log.warning("%s: OpenVINO's model is made, once; this takes some seconds", path.name)
    with _converting:
        model = _convert(path, stage)
    try:
        _keep(model, folder, path, card)
        return core.read_model(folder / _MODEL)  # as every later run will, to the last bit
    except (OSError, RuntimeError) as error:  # no home, a full disk: slower starts, not a failure
        _log.warning("%s: the model cannot be kept there (%s)", folder, error)
    return model


def _key(card: dict[str, Any]) -> str:
    facts = {name: card.get(name) for name in _OF_CARD}
    facts["layer"] = card["refusal"]["layer"] if "refusal" in card else None
    facts["made by"] = [openvino.__version__, _GRAPHS]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _is_whole(folder: Path, weights: Path, card: dict[str, Any]) -> bool:
    """Whether a model is there, undamaged, and of weights that are so, too."""
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        sums = stamp["sha256"]
        whole = all(sha256_of(folder / name) == sums[name] for name in (_MODEL, _WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if whole and stamp.get("weights") != _look(weights):  # moved, copied or changed since: its hash tells
        checked_content(weights, card)
    return whole


def _look(weights: Path) -> list[Any]:
    """What changes when a file does, read without reading it."""
    state = weights.stat()
    return [str(weights.resolve()), state.st_size, state.st_mtime_ns]


def _convert(path: Path, stage: str) -> openvino.Model:
    from tumorlens.pipeline.engines.graphs import load_graph, to_openvino

    graph, size = load_graph(path, stage)
    try:
        return to_openvino(graph, size, stage)
    except Exception as error:  # a thousand architectures can fail in as many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedNetworkError(f"{path}: OpenVINO cannot take this network ({lines[0]})") from None


def _keep(model: openvino.Model, folder: Path, weights: Path, card: dict[str, Any]) -> None:
    """Write a model beside, then rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    aside = making.with_name(f"{making.name}-damaged")
    try:
        try:
            openvino.save_model(model, making / _MODEL, compress_to_fp16=True)  # as the weights are
        except RuntimeError as error:
            raise OSError(str(error)) from None
        sums = {name: sha256_of(making / name) for name in (_MODEL, _WEIGHTS)}
        (making / _STAMP).write_text(json.dumps({"sha256": sums, "weights": _look(weights)}), encoding="utf-8")
        making.chmod(0o777 & ~UMASK)  # other users of a common cache may read it
        if folder.exists() and not _is_whole(folder, weights, card):  # moved aside first: nobody meets half of it
            folder.rename(aside)
        with suppress(OSError):  # another process was quicker, and its model is as good
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):  # another process tidies, too
        _tidy(folder.parent)


def _tidy(root: Path) -> None:
    """Drop the models that were not used for the longest time, and what killed processes have left."""
    folders = [(p.stat().st_mtime, p) for p in root.iterdir() if p.is_dir()]
    models = sorted((entry for entry in folders if not entry[1].name.startswith(".")), reverse=True)
    left = [entry for entry in folders if entry[1].name.startswith(".") and time.time() - entry[0] > _ABANDONED_S]
    for _, old in [*models[_MOST_KEPT:], *left]:
        shutil.rmtree(old, ignore_errors=True)
