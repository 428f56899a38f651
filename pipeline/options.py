"""The options of a run: the models that it loads, and its treatment of scans. Needs neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tumorlens.data.config import DEVICE, setting
from tumorlens.data.errors import InputError

_MB = 1_000_000
PLANES = ("acquisition", "axial", "coronal", "sagittal")  # as `data.scan` calls them


@dataclass(frozen=True)
class LoadOptions:
    """The arguments of `pipeline.pipeline.Pipeline.load`."""

    classifier: Path | None = setting(None, "Your own classifier.safetensors.")
    segmenter: Path | None = setting(None, "Your own segmenter.safetensors.")
    device: str = setting("auto", DEVICE)
    threshold: float | None = setting(
        None,
        "Tumor probability from which a scan is positive.",
        least=0,
        most=1,
        shown="0.5",
    )
    tta: bool = setting(False, "Average over each slice and its mirror image: twice the time.")
    engine: str = setting("auto", "torch or openvino.", shown="openvino where there is no accelerator")
    precision: str = setting("auto", "fp32 or bf16.", shown="bf16 in OpenVINO where the hardware computes it")
    threads: int | None = setting(None, "Threads that compute.", least=1, shown="all cores")


@dataclass(frozen=True)
class RunOptions:
    """Settings of a run. `pdf` implies `report`.

    A report needs the overlay, which it shows. `frame` is a volume of a 4-D file, or of a series that holds several.
    `keep_identifiers` lets patient's name, ID and free text into ``result.json``.
    """

    frame: int | None = setting(None, "Volume of a 4-D file or series, from 0.", least=0)
    plane: str = setting("acquisition", "How volumes are cut into slices.", choices=PLANES)
    overlay: bool = setting(True, "Write overlay.png and, of volumes, montage.png.")
    secondary_capture: bool = setting(False, "Write the overlay of DICOM scans as overlay.dcm, too.")
    force: bool = setting(False, "Judge what does not look like a brain MRI, too.")
    explain: bool = setting(False, "Write where the classifier looked (Grad-CAM).")
    maps: bool = setting(False, "Also write the segmenter's probability map.")
    report: bool = setting(False, "Write report.html of each scan, and one of the whole run.")
    pdf: bool = setting(False, "Also write report.pdf of each scan; implies --report.")
    channel: int | None = setting(
        None, "Channel of color pictures that is the scan.", flag="--frame-channel", least=0, most=2, shown="brightness"
    )
    keep_identifiers: bool = setting(False, "Put patient's name, ID, birth date and texts into result.json.")

    def __post_init__(self) -> None:
        if not self.overlay and (self.report or self.pdf):
            raise InputError("a report shows the overlay; leave out --no-overlay, or --report and --pdf")


def is_url(text: str) -> bool:
    """Whether an input or output is a URL of a store (s3://, https://); ``file://`` is a path."""
    return "://" in text and not text.startswith("file://")


def is_dicomweb(text: str) -> bool:
    """Whether an input is a query of a DICOMweb server (dicomweb+https://)."""
    return is_url(text) and text.startswith("dicomweb")


@dataclass(frozen=True)
class ServiceOptions:
    """Settings of the REST service."""

    spool: Path | None = setting(
        None, "Folder where the jobs of the REST service wait.", metavar="FOLDER", shown="one of your user and the port"
    )
    queue: int = setting(1000, "Jobs of the REST service that may wait.", least=1)
    keep_results: float = setting(24, "Hours after which an ended job is deleted.", metavar="HOURS", least=0)
    job_seconds: float = setting(600, "Seconds that one scan may take.", metavar="SECONDS", least=1)
    megavoxels: float = setting(500, "Size of one scan in millions of voxels or pixels.", least=0.001)
    batches: bool = setting(True, "Compute small scans of several requests together.")
    dicomweb: tuple[str, ...] = setting(
        (), "DICOMweb server from which requests may have studies fetched; repeatable.", metavar="URL"
    )


@dataclass(frozen=True)
class UploadLimits:
    """How much one visitor, or one request, may send."""

    upload_mb: int = setting(500, "Megabytes that one visitor or request may upload.", least=1)
    upload_files: int = setting(50, "Files that one visitor or request may upload.", least=1)

    @property
    def n_bytes(self) -> int:
        """The limit in bytes."""
        return self.upload_mb * _MB

    def refusal(self, n_files: int, n_bytes: int) -> str:
        """Why so many files and bytes are refused, in one sentence; empty where they are not."""
        if n_files > self.upload_files:
            return (
                f"{n_files} files are more than the {self.upload_files} that are allowed; "
                "put the files of a series into one zip, or use `tumorlens run`"
            )
        if n_bytes > self.n_bytes:
            return f"{n_bytes / _MB:.0f} MB are more than the {self.upload_mb} MB that are allowed; use `tumorlens run`"
        return ""
