"""A `Result` -> the files of one scan: overlay, montage, masks, map, DICOM objects and result.json."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tumorlens.data.errors import InputError
from tumorlens.data.files import PART, claim, remove_stale_parts, stale_parts
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.masks.write import write_mask_nifti, write_mask_png, write_nifti
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import RESULT_FILES
from tumorlens.pipeline.outputs.overlay import draw_heat, draw_overlay
from tumorlens.pipeline.result import Result


def write_result(
    result: Result,
    folder: Path,
    name: str,
    made_of: dict[str, Any] | None = None,
    options: RunOptions = RunOptions(),
    place_sha256: str | None = None,
) -> dict[str, Any]:
    """Write all files of one scan and return the content of ``result.json``, which is written last.

    The files are made in a folder inside `folder` and then moved one by one. An old ``result.json`` is removed before
    the first move and the new one comes last, so a folder with a ``result.json`` is complete.

    Args:
        result: From `pipeline.pipeline.Pipeline.run`.
        folder: The scan's output folder. Files of an earlier result in it are replaced.
        name: The scan's name in ``results.csv``.
        made_of: Everything that the result depends on, stored as ``made_of``.
        options: The choice of files to write.
        place_sha256: Hash of the place of the source.

    Raises:
        InputError: The folder holds files with these names that tumorlens did not write.
    """
    begun = time.perf_counter()
    _claim_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leftovers = list(folder.glob(f"{PART}*"))
    with tempfile.TemporaryDirectory(prefix=PART, dir=folder) as temporary:
        part = Path(temporary)
        for leftover in leftovers:  # only now: until then they say whose the files here are
            shutil.rmtree(leftover, ignore_errors=True)
        files, problems = _write_files(result, part, options)
        content = result.to_dict()
        content["scan"] = {"name": name, **content["scan"]}
        content["review"] = [*content["review"], *problems]
        if options.keep_identifiers and result.scan.dicom is not None:
            content["scan"]["identifiers"] = result.scan.dicom.identifiers
        content["place_sha256"] = place_sha256
        content["made_of"] = made_of or {}
        content["files"] = files
        content["timings_s"]["write"] = round(time.perf_counter() - begun, 4)
        (part / "result.json").write_text(result_text(content), encoding="utf-8")
        remove_result(folder)  # a mask.png must not outlive the picture that a volume has replaced
        try:
            for file in (*files, "result.json"):
                shutil.move(part / file, folder / file)
        except BaseException:  # without a result.json, the files moved so far would look like the user's own
            for file in files:
                (folder / file).unlink(missing_ok=True)
            raise
    return content


def result_text(content: dict[str, Any]) -> str:
    """The text of a ``result.json``: a line for each field, which takes a tenth of the time of one for each value."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    return f"{{\n{lines}\n}}\n"


def remove_result(folder: Path) -> None:
    """Delete the files of an earlier result. Other files in the folder stay.

    Raises:
        InputError: The folder holds files with these names that tumorlens did not write.
    """
    _claim_folder(folder)
    there = _result_files(folder)
    with ExitStack() as stack:
        if there:
            with suppress(OSError):  # the disk is full
                stack.enter_context(tempfile.TemporaryDirectory(prefix=PART, dir=folder))
        for file in there:
            file.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a run that was killed left in a scan's output folder: half of a result, and files that it made."""
    if not (folder / "result.json").exists() and any(part.is_dir() for part in stale_parts(folder)):
        with suppress(OSError, InputError):  # writing a result there will say why
            remove_result(folder)
    remove_stale_parts(folder)


def _claim_folder(folder: Path) -> None:
    """Refuse a folder with files that have the names of a result and belong to none, such as a mask that you drew.

    Files without a ``result.json`` belong to a result if a run was killed while it wrote or deleted them: its
    ``.part-`` folder is still there.
    """
    ours = (folder / "result.json").is_file() or any(part.is_dir() for part in folder.glob(f"{PART}*"))
    claim([folder / "result.json", *_result_files(folder)], "a result", lambda _: ours, overwrite=True)


def _result_files(folder: Path) -> list[Path]:
    """The files of a result that lie in a folder."""
    names = {path.name.casefold() for path in folder.iterdir()} if folder.is_dir() else set()
    return [folder / file for file in RESULT_FILES if file in names]


def _write_files(result: Result, folder: Path, options: RunOptions) -> tuple[list[str], list[str]]:
    """Write all files but ``result.json``; returns their names, and the reasons why others could not be made."""
    scan = result.scan
    files: list[str] = []
    if options.overlay:
        write_png(folder / "overlay.png", draw_overlay(result))
        files.append("overlay.png")
    problems: list[str] = []
    if result.refused:
        return files, problems
    if result.heat is not None:
        write_png(folder / "explanation.png", draw_heat(result))
        files.append("explanation.png")
    if options.overlay and scan.n_slices > 1:
        from tumorlens.pipeline.outputs.montage import draw_montage

        write_png(folder / "montage.png", draw_montage(result))
        files.append("montage.png")
    if scan.n_slices == 1:
        write_mask_png(folder / "mask.png", scan.view(result.mask, 0))
        files.append("mask.png")
    if scan.volume:
        write_mask_nifti(folder / "mask.nii.gz", result.mask, scan)
        files.append("mask.nii.gz")
    if scan.volume and result.lesions:
        numbers = result.numbers.astype(np.uint8) if len(result.lesions) < 256 else result.numbers
        write_nifti(folder / "lesions.nii.gz", numbers, scan, "tumorlens numbers of lesions")
        files.append("lesions.nii.gz")
    if result.region_mask is not None and scan.volume:
        write_nifti(folder / "regions.nii.gz", result.region_mask, scan, "tumorlens regions of lesions")
        files.append("regions.nii.gz")
    if result.region_mask is not None and scan.n_slices == 1:
        write_png(folder / "regions.png", np.ascontiguousarray(scan.view(result.region_mask, 0)))
        files.append("regions.png")
    if result.lesion_map is not None and scan.volume:
        write_nifti(folder / "probability.nii.gz", result.lesion_map, scan, "tumorlens lesion probability", 1 / 255)
        files.append("probability.nii.gz")
    if result.lesion_map is not None and scan.n_slices == 1:
        write_png(folder / "probability.png", np.ascontiguousarray(scan.view(result.lesion_map, 0)))
        files.append("probability.png")
    if scan.dicom is not None:
        from tumorlens.pipeline.outputs.dicom import write_dicom

        dicom_files, problems = write_dicom(result, folder, options.secondary_capture)
        files += dicom_files
    return files, problems
