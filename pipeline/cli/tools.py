"""`tumorlens demo`, `tumorlens export` and `tumorlens calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tumorlens.data.config import DEVICE, MAX_SEED, setting
from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import Progress, say, say_unless, warn
from tumorlens.pipeline.evaluation.request import EvaluationRequest


@dataclass(frozen=True)
class DemoCall:
    """The scan of a demonstration, and the place of its results."""

    scan: Path | None = setting(None, "A scan of yours instead of the phantom.")
    out: Path = setting(Path("demo-out"), "Output folder.", flag="-o --out")
    seed: int = setting(7, "Another seed makes another phantom.", least=0, most=MAX_SEED)
    device: str = setting("auto", DEVICE)


def _demo(values: Values) -> None:
    from tumorlens.pipeline.batch.demo import run_demo

    call = fill(DemoCall, values)
    run_demo(call.scan, call.out, call.seed, call.device, say)


_FILES = ("onnx", "openvino", "torchscript")
_FOLDERS = ("monai-bundle", "huggingface", "monailabel-app")


@dataclass(frozen=True)
class ExportCall:
    """The network to export, and the format."""

    stage: str = setting(
        help="Which network: classification or segmentation; pipeline, for both in a monailabel-app.",
        argument=True,
        choices=("classification", "segmentation", "pipeline"),
        metavar="STAGE",
    )
    out: Path = setting(help="File to write: .onnx, .xml or .pt; a new folder for the other formats.", flag="-o --out")
    kind: str = setting("onnx", "What to write.", flag="--format", choices=(*_FILES, *_FOLDERS))
    weights: Path | None = setting(None, "Your own weights.", shown="the shipped ones")


def _export(values: Values) -> None:
    from tumorlens.classification.config import SHIPPED as CLASSIFIER
    from tumorlens.segmentation.config import SHIPPED as SEGMENTER

    call = fill(ExportCall, values)
    if (call.kind == "monailabel-app") != (call.stage == "pipeline"):
        raise InputError("a monailabel-app asks both stages: tumorlens export pipeline --format monailabel-app -o DIR")
    if call.stage == "pipeline":
        from tumorlens.pipeline.sharing.monailabel import write_app

        if call.weights is not None:
            raise InputError("--weights: a monailabel-app gets its weights when it starts; its README says how")
        write_app(call.out)
        say(f"{call.out}: start it with monailabel start_server --app {call.out} --studies DIR")
        return
    weights = call.weights or {"classification": CLASSIFIER, "segmentation": SEGMENTER}[call.stage]
    if call.kind == "huggingface":
        from tumorlens.pipeline.sharing.huggingface import write_hub_folder

        write_hub_folder(weights, call.stage, call.out)
        say(f"{call.out}: ready to upload")
        return
    if call.kind == "monai-bundle":
        from tumorlens.pipeline.sharing.bundle import write_bundle

        path, difference = call.out, write_bundle(weights, call.stage, call.out)
    else:
        from tumorlens.pipeline.engines.export import export_stage

        exported = export_stage(weights, call.stage, call.kind, call.out)
        path, difference = exported.path, exported.difference
    differences = ", ".join(f"{name} {value:.2g}" for name, value in difference.items())
    say(f"{path}: largest difference from PyTorch: {differences}")


@dataclass(frozen=True)
class CalibrateCall:
    """The card that gets the rule, and the printed output."""

    out: Path = setting(
        help="Your classifier.safetensors, whose card gets the rule for volumes.", flag="-o --out", metavar="FILE"
    )
    quiet: bool = setting(False, "Print errors only.", flag="-q --quiet")


def _calibrate(values: Values) -> None:
    from tumorlens.pipeline.evaluation.volume_rule import calibrate

    call = fill(CalibrateCall, values)
    request = fill(EvaluationRequest, values, stage="pipeline")
    with Progress("volumes", hidden=call.quiet) as progress:
        rule, n = calibrate(request, call.out, progress, warn)
    say_unless(call.quiet)(f"{call.out.with_suffix('.json')}: rule for volumes, fitted on {n}: {rule}")


demo = command(
    _demo,
    DemoCall,
    examples="""
    tumorlens demo
    tumorlens demo --scan scan.nii.gz -o demo-out
    """,
)

export = command(
    _export,
    ExportCall,
    details="The outputs of the exported network are compared with those of PyTorch first.",
    extra="train",
    examples="""
    tumorlens export classification -o classifier.onnx
    tumorlens export segmentation -o segmenter.xml --format openvino --weights run/segmenter.safetensors
    tumorlens export segmentation -o bundle --format monai-bundle
    tumorlens export pipeline -o app --format monailabel-app
    """,
)

calibrate = command(
    _calibrate,
    CalibrateCall,
    EvaluationRequest,
    leave_out=("protocol", "tta", "explain", "probe", "outline"),
    details="The weights must not have learned from these volumes, or from these pictures: numbered slices of heads.",
    extra="train",
    examples="""
    tumorlens calibrate --data my-volumes --classifier run/classifier.safetensors -o run/classifier.safetensors
    tumorlens calibrate --data my-volumes --classifier 'cv/fold-{fold}/classifier.safetensors' -o c.safetensors
    """,
)
