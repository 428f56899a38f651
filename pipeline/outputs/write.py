"""A `Result` -> files: overlay, mask, result.json and the row in results.csv."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.masks.write import write_mask_nifti, write_mask_png
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import RESULT_FILES
from tumorlens.pipeline.outputs.montage import draw_montage
from tumorlens.pipeline.outputs.overlay import draw_heat, draw_overlay
from tumorlens.pipeline.result import Result

_PART = ".part-"  # the folder in which a result is made


def write_result(
    result: Result,
    folder: Path,
    name: str,
    made_of: dict[str, Any] | None = None,
    options: RunOptions = RunOptions(),
    place_sha256: str | None = None,
) -> dict[str, Any]:
    """Write all files of one scan; returns the content of ``result.json``, which is written last.

    The files are made in a folder beside and moved one by one, after an old ``result.json`` has gone and before the new
    one comes, so that a scan with a ``result.json`` is complete.

    Args:
        result: What was found.
        folder: The scan's output folder; files of ours in it are replaced.
        name: The scan's name in ``results.csv``.
        made_of: What the result depends on, kept as ``made_of`` (see `pipeline.batch.resume.earlier_result`).
        options: Which files are wanted.
        place_sha256: Where the source lies (see `pipeline.batch.job.place_of`).

    Raises:
        InputError: The folder holds files of these names that are of no result.
    """
    begun = time.perf_counter()
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_PART}*"):
        shutil.rmtree(left, ignore_errors=True)
    scan = result.scan
    files = ["overlay.png"]
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix=_PART, dir=folder) as temporary:
        beside = Path(temporary)
        overlay = draw_overlay(result)
        write_png(beside / "overlay.png", overlay)
        if not result.refused:
            made, problems = _write_findings(result, beside, overlay, options)
            files += made
        content = result.to_dict()
        content["scan"] = {"name": name, **content["scan"]}
        content["review"] = [*content["review"], *problems]
        if options.keep_identifiers and scan.dicom is not None:
            content["scan"]["identifiers"] = scan.dicom.identifiers
        content["place_sha256"] = place_sha256
        content["made_of"] = made_of or {}
        content["files"] = files
        content["timings_s"]["write"] = round(time.perf_counter() - begun, 4)
        (beside / "result.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        remove_result(folder)  # a mask.png must not outlive the picture that a volume has replaced
        try:
            for file in (*files, "result.json"):
                shutil.move(beside / file, folder / file)
        except BaseException:  # half a result would pass for files of the user's
            for file in files:
                (folder / file).unlink(missing_ok=True)
            raise
    return content


def check_folder(folder: Path) -> None:
    """Raise an `InputError` if a folder holds files that a result would replace and that are of no result: a mask that
    the user drew beside the scan has the same name. What a run that was killed left behind has its folder ``.part-``
    beside it, and is ours."""
    if (folder / "result.json").is_file() or any(left.is_dir() for left in folder.glob(f"{_PART}*")):
        return
    foreign = [file for file in RESULT_FILES if (folder / file).exists()]
    if foreign:
        raise InputError(f"{folder / foreign[0]}: this is of no result, and would be replaced; choose another -o")


def _write_findings(
    result: Result, folder: Path, overlay: NDArray[np.uint8], options: RunOptions
) -> tuple[list[str], list[str]]:
    """The files of a scan that was judged: their names, and why others could not be made."""
    scan = result.scan
    files: list[str] = []
    problems: list[str] = []
    if result.heat is not None:
        write_png(folder / "explanation.png", draw_heat(result))
        files.append("explanation.png")
    if scan.n_slices > 1:
        write_png(folder / "montage.png", draw_montage(result))
        files.append("montage.png")
    if scan.n_slices == 1:
        write_mask_png(folder / "mask.png", scan.view(result.mask, 0))
        files.append("mask.png")
    if scan.volume:
        write_mask_nifti(folder / "mask.nii.gz", result.mask, scan)
        files.append("mask.nii.gz")
    if scan.dicom is not None:
        from tumorlens.pipeline.outputs.dicom import write_dicom

        made, problems = write_dicom(result, folder, overlay, options.secondary_capture)
        files += made
    return files, problems


def remove_result(folder: Path) -> None:
    """Delete the files of an earlier result; other files in the folder stay.

    Raises:
        InputError: See `check_folder`.
    """
    check_folder(folder)
    for file in RESULT_FILES:
        (folder / file).unlink(missing_ok=True)
