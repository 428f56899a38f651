"""`Scan`: voxels, geometry and provenance. The one type that all parts of the project pass on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError

# World axes are RAS (nibabel's convention): 0 right, 1 anterior, 2 superior. A slice is shown as radiologists see it:
# for each through-plane world axis, the world axis and sense that run down the rows and along the columns.
_DISPLAY = {
    2: ((1, -1), (0, -1)),  # axial: rows run to posterior, columns to the patient's left
    1: ((2, -1), (0, -1)),  # coronal: rows run to inferior, columns to the patient's left
    0: ((2, -1), (1, -1)),  # sagittal: rows run to inferior, columns to posterior
}

ACQUISITION = "acquisition"  # the plane in which a volume's slices lie in its file
PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}

ROUNDED_DEG = 0.5  # directions of three decimals are off by 0.1 degrees, of two by 0.3 mostly
_most_voxels: ContextVar[float] = ContextVar("most_voxels", default=math.inf)
_EXACT_DEG = 1e-3  # float32 gives less; ITK does not open a NIfTI whose axes are off by more than 7e-3


@contextmanager
def voxels_limited(most: float) -> Iterator[None]:
    """Refuse larger scans in this thread until the block ends; readers do so before they unpack anything, if the file
    has a header that says so."""
    before = _most_voxels.set(most)
    try:
        yield
    finally:
        _most_voxels.reset(before)


def check_n_voxels(n: float) -> None:
    """Raises:
    InputError: A scan of so many voxels is larger than `voxels_limited` allows.
    """
    most = _most_voxels.get()
    if n > most:
        raise InputError(f"{n / 1e6:.3g} million voxels are more than the {most / 1e6:.3g} million that are allowed")


@dataclass(frozen=True)
class Annotation:
    """Mask, label and patient that a scan's file carries.

    Attributes:
        mask: Lesion mask in the shape of the scan's slice or volume, non-zero is lesion; none if not given.
        label: The class; none if not given.
        patient: The patient's pseudonym in the data set; none if not given.
    """

    mask: NDArray[np.uint8] | None = None
    label: str | None = None
    patient: str | None = None


@dataclass(frozen=True)
class Scan:
    """One picture or volume as it was read.

    Attributes:
        voxels: A picture, ``(rows, columns)`` or ``(rows, columns, 3)``, or a volume ``(i, j, k)`` in the file's order.
        affine: ``(4, 4)`` voxel indices to RAS mm, or none.
        spacing_mm: Voxel size in mm along each array axis, or none if unknown: it is never guessed.
        path: The file, or none for an array.
        format: A name of `data.formats.open.FORMATS`, such as ``"nifti"``, or ``"array"``.
        volume: Whether the third axis is space (and not color).
        source_shape: The file's own shape, which a written mask must have (it may hold axes of length 1).
        header: The format's own header, from which a written mask takes its geometry.
        annotation: Mask, label and patient if the file carries them.
        frame: The frame of a 4-D file, from 0; none if the file has no frames.
        plane_axis: The array axis across which a volume is cut into slices (see `in_plane`); none leaves the slices of
            acquisition.
        notes: Choices that the reader made.
        warnings: Flaws of the source that a person should know.
        windows: The header's display window ``(low, high)`` for each slice of acquisition, in the unit of `voxels`;
            none for a slice without one. Empty if the source gives no windows.
        dicom: The source instances of a DICOM series, or none.
        x_first: Whether the first array axis runs along the rows of a slice, for volumes without an affine.
        assumed_affine: ``(4, 4)``, for volumes without an affine: how the arrays of this format mostly lie. Slices are
            cut and turned by it, but nothing is measured or called left or right by it.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64] | None = None
    spacing_mm: tuple[float, ...] | None = None
    path: Path | None = None
    format: str = "array"
    volume: bool = False
    source_shape: tuple[int, ...] = ()
    header: Any = field(default=None, repr=False, compare=False)
    annotation: Annotation | None = None
    frame: int | None = None
    plane_axis: int | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    windows: tuple[tuple[float, float] | None, ...] = ()
    dicom: Any = field(default=None, repr=False, compare=False)
    x_first: bool = False
    assumed_affine: NDArray[np.float64] | None = None

    @classmethod
    def from_array(
        cls,
        voxels: NDArray[Any],
        affine: NDArray[np.float64] | None = None,
        spacing_mm: tuple[float, ...] | None = None,
    ) -> Scan:
        """A scan from an array in memory.

        Args:
            voxels: ``(rows, columns)``, ``(rows, columns, 3 or 4)`` uint8/uint16 color, or a volume ``(i, j, k)``. A
                volume without an affine is cut across its shortest axis, with rows before columns.
            affine: ``(4, 4)`` voxel indices to RAS mm.
            spacing_mm: Voxel size in mm along each spatial axis. An affine takes its place.

        Raises:
            InputError: The array has no pixels, or not two or three axes; the affine is singular, or a spacing is not
                positive.

        Example:
            >>> volume = np.random.default_rng(0).normal(size=(64, 80, 12))
            >>> scan = Scan.from_array(volume, affine=np.diag([1.0, 1.0, 5.0, 1.0]))
            >>> scan.plane, scan.n_slices, scan.slice_spacing_mm
            ('axial', 12, (1.0, 1.0))
        """
        voxels = np.asarray(voxels)
        if voxels.size == 0 or voxels.ndim not in (2, 3) or voxels.dtype.kind not in "buif":
            raise InputError(f"a scan is a numeric array with 2 or 3 axes; this one is {voxels.dtype} {voxels.shape}")
        color = voxels.ndim == 3 and voxels.shape[2] in (3, 4) and voxels.dtype.kind == "u" and affine is None
        volume = voxels.ndim == 3 and not color
        if voxels.dtype.kind == "b":  # booleans cannot be subtracted
            voxels = voxels.astype(np.uint8)
        if affine is not None:
            affine = checked_affine(affine)
            spacing_mm = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)[: voxels.ndim])
        if spacing_mm is not None and (len(spacing_mm) < (3 if volume else 2) or not all(s > 0 for s in spacing_mm)):
            raise InputError(f"spacing_mm {spacing_mm} must be one positive length per axis")
        return cls(voxels, affine, spacing_mm, volume=volume, source_shape=voxels.shape)

    @property
    def slice_axis(self) -> int:
        """The array axis across the slices of a volume.

        `plane_axis` comes first. Otherwise a single slice lies across its axis of length 1. Otherwise it is the axis of
        the coarsest spacing; for an even spacing, an axis less than half as long as the others; otherwise the axis
        nearest to head-foot (axial slices).
        """
        if not self.volume:
            raise InputError("a single picture has no slice axis")
        if self.plane_axis is not None:
            return self.plane_axis
        if self.dicom is not None:  # its images are slices, whatever their spacing
            return 2
        shape = np.array(self.voxels.shape)
        if shape.min() == 1:
            return int(np.flatnonzero(shape == 1)[-1])
        if self.spacing_mm is not None:
            spacing = np.array(self.spacing_mm[:3])
            coarsest = int(np.argmax(spacing))
            if spacing[coarsest] > 1.5 * np.delete(spacing, coarsest).max():
                return coarsest
        shortest = int(np.argmin(shape))
        if 2 * shape[shortest] < np.delete(shape, shortest).min() or self._view_affine is None:
            return shortest
        return self.axis_nearest(2)

    def axis_nearest(self, world: int) -> int:
        """The array axis nearest to a world axis (0 right, 1 anterior, 2 superior) of a volume with an affine, or with
        an assumed one."""
        return int(np.flatnonzero(self._world_axes() == world)[0])

    @property
    def plane(self) -> str | None:
        """``"axial"``, ``"coronal"`` or ``"sagittal"``, or none if the affine is not known."""
        if not self.volume or self.affine is None:
            return None
        return PLANES[int(self._world_axes()[self.slice_axis])]

    def in_plane(self, axis: int) -> Scan:
        """The same volume, cut across another array axis: `plane`, `slice`, `view` and the rest follow.

        Raises:
            InputError: The scan is a picture, or has no such axis.
        """
        if not self.volume:
            raise InputError("a picture has no planes")
        if axis not in range(3):
            raise InputError(f"a volume has the axes 0, 1 and 2, but no axis {axis}")
        return replace(self, plane_axis=int(axis))

    def with_plane(self, name: str) -> Scan:
        """The same volume, cut in a named plane.

        Args:
            name: ``"axial"``, ``"coronal"`` or ``"sagittal"``: cut across the array axis nearest to the plane's. Or
                ``"acquisition"``: the slices as they were acquired, which any scan has.

        Raises:
            InputError: The name is unknown, or the scan is a picture, a volume without affine, or a single slice of
                another plane.
        """
        if name == ACQUISITION:
            return replace(self, plane_axis=None)
        if name not in PLANES.values():
            raise InputError(f"plane {name!r} is not one of {', '.join(PLANES.values())}, {ACQUISITION}")
        if not self.volume:
            raise InputError("a picture has no planes")
        if self.affine is None:
            raise InputError(f"the volume's orientation is not known, so it has no {name} slices")
        axis = self.axis_nearest(next(world for world, plane in PLANES.items() if plane == name))
        if min(n for a, n in enumerate(self.voxels.shape) if a != axis) == 1 < max(self.voxels.shape):
            raise InputError(f"a single {replace(self, plane_axis=None).plane} slice has no {name} view")
        return self.in_plane(axis)

    @property
    def n_slices(self) -> int:
        """Number of slices; 1 for a picture."""
        return self.voxels.shape[self.slice_axis] if self.volume else 1

    @property
    def slice_spacing_mm(self) -> tuple[float, float] | None:
        """Height and width of a pixel of `slice` in mm, or none if the spacing is not known."""
        if self.spacing_mm is None:
            return None
        if not self.volume:
            return float(self.spacing_mm[0]), float(self.spacing_mm[1])
        _, row_axis, column_axis, _ = self.layout
        return float(self.spacing_mm[row_axis]), float(self.spacing_mm[column_axis])

    @property
    def pixel_aspect(self) -> float:
        """Height of a slice's pixel divided by its width; 1 if the spacing is not known."""
        spacing = self.slice_spacing_mm
        return spacing[0] / spacing[1] if spacing else 1.0

    def slice(self, index: int) -> NDArray[Any]:
        """One slice as a person looks at it, ``(rows, columns)``; a color picture as ``(rows, columns, 3)``.

        Volumes with an affine are turned to the radiological view: anterior (or superior) is up, and the patient's
        right is on the left of the picture.
        """
        return self.view(self.voxels, index)

    def view(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """The slice, as `slice` shows it, of another array in the order of `voxels`, such as a mask."""
        if not self.volume:
            return array
        axis, row_axis, column_axis, flips = self.layout
        # Not np.take, which copies all of an array in Fortran order (such as a NIfTI volume) for each slice.
        view = np.moveaxis(array, axis, 0)[index]
        if row_axis > column_axis:
            view = view.T
        return view[:: flips[0], :: flips[1]]

    def place_in_view(self, index: Sequence[float]) -> tuple[float, float]:
        """Row and column in its `slice` of a voxel, given by indices along the array axes, which may be fractions."""
        if not self.volume:
            return float(index[0]), float(index[1])
        _, row_axis, column_axis, flips = self.layout
        row, column = (
            float(index[axis] if step == 1 else self.voxels.shape[axis] - 1 - index[axis])
            for axis, step in zip((row_axis, column_axis), flips, strict=True)
        )
        return row, column

    def mask_from_slices(self, masks_shw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Put masks of all slices back into the array order of `voxels`: the inverse of `view`.

        Args:
            masks_shw: ``(n_slices, rows, columns)`` in the view of `slice`.
        """
        if not self.volume:
            return np.ascontiguousarray(masks_shw[0])
        axis, row_axis, column_axis, flips = self.layout
        stack = masks_shw[:, :: flips[0], :: flips[1]]
        if row_axis > column_axis:
            stack = stack.transpose(0, 2, 1)
        return np.ascontiguousarray(np.moveaxis(stack, 0, axis))

    def annotation_slice(self, index: int) -> NDArray[np.uint8] | None:
        """The annotation's mask of one slice in the view of `slice`, or none."""
        if self.annotation is None or self.annotation.mask is None:
            return None
        return self.view(self.annotation.mask, index)

    def _world_axes(self) -> NDArray[np.int_]:
        """``(3,)``: for each array axis the nearest world axis (0 right, 1 anterior, 2 superior)."""
        from nibabel.orientations import io_orientation

        return io_orientation(self._view_affine)[:3, 0].astype(int)

    @property
    def _view_affine(self) -> NDArray[np.float64] | None:
        return self.assumed_affine if self.affine is None else self.affine

    @property
    def layout(self) -> tuple[int, int, int, tuple[int, int]]:
        """Slice axis, row axis and column axis of a volume's array, and the steps (1 or -1) down the rows and along the
        columns of `slice`."""
        axis = self.slice_axis
        if self._view_affine is None:
            row_axis, column_axis = (a for a in (range(2, -1, -1) if self.x_first else range(3)) if a != axis)
            return axis, row_axis, column_axis, (1, 1)
        from nibabel.orientations import io_orientation

        orientation = io_orientation(self._view_affine)[:3]
        world = orientation[:, 0].astype(int)
        (row_world, row_sense), (column_world, column_sense) = _DISPLAY[int(world[axis])]
        row_axis = int(np.flatnonzero(world == row_world)[0])
        column_axis = int(np.flatnonzero(world == column_world)[0])
        flips = (int(row_sense * orientation[row_axis, 1]), int(column_sense * orientation[column_axis, 1]))
        return axis, row_axis, column_axis, flips


def checked_affine(affine: NDArray[Any]) -> NDArray[np.float64]:
    """The affine as float64 ``(4, 4)``.

    Raises:
        InputError: The shape is another one, or the matrix is not finite or is singular.
    """
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InputError("the affine is not a finite 4x4 matrix")
    columns = np.linalg.norm(matrix[:3, :3], axis=0)
    if (columns == 0).any() or abs(np.linalg.det(matrix[:3, :3] / columns)) < 1e-4:
        raise InputError("the affine is singular, so the voxels have no place in space")
    return matrix


def shear_deg(affine: NDArray[np.float64]) -> float:
    """How far two array axes of an affine ``(4, 4)`` depart from a right angle at most, in degrees."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arcsin(np.abs(axes.T @ axes - np.eye(3)).max().clip(max=1))))


def straightened(
    affine: NDArray[np.float64], shape: Sequence[int], most_deg: float = ROUNDED_DEG
) -> NDArray[np.float64]:
    """The affine with array axes at right angles that puts the voxels nearest to where `affine` puts them.

    Headers round directions and positions, and other programs refuse axes that are not exactly perpendicular. Voxel
    size and center of the volume stay. The rotation is the weighted Procrustes solution (Schoenemann 1966, SVD), in
    which an axis weighs as much as its length squared: so the few slices of a short stack do not turn the slices.

    Args:
        affine: ``(4, 4)`` to mm.
        shape: ``(3,)`` voxels along each array axis.
        most_deg: An affine that is sheared by more is returned as it is: such shear is real, as that of a gantry tilt.
    """
    if not _EXACT_DEG < shear_deg(affine) <= most_deg:
        return affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(affine[:3, :3] / sizes * (sizes * shape) ** 2)
    straight = affine.copy()
    straight[:3, :3] = u @ vt * sizes
    straight[:3, 3] += (affine - straight)[:3, :3] @ ((np.array(shape) - 1) / 2)
    return straight
