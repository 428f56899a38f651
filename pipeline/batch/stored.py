"""The results in an output folder, as they were written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import ClassList
from tumorlens.data.masks.read import open_mask, read_mask, read_volume_mask
from tumorlens.data.masks.regions import Regions
from tumorlens.data.scan import Scan
from tumorlens.pipeline.batch.job import folder_of
from tumorlens.pipeline.outputs import REVIEWED, TABLE
from tumorlens.pipeline.outputs.table import read_table

_MASKS = ("mask.nii.gz", "mask.png")
_REGIONS = ("regions.nii.gz", "regions.png")


@dataclass(frozen=True)
class StoredResult:
    """The result of one scan in an output folder.

    Attributes:
        name: The scan's name in ``results.csv``.
        folder: The folder of its files.
        row: Its row in ``results.csv``.
        content: Its ``result.json``; empty where the scan failed.
    """

    name: str
    folder: Path
    row: dict[str, str]
    content: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def failed(self) -> bool:
        """Whether the scan has an error and no result."""
        return not self.content

    @property
    def label(self) -> str:
        """The predicted label; empty where the scan failed."""
        return str(self.content.get("label", ""))

    @cached_property
    def classes(self) -> ClassList:
        """The classes of the classifier that has judged it; the shipped ones where the scan failed."""
        return ClassList.from_card(self.content)

    @property
    def identity(self) -> str:
        """Hash of what was judged: the scan's content, its frame and channel, and the plane of its slices.

        What reviewers draw and decide holds for this, not for whatever a later run gives the same name.
        """
        made_of = self.content.get("made_of") or {}
        what = [made_of.get(name) for name in ("source_sha256", "frame", "channel", "plane")]
        shape = (self.content.get("scan") or {}).get("shape")
        return hashlib.sha256(json.dumps([what, shape]).encode()).hexdigest()

    def mask_path(self, reviewed: bool = True) -> Path | None:
        """The mask file: of a volume ``mask.nii.gz``, of a picture ``mask.png``.

        Args:
            reviewed: Take the mask that a reviewer has corrected, if there is one.
        """
        if self.failed:
            return None
        names = [*(REVIEWED[name] for name in _MASKS if reviewed), *_MASKS]
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def mask(self, reviewed: bool = True) -> Scan | None:
        """The mask as a scan, with its affine and spacing; voxels are 0 and 1. None if the result has no mask.

        A picture is ``(rows, columns)``, a volume ``(i, j, k)`` in the order of the source.

        Raises:
            InputError: The mask file is damaged.
        """
        path = self.mask_path(reviewed)
        if path is None:
            return None
        stored = open_mask(path)
        return replace(stored, voxels=(stored.voxels != 0).astype(np.uint8))

    @property
    def regions(self) -> Regions:
        """The regions of the segmenter that has drawn it; none where the scan failed."""
        return Regions.from_card(self.content)

    def region_mask(self) -> NDArray[np.uint8] | None:
        """The value of each voxel's region on the grid of `mask`, as the model painted it; None without regions.

        Raises:
            InputError: The file is damaged.
        """
        path = next((p for name in _REGIONS if (p := self.folder / name).is_file()), None)
        if path is None or not self.regions:
            return None
        return np.asarray(open_mask(path).voxels, np.uint8)

    def mask_on(self, scan: Scan, reviewed: bool = True) -> NDArray[np.uint8] | None:
        """The mask in the array order of its source, 0 and 1. None if the result has no mask.

        Raises:
            InputError: The mask file is damaged, or it is not of this scan.
        """
        path = self.mask_path(reviewed)
        if path is None:
            return None
        if path.name.endswith(".nii.gz"):
            return read_volume_mask(path, scan).reshape(scan.voxels.shape)
        picture = read_mask(path, _flat(scan))
        return scan.mask_from_slices(picture[None]).reshape(scan.voxels.shape[: 3 if scan.volume else 2])


def _flat(scan: Scan) -> Scan:
    """The only slice of a scan as a picture."""
    return Scan.from_array(np.ascontiguousarray(scan.slice(0))) if scan.volume else scan


def read_results(out: Path) -> list[StoredResult]:
    """The results in an output folder, in the order of ``results.csv``.

    Raises:
        InputError: The folder has no ``results.csv`` of tumorlens.
    """
    if not (out / TABLE).is_file():
        raise InputError(f"{out}: no {TABLE} here; name the folder that `tumorlens run -o` wrote")
    return [_read_result(out, row) for row in read_table(out / TABLE)]


def _read_result(out: Path, row: dict[str, str]) -> StoredResult:
    folder = out / folder_of(row["scan"])
    try:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if not row["error"] and content["scan"]["name"] == row["scan"] and _is_whole(content):
            return StoredResult(row["scan"], folder, row, content)
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return StoredResult(row["scan"], folder, row)


def _is_whole(content: dict[str, Any]) -> bool:
    """Whether a ``result.json`` has everything that others read of it, of the right kind."""
    ClassList.from_card(content)  # raises where it does not name classes
    Regions.from_card(content)
    lists = all(isinstance(content[name], list) for name in ("review", "lesions", "slices", "files", "prediction_set"))
    dicts = all(isinstance(content[name], dict) for name in ("scan", "models", "versions"))
    dicts = dicts and isinstance(content.get("made_of"), dict | None)
    numbers = all(
        isinstance(content[name], int | float | None) for name in ("confidence", "tumor_volume_mm3", "shown_slice")
    )
    lesions = all(
        isinstance(lesion["number"], int)
        and isinstance(lesion["slice_index"], int)
        and isinstance(lesion["confidence"], int | float | None)
        and isinstance(lesion["centroid_index"], list)
        for lesion in content["lesions"]
    )
    return lists and dicts and numbers and lesions and isinstance(content["scan"]["n_slices"], int)
