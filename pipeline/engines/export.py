"""A stage as a file for other programs: ONNX, OpenVINO or TorchScript, checked against PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from tumorlens.classification.predict import Classifier
from tumorlens.classification.refusal import CLIP
from tumorlens.classification.trust.calibration import THRESHOLD
from tumorlens.data.cards.card import read_card
from tumorlens.data.errors import InputError, reason_of, require
from tumorlens.data.files import claim, whole_file, write_text
from tumorlens.data.labels import CLASSES, SEQUENCES
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import PREPROCESS_VERSION, Preprocess
from tumorlens.pipeline.engines.built import INPUT, OUTPUTS
from tumorlens.pipeline.engines.graphs import load_graph, to_openvino

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt"}
_TOLERANCE = {"logits": 2e-3, "features": 2e-3, "map": 2.0}  # in fp32; a map has 255 levels
_OPSET = 18


@dataclass(frozen=True)
class Exported:
    """An exported stage.

    Attributes:
        path: The file. An OpenVINO file comes with a ``.bin`` file in the same folder.
        difference: Output -> its largest difference from PyTorch on the test slices.
    """

    path: Path
    difference: dict[str, float]


def export_stage(weights: Path, stage: str, kind: str, out: Path) -> Exported:
    """Write a stage as one graph, with a file ``FILE.json`` of its inputs, outputs and thresholds.

    The graph takes prepared slices ``images`` ``(n, size, size)`` uint8. It returns ``logits`` ``(n, outputs)`` and
    ``features`` ``(n, d)`` for classification, or ``map`` ``(n, c, size, size)`` uint8 for segmentation, with a
    channel for each of the card's ``outlines``, or of its ``regions``.

    Args:
        weights: A ``.safetensors`` file, with its card in the same folder.
        stage: ``classification`` or ``segmentation``.
        kind: ``onnx``, ``openvino`` or ``torchscript``.
        out: The file to write, with the suffix of the format.

    Raises:
        InputError: The weights are unusable, the suffix is wrong, the format cannot express the network, a package is
            missing, or the outputs differ from PyTorch's. In all cases nothing is written.
    """
    claim([out], "a network", is_ours=lambda file: True, overwrite=True)
    if out.suffix != SUFFIXES[kind]:
        raise InputError(f"{out}: a file of format {kind} ends in {SUFFIXES[kind]}")
    graph, size = load_graph(weights, stage)
    names = OUTPUTS[stage]
    images = check_slices(size)
    with torch.inference_mode():
        expected = _arrays(graph(torch.from_numpy(images)))
    names = names[: len(expected)]  # a classifier may have no features
    write, run = _FORMATS[kind]
    with whole_file(out) as part:
        try:
            write(graph, size, names, part)
            difference = compare(names, expected, run(part, images), out)
            if kind == "openvino":
                part.with_suffix(".bin").replace(out.with_suffix(".bin"))
        except (InputError, OSError):
            raise
        except Exception as error:  # exporters fail in a hundred ways
            raise InputError(f"{weights}: cannot be written as {kind} ({reason_of(error)})") from None
        finally:
            part.with_suffix(".bin").unlink(missing_ok=True)
    write_text(out.with_name(f"{out.name}.json"), _card(weights, kind, names, size))
    return Exported(out, difference)


def check_slices(size: int) -> NDArray[np.uint8]:
    """Prepared slices ``(n, size, size)`` of phantoms, on which an exported network is checked."""
    preprocess = Preprocess(size)
    return np.stack([preprocess(phantom_slice(n, label).image).image for n, label in enumerate(CLASSES)])


def _arrays(outputs: Any) -> list[NDArray[Any]]:
    several = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    return [np.asarray(output) for output in several]


def compare(
    names: Sequence[str], expected: Sequence[NDArray[Any]], exported: Sequence[NDArray[Any]], out: Path
) -> dict[str, float]:
    """The largest difference of each output.

    Args:
        names: The outputs, of `OUTPUTS`.
        expected: The outputs of PyTorch.
        exported: Those of the exported network.
        out: The file or folder of the network, for the message.

    Raises:
        InputError: A difference is too large.
    """
    difference = {}
    for name, one, other in zip(names, expected, exported, strict=True):
        far = float(np.abs(one.astype(np.float64) - other).max())
        size = 1.0 if name == "map" else max(1.0, float(np.abs(one).max()) / 10)
        if one.shape != other.shape or not far <= _TOLERANCE[name] * size:
            raise InputError(f"{out}: not written, because its {name} differ from PyTorch's by {far:.3g}")
        difference[name] = far
    return difference


def _card(weights: Path, kind: str, names: Sequence[str], size: int) -> str:
    """All that a program without tumorlens needs to read the outputs."""
    card = read_card(weights)
    keys = (
        "stage",
        "architecture",
        "encoder",
        "classes",
        "class_table",
        "outlines",
        "regions",
        "operating_point",
        "conformal",
        "lesion_rule",
    )
    from_card = {key: card[key] for key in (*keys, "sha256") if key in card}
    facts = {"format": kind, "input": {INPUT: ["n", size, size]}, "input_type": "uint8", "outputs": list(names)}
    facts |= {"preprocess_version": PREPROCESS_VERSION} | from_card
    return json.dumps(facts | (_heads(weights) if card["stage"] == "classification" else {}), indent=2) + "\n"


def _heads(weights: Path) -> dict[str, Any]:
    """What follows a classifier's network, as numbers: calibration, threshold, refusal and sequence."""
    classifier = Classifier.load(weights, "cpu")
    heads: dict[str, Any] = {
        "calibration": vars(classifier.calibration),  # a threshold on the card is part of its bias
        "operating_point": {"tumor_threshold": THRESHOLD},
    }
    if (refusal := classifier.refusal) is not None:
        arrays = {name: getattr(refusal, name).tolist() for name in ("mean", "std", "weight")}
        heads["refusal"] = arrays | {"bias": refusal.bias, "clip": CLIP, "limit": refusal.limit}
    if (sequence := classifier.sequence) is not None:
        heads["sequence"] = {"names": list(SEQUENCES)} | {name: a.tolist() for name, a in vars(sequence).items()}
    return heads


