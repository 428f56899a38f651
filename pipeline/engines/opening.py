"""Opening both stages on an engine."""

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
    open_on: Callable[[Engine], _Opened], engine: Engine, requested: str, precision: str
) -> tuple[_Opened, Engine]:
    """The opened networks, and their engine: PyTorch replaces an engine that cannot compute them and was not requested.

    Args:
        open_on: Opens one or several networks on an engine.
        engine: The engine to try first.
        requested: The engine that you requested: ``auto``, ``torch`` or ``openvino``.
        precision: The precision that you requested.

    Raises:
        InputError: The networks cannot be opened, or the requested engine cannot compute them.
    """
    try:
        return open_on(engine), engine
    except UnsupportedNetworkError as error:
        if requested != "auto":
            raise InputError(f"{error}; use --engine torch") from None
        torch_engine = choose_engine("torch", "cpu", precision, engine.threads)
        _log.warning("%s; PyTorch computes it instead. Use --engine torch to skip the attempt", error)
        return open_on(torch_engine), torch_engine


def open_stages(
    classifier: str | Path | None, segmenter: str | Path | None, engine: Engine, tta: bool = False
) -> tuple[Classifier, Segmenter]:
    """Both stages. On OpenVINO they open in parallel, so that neither waits for the other's file.

    Args:
        classifier: Weights, or None for the shipped ones.
        segmenter: The same for stage two.
        engine: From `pipeline.engines.choice.choose_engine`.
        tta: See `classification.predict.Classifier`.

    Raises:
        InputError: Weights are missing, damaged or of another architecture, or the engine cannot compute a network.
    """

    def open_stage_one() -> Classifier:
        return Classifier.load(classifier, tta=tta, network=lambda path: open_classifier(path, engine))

    def open_stage_two() -> Segmenter:
        return Segmenter.load(segmenter, tta=tta, network=lambda path: open_segmenter(path, engine))

    if engine.name == "torch":
        _set_threads(engine)
        return open_stage_one(), open_stage_two()
    with ThreadPoolExecutor(2, thread_name_prefix="open") as pool:
        first, second = pool.submit(open_stage_one), pool.submit(open_stage_two)
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
