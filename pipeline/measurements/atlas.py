"""Registration of the MNI152 brain to the head in a volume, by twelve affine parameters.

The atlas is the skull-stripped ICBM 152 template (V. Fonov et al., NeuroImage 2011) that comes inside nilearn.
SimpleITK lays it on a volume of any contrast. It maximizes the mutual information (D. Mattes et al., IEEE TMI 2003) of
the gray values and the atlas' classes, such as "white matter" or "2 to 4 mm outside of the brain". No step is random.

Positions are in the scanner's RAS mm, as in nibabel. ITK's own are LPS, which makes no difference as long as all images
agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813 (its own habit)

_TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
_STEP = 3  # the template is thinned to this many mm
_BRIGHTNESSES = 8  # classes inside the brain
# Classes around the brain, by their distance from it: fluid, skull, scalp, air. They must reach into the air: a border
# inside the scalp would reward small fits, which leave out what is hard to explain.
_SHELLS_MM = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0, 25.0, 30.0)
_BASE_MM = -22.0  # below this height of the template, the face and the neck surround the brain
_BASE_SHELLS_MM = (0.0, 3.0, 6.0, 10.0, 14.0)
_BINS = 32  # of the histogram; more than there are classes, so that each has its own

# Starting points. A head may be tilted by 30 degrees, and its crown may lie outside of the volume.
_PITCHES = (-30.0, -15.0, 0.0, 15.0, 30.0)  # degrees about the axis from left to right
_SIZE = 0.9  # the template is larger than the average brain
_DEPTHS_MM = (55.0, 75.0, 95.0)  # from the crown to the middle of the brain
_HIDDEN_DEPTHS_MM = (35.0, 15.0, -5.0)  # the same, where the volume ends below the crown
_LEAST_SEEN = 0.35  # a position that shows less of the atlas than this share is not tried
_BEST = 8  # starting points from which turn, shift and one size are fitted
_FOLLOWED = 3  # of these, the ones whose twelve parameters are fitted
_STEPS = 30  # of the optimizer at most, which bounds the time

# The scales of the parameters: squared mm by which one unit moves the surface of the brain. A similarity has three
# sines of half angles, three shifts and one size; an affine map has the nine numbers of its matrix and three shifts.
_SCALES = {7: [140.0**2] * 3 + [1.0] * 3 + [70.0**2], 12: [70.0**2] * 9 + [1.0] * 3}


@dataclass(frozen=True)
class Atlas:
    """The template at 3 mm, in mm from the middle of its brain to the right, to anterior and to superior.

    Attributes:
        distance: float32 image, mm to the brain's surface, negative inside.
        classes: float32 image, the number of the class.
        near: uint8 image, 1 in the brain and around it, where there are classes.
    """

    distance: sitk.Image
    classes: sitk.Image
    near: sitk.Image


@dataclass(frozen=True)
class Fit:
    """Where the atlas lies in the head.

    Attributes:
        matrix: ``(3, 3)``, mm of the atlas to mm of the scanner.
        center: ``(3,)`` position of the brain's middle in RAS mm.
        similarity: Mutual information of atlas and volume in nats; 0 if they have nothing in common.
    """

    matrix: NDArray[np.float64]
    center: NDArray[np.float64]
    similarity: float

    @property
    def transform(self) -> sitk.AffineTransform:
        """The map from the atlas to the scanner."""
        import SimpleITK as sitk  # noqa: N813 (its own habit)

        return sitk.AffineTransform(self.matrix.ravel().tolist(), self.center.tolist())

    @property
    def sizes(self) -> NDArray[np.float64]:
        """``(3,)`` stretch along the principal axes of the map, descending; 1 is the size of the template."""
        return np.asarray(np.linalg.svd(self.matrix, compute_uv=False), np.float64)

    @property
    def turn_degrees(self) -> float:
        """Angle of the rotation from the template's to the scanner's axes."""
        u, _, v = np.linalg.svd(self.matrix)
        return float(np.rad2deg(np.arccos(np.clip((np.trace(u @ v) - 1) / 2, -1, 1))))


def as_image(voxels: NDArray[Any], affine: NDArray[np.float64]) -> sitk.Image:
    """An array ``(i, j, k)`` with its affine ``(4, 4)`` as an image of ITK."""
    import SimpleITK as sitk  # noqa: N813 (its own habit)

    image = sitk.GetImageFromArray(voxels.T)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((affine[:3, :3] / spacing_mm).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


@cache
def load_atlas() -> Atlas:
    """The atlas, computed once in a process.

    Raises:
        InputError: nilearn is not installed, or holds no template.
    """
    import nibabel
    from scipy import ndimage

    # Only its file is needed: `import nilearn.datasets` loads pandas and scikit-learn, which takes seconds.
    package = find_spec("nilearn")
    file = Path(package.origin).parent / _TEMPLATE if package and package.origin else None
    if file is None or not file.is_file():
        raise InputError("the brain region needs the MNI152 template of nilearn; install nilearn>=0.12,<0.15")
    image = nibabel.load(file)
    full = np.pad(np.asarray(image.dataobj, np.float32), 12 * _STEP)
    full = full[tuple(slice(n // _STEP * _STEP) for n in full.shape)]
    level = full.reshape([part for n in full.shape for part in (n // _STEP, _STEP)]).mean(axis=(1, 3, 5))
    inside = ndimage.binary_fill_holes(level > level.max() / 4)
    outward, inward = (ndimage.distance_transform_edt(m) * _STEP for m in (~inside, inside))
    distance = (outward - inward + np.where(inside, 0.5, -0.5) * _STEP).astype(np.float32)

    first = image.affine[:3, 3] - 12 * _STEP + (_STEP - 1) / 2
    base = (first[2] + _STEP * np.arange(level.shape[2]) < _BASE_MM) & np.ones_like(inside)
    near = distance < np.where(base, _BASE_SHELLS_MM[-1], _SHELLS_MM[-1])
    bounds = np.quantile(level[inside], np.linspace(0, 1, _BRIGHTNESSES + 1)[1:-1])
    shell = np.where(base, 50 + np.searchsorted(_BASE_SHELLS_MM, distance), np.searchsorted(_SHELLS_MM, distance))
    classes = np.zeros(level.shape, np.float32)
    named = np.where(inside, np.searchsorted(bounds, level), 100 + shell)[near]
    classes[near] = np.unique(named, return_inverse=True)[1]
    affine = np.diag([_STEP, _STEP, _STEP, 1.0])
    affine[:3, 3] = -_STEP * np.argwhere(inside).mean(axis=0)
    return Atlas(*(as_image(part, affine) for part in (distance, classes, near.astype(np.uint8))))


def register(head: sitk.Image, tissue: NDArray[np.bool_]) -> Fit | None:
    """The best position of the atlas in a head.

    Args:
        head: Gray values at about 3 mm, float32, with axes to the right, to anterior and to superior.
        tissue: ``(k, j, i)`` bool, the voxels of `head` that are not air.

    Returns:
        None if no starting point lies inside the volume, or the atlas leaves it. The fit may be a bad one: check it.
    """
    import SimpleITK as sitk  # noqa: N813 (its own habit)

    coarse = _Comparison(sitk.SmoothingRecursiveGaussian(head, 5.0), 4)
    fine = _Comparison(sitk.SmoothingRecursiveGaussian(head, 2.0), 2)
    starts = [(coarse.cost(start), start) for start in _starts(head, tissue) if coarse.seen(start) > _LEAST_SEEN]
    if not starts:
        return None
    starts = sorted(starts, key=itemgetter(0))[:_BEST]
    similar = sorted((coarse.descend(start, 8.0) for _, start in starts), key=itemgetter(0))[:_FOLLOWED]
    affine = (coarse.descend(sitk.AffineTransform(s.GetMatrix(), s.GetTranslation()), 3.0) for _, s in similar)
    cost, best = fine.descend(min(affine, key=itemgetter(0))[1], 2.0)
    if not np.isfinite(cost):
        return None
    return Fit(np.array(best.GetMatrix()).reshape(3, 3), np.array(best.GetTranslation()), -cost)


def _starts(head: sitk.Image, tissue: NDArray[np.bool_]) -> list[sitk.Transform]:
    """Positions to begin from: several pitches, and depths below the crown."""
    import SimpleITK as sitk  # noqa: N813 (its own habit)

    matrix = np.array(head.GetDirection()).reshape(3, 3) * head.GetSpacing()
    places = np.argwhere(tissue)[:, ::-1] @ matrix.T + head.GetOrigin()
    crown = np.quantile(places[:, 2], 0.999)
    x, y, _ = places[places[:, 2] > crown - 140].mean(axis=0)
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in head.GetSize())), axis=-1).reshape(8, 3)
    ends_above = (corners @ matrix.T + head.GetOrigin())[:, 2].max() < crown + 8
    return [
        sitk.Similarity3DTransform(_SIZE, (1.0, 0.0, 0.0), np.deg2rad(pitch), (x, y, crown - depth))
        for pitch in _PITCHES
        for depth in _DEPTHS_MM + (_HIDDEN_DEPTHS_MM if ends_above else ())
    ]


class _Comparison:
    """A head and the atlas at every `thinning`-th voxel along each axis."""

    def __init__(self, head: sitk.Image, thinning: int) -> None:
        import SimpleITK as sitk  # noqa: N813 (its own habit)

        atlas = load_atlas()
        self.head, self.ones = head, sitk.Cast(head * 0 + 1, sitk.sitkUInt8)
        self.classes, self.near = (part[::thinning, ::thinning, ::thinning] for part in (atlas.classes, atlas.near))
        self.method = sitk.ImageRegistrationMethod()
        self.method.SetMetricAsMattesMutualInformation(_BINS)
        self.method.SetMetricFixedMask(self.near)
        self.method.SetInterpolator(sitk.sitkLinear)
        self.method.SetMetricUseFixedImageGradientFilter(False)
        self.method.SetMetricUseMovingImageGradientFilter(False)
        self.method.SetNumberOfWorkUnits(1)  # or the sums depend on the number of processors

    def seen(self, position: sitk.Transform) -> float:
        """Share of the atlas that lies in the volume."""
        import SimpleITK as sitk  # noqa: N813 (its own habit)

        inside = sitk.Resample(self.ones, self.near, position, sitk.sitkNearestNeighbor)
        return float(sitk.GetArrayFromImage(inside)[sitk.GetArrayFromImage(self.near) > 0].mean())

    def cost(self, position: sitk.Transform) -> float:
        """Minus the mutual information."""
        self.method.SetInitialTransform(position)
        return float(self.method.MetricEvaluate(self.classes, self.head))

    def descend(self, start: sitk.Transform, step_mm: float) -> tuple[float, sitk.Transform]:
        """Cost and position after gradient descent, whose steps begin at `step_mm` and are halved at each turn back.

        `start` is changed to the position. The cost is infinite where the atlas has left the volume.
        """
        self.method.SetOptimizerScales(_SCALES[len(start.GetParameters())])
        self.method.SetOptimizerAsRegularStepGradientDescent(step_mm, step_mm / 16, _STEPS)
        self.method.SetInitialTransform(start, inPlace=True)
        try:
            self.method.Execute(self.classes, self.head)
        except RuntimeError:  # no sample lies in the volume, so there is nothing to compare
            return float("inf"), start
        return float(self.method.GetMetricValue()), start
