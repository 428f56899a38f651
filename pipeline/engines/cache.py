"""OpenVINO models, converted from the weights once and stored in your cache folder.

The safetensors file remains the only source. The name of a stored model is a hash of everything that it was made from.
A model is checked before each use and made again if it is missing or damaged. Processes that make the same model at the
same time do not disturb each other: each makes its own, and the first one that is ready stays.
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
from tumorlens.data.errors import reason_of
from tumorlens.data.files import UMASK, sha256_of
from tumorlens.pipeline.engines.engine import UnsupportedNetworkError

_GRAPHS = 3  # raise it when `pipeline.engines.graphs` changes the output of a model
_MODEL, _WEIGHTS, _STAMP = "model.xml", "model.bin", "stamp.json"
_MOST_MODELS = 16  # a new model replaces the one that was not used for the longest time
_ABANDONED_S = 86_400.0  # an unfinished model of this age was left by a process that was killed
_CARD_KEYS = ("sha256", "architecture", "encoder", "decoder_channels", "input_size", "normalization")
_converting = Lock()  # two threads cannot import torch and its dependents at the same time
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder of the models: in ``$TUMORLENS_CACHE``, or in your cache folder."""
    folder = os.environ.get("TUMORLENS_CACHE")
    return (Path(folder) if folder else user_cache_path("tumorlens")) / "openvino"


def read_model(core: openvino.Core, path: Path, stage: str) -> openvino.Model:
    """A stage's network as an OpenVINO model, from the cache or from its weights.

    Args:
        core: OpenVINO's registry of devices.
        path: A ``.safetensors`` file, with its card in the same folder.
        stage: ``classification`` or ``segmentation``.

    Raises:
        InputError: Weights are missing, damaged, of another stage, or of an architecture that OpenVINO cannot convert.
    """
    card = checked_card(path, stage)
    folder = cache_folder() / f"{stage}-{_key(card)}"
    if _is_whole(folder, path, card):
        try:
            model = core.read_model(folder / _MODEL)
            with suppress(OSError):
                os.utime(folder)  # recently used models stay
            return model
        except RuntimeError as error:
            _log.info("%s: cannot be read and is made again (%s)", folder, error)
    _log.warning("%s: converting the network for OpenVINO once, which takes some seconds", path.name)
    with _converting:
        model = _convert(path, stage)
    try:
        _store(model, folder, path, card)
        return core.read_model(folder / _MODEL)  # as every later run does, so that all results agree to the last bit
    except (OSError, RuntimeError) as error:  # no home folder or a full disk: later starts are slower, but work
        _log.warning("%s: the model cannot be stored there (%s)", folder, error)
    return model


def _key(card: dict[str, Any]) -> str:
    facts = {name: card.get(name) for name in _CARD_KEYS}
    facts["layer"] = card["refusal"]["layer"] if "refusal" in card else None
    facts["made by"] = [openvino.__version__, _GRAPHS]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _is_whole(folder: Path, weights: Path, card: dict[str, Any]) -> bool:
    """Whether a model is stored and neither the model nor its weights are damaged."""
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        sums = stamp["sha256"]
        whole = all(sha256_of(folder / name) == sums[name] for name in (_MODEL, _WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if whole and stamp.get("weights") != _file_state(weights):  # moved, copied or changed since: check its hash
        checked_content(weights, card)
    return whole


def _file_state(weights: Path) -> list[Any]:
    """Path, size and time of a file: they change when the file does, and are quick to read."""
    stat = weights.stat()
    return [str(weights.resolve()), stat.st_size, stat.st_mtime_ns]


def _convert(path: Path, stage: str) -> openvino.Model:
    from tumorlens.pipeline.engines.graphs import load_graph, to_openvino

    graph, size = load_graph(path, stage)
    try:
        return to_openvino(graph, size, stage)
    except Exception as error:  # a thousand architectures can fail in a thousand ways
        raise UnsupportedNetworkError(f"{path}: OpenVINO cannot take this network ({reason_of(error)})") from None


def _store(model: openvino.Model, folder: Path, weights: Path, card: dict[str, Any]) -> None:
    """Write a model into a temporary folder, then rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    aside = making.with_name(f"{making.name}-damaged")
    try:
        try:
            openvino.save_model(model, making / _MODEL, compress_to_fp16=True)  # like the weights
        except RuntimeError as error:
            raise OSError(str(error)) from None
        sums = {name: sha256_of(making / name) for name in (_MODEL, _WEIGHTS)}
        (making / _STAMP).write_text(json.dumps({"sha256": sums, "weights": _file_state(weights)}), encoding="utf-8")
        making.chmod(0o777 & ~UMASK)  # other users of a common cache may read it
        if folder.exists() and not _is_whole(folder, weights, card):  # move it first: no process may read half a model
            folder.rename(aside)
        with suppress(OSError):  # another process was faster, and its model is as good
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):  # another process may tidy at the same time
        _tidy(folder.parent)


def _tidy(root: Path) -> None:
    """Delete the models that were not used for the longest time, and leftovers of killed processes."""
    folders = [(p.stat().st_mtime, p) for p in root.iterdir() if p.is_dir()]
    models = sorted((entry for entry in folders if not entry[1].name.startswith(".")), reverse=True)
    abandoned = [entry for entry in folders if entry[1].name.startswith(".") and time.time() - entry[0] > _ABANDONED_S]
    for _, old in [*models[_MOST_MODELS:], *abandoned]:
        shutil.rmtree(old, ignore_errors=True)
