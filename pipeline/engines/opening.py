"""Both stages, opened on an engine."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from classification.predict import Classifier
from classification.predict import Network as ClassifierNetwork
from pipeline.engines.choice import Engine
from segmentation.predict import Network as SegmenterNetwork
from segmentation.predict import Segmenter

_log = logging.getLogger(__name__)


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
        from pipeline.engines.openvino_engine import OpenVinoClassifier

        return OpenVinoClassifier(path, engine)
    from classification.torch_network import load_network

    return load_network(path, engine.device, half=engine.precision == "bf16")


def open_segmenter(path: Path, engine: Engine) -> SegmenterNetwork:
    """Stage two's network on an engine."""
    if engine.name == "openvino":
        from pipeline.engines.openvino_engine import OpenVinoSegmenter

        return OpenVinoSegmenter(path, engine)
    from segmentation.torch_network import load_network

    return load_network(path, engine.device, half=engine.precision == "bf16")


def _set_threads(engine: Engine) -> None:
    if engine.threads is not None:
        import torch

        torch.set_num_threads(engine.threads)
