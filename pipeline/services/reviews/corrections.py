"""A corrected mask -> files beside the original, in the source's geometry. The original is never changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.labels import TUMOR, TUMOR_FREE
from tumorlens.data.masks.write import write_mask_nifti, write_mask_png
from tumorlens.data.scan import Scan
from tumorlens.pipeline.batch.stored import StoredResult
from tumorlens.pipeline.outputs import REVIEWED


def write_correction(
    result: StoredResult,
    mask: NDArray[np.uint8],
    scan: Scan | None,
    reviewer: str,
    label: str | None = None,
) -> tuple[list[str], list[str]]:
    """Write a corrected mask as ``mask.reviewed.*`` in every format that the original mask has.

    Args:
        result: The result whose mask was corrected.
        mask: 0 and 1 in the order of the stored mask: ``(rows, columns)`` of a picture, ``(i, j, k)`` of a volume.
        scan: The source, which the DICOM Segmentation refers to; None where it is not at hand.
        reviewer: The Content Creator of the DICOM Segmentation.
        label: The class that the reviewer has chosen; the predicted one by default.

    Returns:
        The names of the files, and the reasons why others could not be made.

    Raises:
        InputError: The mask has another shape than the original.
    """
    original = result.mask(reviewed=False)
    if original is None and scan is None:
        raise InputError(f"{result.name}: there is no mask that could be corrected")
    if original is None:
        assert scan is not None
        files = _write_first(result.folder, mask, scan)
        _remove_others(result.folder, files)
        return files, []
    if mask.shape != original.voxels.shape:
        raise InputError(f"{result.name}: the mask has shape {mask.shape}, the original {original.voxels.shape}")
    files, problems = [], []
    is_volume = (result.folder / "mask.nii.gz").is_file()
    if is_volume:
        _write_like(result.folder / "mask.nii.gz", result.folder / REVIEWED["mask.nii.gz"], mask)
        files.append(REVIEWED["mask.nii.gz"])
    if (result.folder / "mask.png").is_file():
        write_mask_png(result.folder / REVIEWED["mask.png"], original.view(mask, 0) if is_volume else mask)
        files.append(REVIEWED["mask.png"])
    if (result.folder / "mask.dcm").is_file():
        if scan is None:
            problems.append(f"no {REVIEWED['mask.dcm']}: the DICOM files of {result.name} are not at hand")
        else:
            try:
                _write_dicom(result, mask, scan, reviewer, label)
                files.append(REVIEWED["mask.dcm"])
            except InputError as error:
                problems.append(f"no {REVIEWED['mask.dcm']}: {error}")
    _remove_others(result.folder, files)
    return files, problems


def _remove_others(folder: Path, files: list[str]) -> None:
    """Delete the files of an earlier correction that would contradict this one."""
    for name in set(REVIEWED.values()) - set(files):
        (folder / name).unlink(missing_ok=True)


def _write_first(folder: Path, mask: NDArray[np.uint8], scan: Scan) -> list[str]:
    """Write the mask of a scan that has none of its own, because it was refused."""
    if scan.volume:
        write_mask_nifti(folder / REVIEWED["mask.nii.gz"], mask, scan)
        return [REVIEWED["mask.nii.gz"]]
    write_mask_png(folder / REVIEWED["mask.png"], mask)
    return [REVIEWED["mask.png"]]


def _write_like(original: Path, path: Path, mask: NDArray[np.uint8]) -> None:
    """Write a mask with the header of another: the same shape, affine, qform and sform."""
    import nibabel as nib

    like = nib.load(original)
    image = type(like)(mask.reshape(like.shape).astype(np.uint8), None, like.header)
    with whole_file(path) as part:
        nib.save(image, part)


def _write_dicom(result: StoredResult, mask: NDArray[np.uint8], scan: Scan, reviewer: str, label: str | None) -> None:
    from tumorlens.data.dicom.seg import write_mask_dicom
    from tumorlens.pipeline.measurements.lesions import number_lesions
    from tumorlens.pipeline.outputs.dicom_report import segmenter_from

    algorithm = segmenter_from(result.content["models"], result.content["versions"])
    chosen = label or result.label
    if chosen == TUMOR_FREE and mask.any():
        chosen = TUMOR
    path = result.folder / REVIEWED["mask.dcm"]
    write_mask_dicom(path, number_lesions(mask, scan), scan, chosen, algorithm, reviewer, result.classes)
