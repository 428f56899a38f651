"""What the REST service answers, with examples for its OpenAPI description."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tumorlens.pipeline.outputs import RESULT_FILES
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING, QueuedJob
from tumorlens.pipeline.services.spool import StoredJob

State = StrEnum("State", {state.upper(): state for state in (WAITING, RUNNING, DONE, FAILED, CANCELLED)})
ResultFile = StrEnum("ResultFile", {name.replace(".", "_").upper(): name for name in RESULT_FILES})
EXAMPLE_ID = "5f0c4f5e8f3b4c0f9a4d7f0e2b1c6a93"
_SCAN = {
    "number": 1,
    "name": "scan.png",
    "error": None,
    "label": "meningioma",
    "confidence": 0.993127,
    "files": ["overlay.png", "mask.png", "result.json"],
    "source_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "seconds": 0.412,
}
WAITING_JOB = {
    "id": EXAMPLE_ID,
    "state": "waiting",
    "position": 3,
    "step": None,
    "slices_done": 0,
    "slices": 0,
    "accepted": "2026-11-30T09:15:02.114000Z",
    "begun": None,
    "ended": None,
    "error": None,
    "scans": [],
}
DONE_JOB = WAITING_JOB | {
    "state": "done",
    "position": 0,
    "begun": "2026-11-30T09:15:03.020000Z",
    "ended": "2026-11-30T09:15:03.471000Z",
    "scans": [_SCAN],
}


class ScanAnswer(BaseModel):
    """One scan of a job: a picture, a volume, or a DICOM series."""

    number: int = Field(description="Its number in the job, from 1.")
    name: str = Field(description="A neutral name; no name of a file or a patient is part of it.")
    error: str | None = Field(None, description="Why it has no result.")
    label: str | None = Field(None, description="The label, or `refused` for what is not a brain MRI.")
    confidence: float | None = Field(None, description="Calibrated probability of the label, 0 to 1.")
    files: list[str] = Field(description="The files of its result.")
    source_sha256: str | None = Field(None, description="SHA-256 of the file, by which you know it again in a zip.")
    seconds: float = Field(description="From its start to its end.")


class JobAnswer(BaseModel):
    """A job and what became of its scans."""

    model_config = ConfigDict(json_schema_extra={"examples": [DONE_JOB]})

    id: str
    state: State
    position: int = Field(description="Jobs that run before it.")
    step: str | None = Field(None, description="reading, classifying, segmenting or measuring, while it runs.")
    slices_done: int = Field(description="Slices of this step that are done.")
    slices: int = Field(description="All slices of this step.")
    accepted: datetime
    begun: datetime | None = None
    ended: datetime | None = None
    error: str | None = Field(None, description="Why it failed.")
    scans: list[ScanAnswer] = Field(description="Known once the job is done or has failed.")


class JobsAnswer(BaseModel):
    """Jobs, the newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"jobs": [DONE_JOB]}]})

    jobs: list[JobAnswer]


class Problem(BaseModel):
    """What is wrong, and what to do."""

    detail: str


class DicomwebReference(BaseModel):
    """A study or series on a DICOMweb server that the operator of this one has allowed."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"dicomweb": "http://127.0.0.1:8042/dicom-web/studies/1.2.826.0.1.3680043.8.498.1"}]
        },
    )

    dicomweb: str = Field(max_length=2000, description="URL of the study or series, as WADO-RS retrieves it.")


class ModelAnswer(BaseModel):
    """One of the two networks."""

    architecture: str | None = None
    sha256: str | None = None
    date: str | None = None
    input_size: int


class ModelsAnswer(BaseModel):
    """The networks that judge scans here."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "tumorlens": "0.1.0",
                    "classes": ["no_tumor", "glioma", "meningioma", "pituitary"],
                    "threshold": 0.5,
                    "engine": {"name": "openvino", "device": "CPU", "precision": "fp32"},
                    "classification": {
                        "architecture": "resnet50",
                        "sha256": "1d4c9aef0d1b",
                        "date": "2026-11-02",
                        "input_size": 192,
                    },
                    "segmentation": {
                        "architecture": "unet",
                        "sha256": "77f1e0a3b2c4",
                        "date": "2026-11-03",
                        "input_size": 192,
                    },
                }
            ]
        }
    )

    tumorlens: str
    classes: list[str]
    threshold: float
    engine: dict[str, Any]
    classification: ModelAnswer
    segmentation: ModelAnswer


class HealthAnswer(BaseModel):
    """That the server answers."""

    status: str = Field(examples=["ok"])


def answer_of(job: StoredJob, position: int, running: list[QueuedJob]) -> JobAnswer:
    """A job as clients see it.

    Args:
        job: The job.
        position: How many run before it.
        running: Its scans while it runs.
    """
    now = next((scan for scan in running if not scan.ended.is_set()), None)
    return JobAnswer(
        id=job.id,
        state=State(job.state),
        position=position,
        step=now.step if now is not None and now.state == RUNNING else None,
        slices_done=0 if now is None else now.n_done,
        slices=0 if now is None else now.n_all,
        accepted=_time(job.accepted),
        begun=None if job.begun is None else _time(job.begun),
        ended=None if job.ended is None else _time(job.ended),
        error=job.error or None,
        scans=[
            ScanAnswer(
                number=number,
                error=scan["error"] or None,
                **{key: scan[key] for key in ("name", "label", "confidence", "files", "source_sha256", "seconds")},
            )
            for number, scan in enumerate(job.scans, start=1)
        ],
    )


def models_of(pipeline: Any) -> ModelsAnswer:
    """The networks of a `pipeline.pipeline.Pipeline`."""
    from tumorlens.pipeline.versions import package_versions

    def one(stage: Any) -> ModelAnswer:
        card = stage.card
        facts = {key: card.get(key) for key in ("sha256", "date")}
        return ModelAnswer(
            architecture=card.get("architecture") or card.get("encoder"), input_size=stage.input_size, **facts
        )

    return ModelsAnswer(
        tumorlens=package_versions()["tumorlens"],
        classes=list(pipeline.classes.outputs),
        threshold=pipeline.operating_point,
        engine=pipeline.engine.facts(),
        classification=one(pipeline.classifier),
        segmentation=one(pipeline.segmenter),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
