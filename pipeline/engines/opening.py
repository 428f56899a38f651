"""Both stages, opened on an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tumorlens.classification.predict import Classifier
from tumorlens.classification.predict import Network as ClassifierNetwork
from tumorlens.data.errors import InputError
from tumorlens.pipeline.engines.choice import choose_engine
from tumorlens.pipeline.engines.engine import Engine, UnsupportedNetworkError
from tumorlens.segmentation.predict import Network as SegmenterNetwork
from tumorlens.segmentation.predict import Segmenter

_log = logging.getLogger(__name__)
_Opened = TypeVar("_Opened")


def open_or_torch(
    open_on: Callable[[Engine], _Opened], engine: Engine, asked: str, precision: str
) -> tuple[_Opened, Engine]:
    """What is opened, and the engine that took it: PyTorch where the first one cannot and was not asked for by name.

    Args:
        open_on: Opens a network, or several, on an engine.
        engine: The first to try.
        asked: The user's word for it: ``auto``, ``torch`` or ``openvino``.
        precision: The user's word for that.

    Raises:
        InputError: What `open_on` raises; the engine that was asked for cannot take the network.
    """
    try:
        return open_on(engine), engine
    except UnsupportedNetworkError as error:
        if asked != "auto":
            raise InputError(f"{error}; use --engine torch") from None
        _log.warning("%s; PyTorch computes it instead, and --engine torch saves the attempt", error)
        instead = choose_engine("torch", "cpu", precision, engine.threads)
        return open_on(instead), instead


def open_stages(
    classifier: str | Path | None, segmenter: str | Path | None, engine: Engine, tta: bool = False
) -> tuple[Classifier, Segmenter]:
    """Both stages; on OpenVINO side by side, so that neither waits for the other's file.

    Args:
        classifier: Weights, or none for the shipped ones.
        segmenter: The same for stage two.
        engine: From `pipeline.engines.choice.choose_engine`.
        tta: See `classification.predict.Classifier`.

    Raises:
        InputError: Weights missing, damaged or of another architecture, or a network that the engine cannot take.
    """

    def one() -> Classifier:
        return Classifier.load(classifier, tta=tta, network=lambda path: open_classifier(path, engine))

    def two() -> Segmenter:
        return Segmenter.load(segmenter, tta=tta, network=lambda path: open_segmenter(path, engine))

    if engine.name == "torch":
        _set_threads(engine)
        return one(), two()
    with ThreadPoolExecutor(2, thread_name_prefix="open") as pool:
        first, second = pool.submit(one), pool.submit(two)
        return first.result(), second.result()


def open_classifier(path: Path, engine: Engine) -> ClassifierNetwork:
    """Stage one's network on an engine."""
    if engine.name == "openvino":
        from tumorlens.pipeline.engines.openvino_engine import OpenVinoClassifier

        return OpenVinoClassifier(path, engine)
    from tumorlens.classification.network import load_network

    return load_network(path, engine.device, half=engine.precision == "bf16")


def open_segmenter(path: Path, engine: Engine) -> SegmenterNetwork:
    """Stage two's network on an engine."""
    if engine.name == "openvino":
        from tumorlens.pipeline.engines.openvino_engine import OpenVinoSegmenter

        return OpenVinoSegmenter(path, engine)
    from tumorlens.segmentation.network import load_network

    return load_network(path, engine.device, half=engine.precision == "bf16")


def _set_threads(engine: Engine) -> None:
    if engine.threads is not None:
        import torch

        torch.set_num_threads(engine.threads)
