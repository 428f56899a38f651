"""`tumorlens info`: versions, extras, devices, models and their hashes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tumorlens.data.config import setting
from tumorlens.data.errors import EXTRAS, InputError, absent_packages
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import say


@dataclass(frozen=True)
class InfoCall:
    """The models, and the form of the printed facts."""

    classifier: Path | None = setting(None, "Weights of your own.", metavar="FILE", shown="those that are shipped")
    segmenter: Path | None = setting(None, "Weights of your own.", metavar="FILE", shown="those that are shipped")
    as_json: bool = setting(False, "Print JSON.", flag="--json")


def _info(values: Values) -> None:
    call = fill(InfoCall, values)
    facts = collect_info(call.classifier, call.segmenter)
    say(json.dumps(facts, indent=2) if call.as_json else format_info(facts))


def collect_info(classifier: Path | None = None, segmenter: Path | None = None) -> dict[str, Any]:
    """Versions, extras, devices with their precision, and both models with the check of their hashes.

    Args:
        classifier: Weights of stage one; by default those that are shipped.
        segmenter: Weights of stage two.
    """
    from tumorlens.classification.predict import SHIPPED as CLASSIFIER
    from tumorlens.data.cards.card import checked_card
    from tumorlens.data.cards.weights import checked_content
    from tumorlens.pipeline.versions import opencv_problem, package_versions
    from tumorlens.segmentation.predict import SHIPPED as SEGMENTER

    devices, default = _devices()
    models: dict[str, Any] = {}
    for stage, path in (("classification", classifier or CLASSIFIER), ("segmentation", segmenter or SEGMENTER)):
        try:
            card = checked_card(path, stage)
            checked_content(path, card)
            keys = ("architecture", "encoder", "input_size", "operating_point", "sha256", "date")
            models[stage] = {"file": path.name, **{key: card[key] for key in keys if key in card}, "intact": True}
        except InputError as error:
            models[stage] = {"file": path.name, "intact": False, "error": str(error)}
    return {
        "versions": package_versions(),
        "extras": {extra: {"missing": absent_packages(packages)} for extra, packages in EXTRAS.items()},
        "problems": [problem for problem in [opencv_problem()] if problem],
        "devices": {name: {"bf16": bf16} for name, bf16 in devices.items()},
        "default_device": default,
        "models": models,
    }


def _devices() -> tuple[dict[str, bool], str]:
    """Whether each device computes bfloat16 in hardware, and the default device. Without PyTorch, the CPU alone."""
    if find_spec("torch") is None:
        from tumorlens.pipeline.engines.openvino_engine import computes_bf16

        return {"cpu": computes_bf16()}, "cpu"
    import torch

    from tumorlens.data.devices import has_bf16, pick_device

    names = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return {name: has_bf16(pick_device(name)) for name in names}, str(pick_device("auto"))


def format_info(facts: dict[str, Any]) -> str:
    """The facts as lines for a terminal."""
    lines = ["versions"] + [f"  {name} {number}" for name, number in facts["versions"].items()]
    lines += [f"problem: {problem}" for problem in facts["problems"]]
    lines.append("extras")
    for name, extra in facts["extras"].items():
        lines.append(f"  {name}: " + (f"no ({', '.join(extra['missing'])})" if extra["missing"] else "yes"))
    lines.append("devices")
    for name, abilities in facts["devices"].items():
        mark = " (default)" if name == facts["default_device"] else ""
        lines.append(f"  {name}: bf16 {'yes' if abilities['bf16'] else 'no'}{mark}")
    lines.append("models")
    for stage, model in facts["models"].items():
        lines.append(f"  {stage}: " + (f"{model['error']}" if not model["intact"] else model["file"]))
        if model["intact"]:
            keys = ("architecture", "encoder", "input_size", "operating_point", "date", "sha256")
            lines += [f"    {key} {model[key]}" for key in keys if key in model]
    return "\n".join(lines)


info = command(
    _info,
    InfoCall,
    examples="""
    tumorlens info
    tumorlens info --classifier runs/classification/classifier.safetensors --json
    """,
)
