"""Synthetic heads to try the pages with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tumorlens.data.errors import InputError


@dataclass(frozen=True)
class Example:
    """A synthetic head.

    Attributes:
        file: Its file's name; a picture if it ends in ``.png``, otherwise a volume.
        label: The class of its lesion, one of `data.labels.CLASSES`.
        seed: Of the phantom.
    """

    file: str
    label: str
    seed: int


EXAMPLES = {
    "Slice with glioma": Example("phantom_glioma.png", "glioma", 1),
    "Volume with meningioma": Example("phantom_meningioma.nii.gz", "meningioma", 7),
    "Healthy head": Example("phantom_healthy.png", "no_tumor", 3),
}


def write_example(name: str, path: Path) -> None:
    """Write one of `EXAMPLES` to a file.

    Raises:
        InputError: There is no such example.
    """
    import nibabel as nib

    from tumorlens.data.formats.pictures import write_png
    from tumorlens.data.phantom import phantom_slice, phantom_volume

    example = EXAMPLES.get(name)
    if example is None:
        raise InputError(f"there is no example {name!r}; there are {', '.join(EXAMPLES)}")
    if path.suffix == ".png":
        write_png(path, phantom_slice(example.seed, example.label).image)
        return
    phantom = phantom_volume(example.seed, example.label)
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), path)
