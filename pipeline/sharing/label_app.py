"""MONAI Label app: 3D Slicer sends a scan, `tumorlens run` judges it, and Slicer gets the lesions.

MONAI Label needs NumPy 1 and pydicom 2, tumorlens NumPy 2 and pydicom 3. So this file does not import tumorlens, but
starts its command, which lies in an environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.activelearning.first import First

_REPORTED = (
    "label",
    "confidence",
    "probabilities",
    "prediction_set",
    "sequence",
    "review",
    "tumor_volume_mm3",
    "models",
)


class Lesions(InferTask):
    """Both stages of tumorlens: the lesions of a volume, numbered from the largest on."""

    def __init__(self, command: str, options: list[str]) -> None:
        """A task that starts `command` with some options of ``tumorlens run``."""
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={"lesion 1": 1},
            dimension=3,
            description="Brain tumors in MRI, by both stages of tumorlens. For research and teaching only.",
        )
        self.command, self.options = command, options

    def is_valid(self) -> bool:
        """Whether the command is there."""
        return shutil.which(self.command) is not None

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The file of the labels on the scan's grid, and label, confidence and review of the result.

        Raises:
            MONAILabelException: tumorlens cannot use the scan. The message says why; MONAI Label writes it to its log.
        """
        image = str(request["image"])
        if not image:
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "this scan is not among the studies")
        with tempfile.TemporaryDirectory() as folder:
            call = [self.command, "run", image, "-o", folder, "--no-overlay", "--quiet", *self.options]
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            results = list(Path(folder).glob("*/result.json"))
            if done.returncode or not results:
                reason = (done.stderr.strip().splitlines() or ["tumorlens has ended without a result"])[-1]
                raise MONAILabelException(MONAILabelError.INFERENCE_ERROR, reason.replace(image, "the scan"))
            result = json.loads(results[0].read_text(encoding="utf-8"))
            if result["label"] == "refused":
                raise MONAILabelException(
                    MONAILabelError.INVALID_INPUT, f"the scan is refused: {'; '.join(result['review'])}"
                )
            masks = [results[0].parent / name for name in ("lesions.nii.gz", "mask.nii.gz") if name in result["files"]]
            if not masks:
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, "the scan is not a volume; send NIfTI or NRRD")
            handle, labels = tempfile.mkstemp(suffix=".nii.gz")
            os.close(handle)
            shutil.copyfile(masks[0], labels)
        names = {f"lesion {lesion['number']}": lesion["number"] for lesion in result["lesions"]}
        return labels, {"label_names": names} | {name: result[name] for name in _REPORTED if name in result}


class TumorlensApp(MONAILabelApp):
    """The app. ``--conf NAME VALUE`` sets `tumorlens` (its command), `classifier` and `segmenter` (files), `device`."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        weights = ("classifier", "segmenter", "device")
        self.options = [part for name in weights if conf.get(name) for part in (f"--{name}", conf[name])]
        self.command = conf.get("tumorlens", "tumorlens")
        super().__init__(app_dir=app_dir, studies=studies, conf=conf, name="tumorlens", description=Lesions.__doc__)

    def init_infers(self) -> dict[str, InferTask]:
        """The one task, which asks both stages."""
        return {"tumorlens": Lesions(self.command, self.options)}

    def init_strategies(self) -> dict[str, Any]:
        """Scans are offered in their order."""
        return {"first": First()}
