"""Both networks on OpenVINO, which starts faster than PyTorch and computes faster on a CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from tumorlens.classification.probabilities import with_all_classes
from tumorlens.data.cards.card import read_card
from tumorlens.data.devices import usable_cores
from tumorlens.data.labels import ClassList
from tumorlens.pipeline.engines.built import CLASS_MAPS
from tumorlens.pipeline.engines.cache import open_model
from tumorlens.pipeline.engines.engine import Engine

_BATCH = 8  # slices of a stream at once: more are not faster and take memory
_MOST_STREAMS = 4  # each takes memory of its own
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


@cache
def core() -> openvino.Core:
    """OpenVINO's registry of devices, one for each process."""
    return openvino.Core()


def computes_bf16() -> bool:
    """Whether this processor computes bfloat16 in hardware (AMX, AVX512-BF16), according to OpenVINO."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class _Compiled:
    """A network that takes any number of slices."""

    def __init__(self, path: Path, stage: str, engine: Engine) -> None:
        # A slice in one stream never waits for a thread of another, whatever else the machine does.
        self._streams = min(engine.threads or usable_cores(), _MOST_STREAMS)
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[engine.precision],
            "NUM_STREAMS": self._streams,
        }
        if engine.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = engine.threads
        model, self._memory = open_model(core(), path, stage, settings)
        self.outputs = [output.get_any_name() for output in model.outputs]
        self._queue = openvino.AsyncInferQueue(model, self._streams)
        self._queue.set_callback(_keep)
        self._lock = Lock()  # the queue serves one call at a time

    def infer(self, images_nhw: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Each output for all slices, by its name; none without slices."""
        size = min(-(-len(images_nhw) // self._streams), _BATCH)  # every stream gets its share
        images_nhw = np.ascontiguousarray(images_nhw)  # requests read it while they run
        parts: dict[int, list[NDArray[Any]]] = {}
        errors: list[BaseException] = []
        with self._lock:
            try:
                for start in range(0, len(images_nhw), max(1, size)):
                    self._queue.start_async(
                        [images_nhw[start : start + size]], (parts, errors, start), share_inputs=True
                    )
            finally:
                self._queue.wait_all()
        if errors:
            raise errors[0]
        outputs = zip(*(parts[start] for start in sorted(parts)), strict=True)
        return {name: np.concatenate(output) for name, output in zip(self.outputs, outputs, strict=False)}


def _keep(
    request: openvino.InferRequest, place: tuple[dict[int, list[NDArray[Any]]], list[BaseException], int]
) -> None:
    """Keep a copy of a request's outputs, or the error: one that leaves a callback ends the process later."""
    parts, errors, start = place
    try:
        parts[start] = [np.array(tensor.data) for tensor in request.output_tensors]
    except BaseException as error:
        errors.append(error)


class OpenVinoClassifier:
    """A `classification.predict.Network`."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self._compiled = _Compiled(path, "classification", engine)
        self._classes = ClassList.from_card(read_card(path))

    def __call__(self, images_nhw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits and features of prepared slices."""
        if not len(images_nhw):
            return np.zeros((0, len(self._classes)), np.float32), None
        outputs = self._compiled.infer(images_nhw)
        return with_all_classes(outputs["logits"], self._classes), outputs.get("features")

    def class_maps(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """What each place adds to each logit, see `pipeline.engines.built`; None for other architectures."""
        return self._compiled.infer(images_nhw)[CLASS_MAPS] if CLASS_MAPS in self._compiled.outputs else None


class OpenVinoSegmenter:
    """A `segmentation.predict.Network`."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self._compiled = _Compiled(path, "segmentation", engine)

    def __call__(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lesion maps of prepared slices."""
        if not len(images_nhw):
            return images_nhw[:, None]
        return self._compiled.infer(images_nhw)["map"]
