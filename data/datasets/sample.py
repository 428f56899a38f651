"""A sample of a data set (a picture or a slice of a volume), and how its pixels and its mask are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.patients import patient_in_file
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.labels import TUMOR, TUMOR_FREE, labels_agree
from tumorlens.data.masks.drawings import is_boxed
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.data.masks.truth import read_regions, read_truth, shows_lesion
from tumorlens.data.preprocessing.head import tissue_shares
from tumorlens.data.preprocessing.preprocess import Placement, Preprocess
from tumorlens.data.scan import ACQUISITION, Scan

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_ONE_SLICE = (*PICTURE_SUFFIXES, ".mat")  # endings of files that are never a volume
_PICTURE_FORMATS = ("png", "jpeg", "tiff", "bmp", "webp")  # formats of scans
_MIN_LESION_PX = 20  # slices with a smaller lesion are left out: they show neither a clear lesion nor none
_MIN_TISSUE_SHARE = 0.25  # of the fullest slice's share: slices with less head teach nothing and all look alike


@dataclass(frozen=True)
class Sample:
    """One slice of a data set.

    Attributes:
        image: The scan's file.
        label: A class, or `data.labels.TUMOR`; that of its mask, `TUMOR` or no tumor, where the set has masks only, and
            empty where it has neither for it.
        patient: The patient's pseudonym; empty where the set does not give one.
        mask: The mask's file, or None.
        fold: The set's own fold, or None.
        split: ``"train"``, ``"validation"`` or ``"test"`` where the set has an official one, else empty.
        slice_index: Index of the slice in its volume, from 0; None for a picture.
        channel: The channel of a color picture that is the scan, from 0; None takes their brightness.
        plane: How the volume is cut, see `data.scan.Scan.with_plane`.
        source: Number of its data set in a run, from 0.
        volume_label: The set's label of the whole volume; empty for a picture.
        volume_mask: The mask of that volume, or None.
        sequence: One of `data.labels.SEQUENCES`; empty where the set does not give it.
        regions: The parts of a lesion that its mask is read for; none for whole lesions. A value of no region is none.
    """

    image: Path
    label: str
    patient: str = ""
    mask: Path | None = None
    fold: int | None = None
    split: str = ""
    slice_index: int | None = None
    channel: int | None = None
    plane: str = ACQUISITION
    source: int = 0
    volume_label: str = ""
    volume_mask: Path | None = None
    sequence: str = ""
    regions: Regions = NO_REGIONS

    @property
    def name(self) -> str:
        """The file, and of a volume the slice: ``"t1.nii.gz[coronal 12]"``."""
        return f"{self.image}[{self.place}]" if self.place else str(self.image)

    @property
    def from_volume(self) -> bool:
        """Whether it is a slice of a volume and not a picture."""
        return self.slice_index is not None

    @property
    def weak(self) -> bool:
        """Whether its mask is boxes, filled, and not the outline of the lesion.

        Raises:
            InputError: The mask's file cannot be read.
        """
        return self.mask is not None and is_boxed(self.mask, self.image)

    @property
    def place(self) -> str:
        """The slice of a volume, such as ``"12"`` or ``"coronal 12"``; empty for a picture."""
        if self.slice_index is None:
            return ""
        return str(self.slice_index) if self.plane == ACQUISITION else f"{self.plane} {self.slice_index}"


def slices_of(sample: Sample) -> list[Sample]:
    """The sample itself if it is a picture. Of a volume, the slices that teach: those with a clear lesion, and those
    without a lesion that show enough of the head.

    Raises:
        InputError: The volume or its mask cannot be read, or a volume with a tumor's label has no mask.
    """
    # Thousands of pictures need not be opened twice.
    if sample.image.name.lower().endswith(_ONE_SLICE) and sample.plane == ACQUISITION:
        return [_labeled(sample)]
    scan = open_cut(sample)
    sample = replace(sample, patient=sample.patient or patient_in_file(scan))  # folds may be made before it is read
    if scan.n_slices == 1:
        return [_labeled(sample)]
    if sample.mask is None and sample.label not in ("", TUMOR_FREE):
        raise InputError(f"{sample.image}: a volume labeled {sample.label} needs a mask that says in which slices")
    mask = np.zeros(scan.voxels.shape, np.uint8) if sample.mask is None else read_mask_of(sample, scan)
    label = sample.label or ("" if sample.mask is None else _label_of(bool(mask.any())))
    lesion_px = np.array([np.count_nonzero(scan.view(mask, k)) for k in range(scan.n_slices)])
    unknown = not sample.label and sample.mask is None  # nobody says whether there is a lesion
    samples = []
    for k in slices_with_head(scan):
        if 0 < lesion_px[k] < _MIN_LESION_PX:
            continue
        samples.append(
            replace(
                sample,
                label=label if lesion_px[k] or unknown else TUMOR_FREE,
                patient=sample.patient or str(sample.image),  # neighboring slices must stay together
                mask=sample.mask if lesion_px[k] else None,
                slice_index=k,
                volume_label=label,
                volume_mask=sample.mask,
            )
        )
    return samples


def _labeled(sample: Sample) -> Sample:
    """A picture with the label of its mask, where the set gives it none."""
    if sample.label or sample.mask is None:
        return sample
    return replace(sample, label=_label_of(shows_lesion(sample.mask, sample.image, sample.regions)))


def _label_of(has_lesion: bool) -> str:
    """What a mask says without a label: a tumor of unknown type, or none."""
    return TUMOR if has_lesion else TUMOR_FREE


def slices_with_head(scan: Scan) -> list[int]:
    """The slices of a volume that show enough of the head."""
    tissue = tissue_shares(scan)
    return np.flatnonzero((tissue >= _MIN_TISSUE_SHARE * tissue.max()) & (tissue > 0)).tolist()


@dataclass(frozen=True)
class Reading:
    """A sample's arrays.

    Attributes:
        image: ``(rows, columns)`` or ``(rows, columns, 3)``, the slice as `data.scan.Scan.slice` shows it.
        mask: ``(rows, columns)``, 0 and 1, or of a sample with regions `Regions.bits`; None if the set has none for it.
        aspect: Height of a pixel over its width.
        sample: The sample, with the patient that the file itself names where the set names none.
    """

    image: NDArray[np.generic]
    mask: NDArray[np.uint8] | None
    aspect: float
    sample: Sample

    def mask_to_input(self, preprocess: Preprocess, placement: Placement) -> NDArray[np.uint8] | None:
        """The mask on the network's grid, ``(size, size)``: each region on its own, so that no values are mixed.

        Raises:
            InputError: The mask has another shape than the slice.
        """
        if self.mask is None:
            return None
        if not self.sample.regions:
            return preprocess.mask_to_input(self.mask, placement)
        planes = self.sample.regions.planes(self.mask)
        return self.sample.regions.pack([preprocess.mask_to_input(plane, placement) for plane in planes])


def read_sample(sample: Sample) -> Reading:
    """A sample's slice and its mask, read from the files.

    Raises:
        InputError: The scan or the mask cannot be read, their shapes or places differ, or the label in the file
            contradicts that of the set.
    """
    scan = open_scan(sample.image) if sample.slice_index is None else open_cut(sample)
    index = sample.slice_index or 0
    own_label = scan.annotation.label if scan.annotation is not None else None
    if own_label and sample.label and not labels_agree(own_label, sample.label):
        raise InputError(f"{sample.image}: the file says {own_label}, the data set {sample.label}")
    sample = replace(sample, patient=sample.patient or patient_in_file(scan))
    mask = scan.annotation_slice(index)
    if sample.mask is None and mask is not None and sample.regions:
        raise InputError(f"{sample.image}: it holds one mask without labels; regions need masks of whole numbers")
    if sample.mask is not None:
        truth = read_mask_of(sample, scan)
        mask = scan.view(truth, index) if scan.volume else truth
    image = scan.slice(index) if sample.channel is None else channel_of(scan, sample.channel)
    return Reading(image, mask, scan.pixel_aspect, sample)


def read_mask_of(sample: Sample, scan: Scan) -> NDArray[np.uint8]:
    """The mask of a sample's whole scan, in the array order of ``scan.voxels``; see `Reading.mask`. The last file of a
    volume's slices is kept, because they follow each other.

    Raises:
        InputError: See `read_truth` and `read_regions`.
    """
    assert sample.mask is not None
    if sample.slice_index is None or not sample.mask.is_file():
        return _read_mask(sample.mask, scan, sample.regions)
    own, image = sample.mask.stat(), sample.image.stat()
    states = (own.st_mtime_ns, own.st_size), (image.st_mtime_ns, image.st_size)
    return _read_mask_cached(sample.mask, sample.image, *states, sample.regions)


def _read_mask(path: Path, scan: Scan, regions: Regions) -> NDArray[np.uint8]:
    return read_regions(path, scan, regions) if regions else read_truth(path, scan)


@lru_cache(maxsize=1)
def _read_mask_cached(
    path: Path, image: Path, _changed: tuple[int, int], image_state: tuple[int, int], regions: Regions
) -> NDArray[np.uint8]:
    mask = _read_mask(path, _open_cached(image, *image_state), regions)
    mask.flags.writeable = False
    return mask


def open_cut(sample: Sample) -> Scan:
    """A sample's volume in the sample's plane. The last file stays open, because its slices follow each other.

    Raises:
        InputError: The file cannot be read, or has no such plane.
    """
    state = sample.image.stat()
    scan = _open_cached(sample.image, state.st_mtime_ns, state.st_size)
    return scan if sample.plane == ACQUISITION else scan.with_plane(sample.plane)


@lru_cache(maxsize=1)
def _open_cached(path: Path, _changed_ns: int, _size: int) -> Scan:
    return open_scan(path)


def channel_of(scan: Scan, channel: int) -> NDArray[np.generic]:
    """One channel of a color picture, ``(rows, columns)``.

    Raises:
        InputError: The scan is a volume or a gray picture, which have no channels.
    """
    if not has_color(scan):
        what = "a volume" if scan.volume else "gray"
        raise InputError(f"{scan.path}: channel {channel} was asked for, but the scan is {what}")
    return scan.voxels if scan.voxels.ndim == 2 else np.ascontiguousarray(scan.voxels[..., channel])


def has_color(scan: Scan) -> bool:
    """Whether a scan is a picture with three channels in its file, even if they are equal."""
    if scan.volume or scan.voxels.ndim == 3:
        return not scan.volume
    if scan.path is None or scan.format not in _PICTURE_FORMATS:
        return False
    from PIL import Image

    with Image.open(scan.path) as picture:  # the header only: the reader folds three equal channels into one
        return len(picture.getbands()) >= 3


def has_truth(sample: Sample) -> bool:
    """Whether it is known where the tumor is: by a mask, by the content of a MATLAB file, or because there is none."""
    if sample.mask is not None or sample.label == TUMOR_FREE:
        return True
    if sample.image.suffix.lower() != ".mat":
        return False
    annotation = open_scan(sample.image).annotation
    return annotation is not None and annotation.mask is not None
