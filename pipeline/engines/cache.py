"""OpenVINO models, made from the weights and compiled once, and stored in your cache folder.

The safetensors file remains the only source. The name of a stored model is a hash of everything that it was made from,
the processor among it. A model is checked before each use and made again if it is missing or damaged. Its file is
mapped into memory, not read. Processes that make the same model at the same time do not disturb each other: each makes
its own, and the first one that is ready stays.
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

import cv2
import numpy as np
import openvino
from isal import isal_zlib
from numpy.typing import NDArray
from platformdirs import user_cache_path

from tumorlens.data.cards.card import checked_card
from tumorlens.data.cards.weights import checked_content
from tumorlens.data.errors import needs, reason_of
from tumorlens.data.files import UMASK
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.engines.built import build_model, n_outputs
from tumorlens.pipeline.engines.engine import UnsupportedNetworkError

_GRAPHS = 4  # raise it when `pipeline.engines.built` or `graphs` changes the output of a model
_MODEL, _STAMP = "model.blob", "stamp.json"
_MOST_MODELS = 16  # a new model replaces the one that was not used for the longest time
_ABANDONED_S = 86_400.0  # an unfinished model of this age was left by a process that was killed
_CARD_KEYS = ("sha256", "architecture", "encoder", "decoder_channels", "input_size", "normalization")
_converting = Lock()  # two threads cannot import torch and its dependents at the same time
_log = logging.getLogger(__name__)
Opened = tuple[openvino.CompiledModel, NDArray[np.uint8] | None]


def cache_folder() -> Path:
    """The folder of the models: in ``$TUMORLENS_CACHE``, or in your cache folder."""
    folder = os.environ.get("TUMORLENS_CACHE")
    return (Path(folder) if folder else user_cache_path("tumorlens")) / "openvino"


def open_model(core: openvino.Core, path: Path, stage: str, settings: dict[str, Any]) -> Opened:
    """A stage's network, compiled for the CPU, from the cache or from its weights.

    Args:
        core: OpenVINO's registry of devices.
        path: A ``.safetensors`` file, with its card in the same folder.
        stage: ``classification`` or ``segmentation``.
        settings: OpenVINO's properties of the compiled model.

    Returns:
        The model, and the memory that it uses, which has to live as long.

    Raises:
        InputError: Weights are missing, damaged, of another stage, or of an architecture that OpenVINO cannot compute,
            or they have to be converted and PyTorch is not installed.
    """
    card = checked_card(path, stage)
    folder = cache_folder() / f"{stage}-{_key(core, card, settings)}"
    stored = _stored(core, folder, path, card, settings)
    if stored is not None:
        return stored
    _log.warning("%s: converting the network for OpenVINO once, which takes some seconds", path.name)
    model = _compile(core, path, stage, settings)
    try:
        _store(model, folder, path, card)
    except (OSError, RuntimeError) as error:  # no home folder or a full disk: later starts are slower, but work
        _log.warning("%s: the model cannot be stored there (%s)", folder, error)
        return model, None
    return _stored(core, folder, path, card, settings) or (model, None)


def _key(core: openvino.Core, card: dict[str, Any], settings: dict[str, Any]) -> str:
    facts = {name: card.get(name) for name in _CARD_KEYS}
    facts["layer"] = card["refusal"]["layer"] if "refusal" in card else None
    facts["outputs"] = n_outputs(card)  # a card may be edited beside its weights
    facts["made by"] = [openvino.__version__, _GRAPHS]
    processor = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    facts["made for"] = [*processor, cv2.getCPUFeaturesLine()]  # OpenVINO's names do not tell all features
    facts["settings"] = settings
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _stored(
    core: openvino.Core, folder: Path, weights: Path, card: dict[str, Any], settings: dict[str, Any]
) -> Opened | None:
    """A model from the cache; None if there is none, or a damaged one.

    Raises:
        InputError: The weights are damaged.
    """
    content = _content(folder, weights, card)
    if content is None:
        return None
    try:
        model = core.import_model(openvino.Tensor(content, shared_memory=True), "CPU", settings)
    except RuntimeError as error:
        _log.info("%s: cannot be read and is made again (%s)", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(OSError):
        os.utime(folder)  # recently used models stay
    return model, content


def _content(folder: Path, weights: Path, card: dict[str, Any]) -> NDArray[np.uint8] | None:
    """The bytes of a stored model, mapped into memory, if neither the model nor its weights are damaged."""
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        # OpenVINO takes arrays that may be written; what is written to this one stays in memory.
        content = np.memmap(folder / _MODEL, np.uint8, mode="c")
        whole = isal_zlib.crc32(content) == stamp["crc32"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if whole and stamp.get("weights") != _file_state(weights):  # moved, copied or changed since: check its hash
        checked_content(weights, card)
    return content if whole else None


def _file_state(weights: Path) -> list[Any]:
    """Path, size and time of a file: they change when the file does, and are quick to read."""
    stat = weights.stat()
    return [str(weights.resolve()), stat.st_size, stat.st_mtime_ns]


def _compile(core: openvino.Core, path: Path, stage: str, settings: dict[str, Any]) -> openvino.CompiledModel:
    model = build_model(path, stage)
    if model is None:
        with (
            _converting,
            needs(f"{path}: the first start of a network that is not a ResNet or a U-Net on one", "train"),
        ):
            model = _converted(path, stage)
    try:
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UnsupportedNetworkError(f"{path}: OpenVINO cannot compute this network ({reason})") from None


def _converted(path: Path, stage: str) -> openvino.Model:
    from tumorlens.pipeline.engines.graphs import load_graph, to_openvino

    graph, size = load_graph(path, stage)
    try:
        return _in_fp16(to_openvino(graph, size, stage))
    except Exception as error:  # a thousand architectures can fail in a thousand ways
        raise UnsupportedNetworkError(f"{path}: OpenVINO cannot take this network ({reason_of(error)})") from None


def _in_fp16(model: openvino.Model) -> openvino.Model:
    """The model with fp16 numbers, like the weights; the model itself where there is no room to write it."""
    reader = openvino.Core()
    reader.set_property({"ENABLE_MMAP": False})  # a file that is mapped cannot be deleted on Windows
    try:
        with ScratchFolder() as scratch:
            openvino.save_model(model, Path(scratch) / "model.xml", compress_to_fp16=True)
            return reader.read_model(Path(scratch) / "model.xml")
    except (OSError, RuntimeError) as error:
        _log.warning("the temporary folder cannot be written to (%s); the model takes twice the memory", error)
        return model


def _store(model: openvino.CompiledModel, folder: Path, weights: Path, card: dict[str, Any]) -> None:
    """Write a model into a temporary folder, then rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    aside = making.with_name(f"{making.name}-damaged")
    try:
        content = model.export_model().getvalue()
        (making / _MODEL).write_bytes(content)
        stamp = {"crc32": isal_zlib.crc32(content), "weights": _file_state(weights)}
        (making / _STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        making.chmod(0o777 & ~UMASK)  # other users of a common cache may read it
        if folder.exists() and _content(folder, weights, card) is None:  # move it first: nobody may read half a model
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