def _write_onnx(graph: torch.nn.Module, size: int, names: Sequence[str], path: Path) -> None:
    require("ONNX export", "export")
    import contextlib
    import io
    import warnings

    example = torch.zeros(2, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (example,),
            path,
            input_names=[INPUT],
            output_names=list(names),
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            opset_version=_OPSET,
            external_data=False,
            dynamo=True,
        )


def _write_openvino(graph: torch.nn.Module, size: int, names: Sequence[str], path: Path) -> None:
    stage = next(stage for stage, outputs in OUTPUTS.items() if names[0] in outputs)
    openvino.save_model(to_openvino(graph, size, stage), path, compress_to_fp16=True)


def _write_torchscript(graph: torch.nn.Module, size: int, names: Sequence[str], path: Path) -> None:
    import warnings

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.jit.trace(graph, torch.zeros(2, size, size, dtype=torch.uint8)).save(str(path))


def _run_openvino(path: Path, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
    """Outputs of an OpenVINO or ONNX file; OpenVINO reads both."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled([images])
    return [np.array(outputs[number]) for number in range(len(compiled.outputs))]


def _run_torchscript(path: Path, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
    with torch.inference_mode():
        return _arrays(torch.jit.load(str(path))(torch.from_numpy(images)))


_Write = Callable[[torch.nn.Module, int, Sequence[str], Path], None]
_Run = Callable[[Path, NDArray[np.uint8]], list[NDArray[Any]]]

_FORMATS: dict[str, tuple[_Write, _Run]] = {
    "onnx": (_write_onnx, _run_openvino),
    "openvino": (_write_openvino, _run_openvino),
    "torchscript": (_write_torchscript, _run_torchscript),
}
