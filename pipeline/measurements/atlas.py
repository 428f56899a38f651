"""Registration of the MNI152 brain to the head in a volume, by twelve affine parameters.

The atlas is the skull-stripped ICBM 152 template (V. Fonov et al., NeuroImage 2011) that comes inside nilearn. A volume
of any contrast is compared with it by the correlation ratio (A. Roche et al., MICCAI 1998): how well the classes of the
atlas, such as "white matter" or "2 to 6 mm outside of the brain", explain the gray values. The optimum is found by
Gauss-Newton steps with damping, from many starting points. There is no random number in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError

_TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
_STEP = 3  # the template is thinned to this many mm
_BRIGHTNESSES = 8  # classes inside the brain
# Classes around the brain, by their distance from it: fluid, skull, scalp, air. They must reach into the air: a border
# inside the scalp would reward small fits, which leave out what is hard to explain.
_SHELLS_MM = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0, 25.0, 30.0)
_BASE_MM = -22.0  # below this height of the template, the face and the neck surround the brain
_BASE_SHELLS_MM = (0.0, 3.0, 6.0, 10.0, 14.0)
_USUAL_SIZE = 0.95  # the template is larger than the average brain
# Prices in shares of unexplained variance. Without them a fit that leaves out what is hard to explain is the cheapest.
_SHAPE_PRICE = 1.5  # of a squared strain that changes the shape
_SIZE_PRICE = 0.2  # of a squared strain that changes the size only
_UNSEEN_PRICE = 0.2  # of the share of the atlas outside of the volume
_UNIT_MM = 70.0  # half a brain: brings turns and shifts to one scale

# Starting points. A head may be tilted by 30 degrees, and its crown may lie outside of the volume.
_PITCHES = (-30.0, -15.0, 0.0, 15.0, 30.0)  # degrees about the axis from left to right
_TURNS = (-22.0, 22.0)  # degrees about each of the other two axes
_SIZES = (0.82, 0.95)
_DEPTHS_MM = (50.0, 65.0, 80.0, 95.0)  # from the crown to the middle of the brain
_HIDDEN_DEPTHS_MM = (35.0, 20.0, 5.0, -10.0)  # the same, where the volume ends below the crown
_BEST = 4  # starting points from which turn, shift and one size are fitted
_FOLLOWED = 2  # of these, the ones whose twelve parameters are fitted
_LEAST_SEEN = 0.3  # a position that shows less of the atlas than this share is not tried


@dataclass(frozen=True)
class Atlas:
    """The template as points and as a distance map.

    Attributes:
        points: ``(n, 3)`` mm from the middle of the template's brain: the brain and what lies up to 14 mm around it.
        classes: ``(n,)`` class of each point.
        coarse: ``(m,)`` indices of fewer points, evenly spread.
        brain: ``(n,)`` bool: the points inside the brain.
        distance: ``(i, j, k)`` float32, mm to the brain's surface, negative inside.
        origin: ``(3,)`` position of voxel (0, 0, 0) of `distance` in mm from the middle of the brain.
    """

    points: NDArray[np.float64]
    classes: NDArray[np.int64]
    coarse: NDArray[np.int64]
    brain: NDArray[np.bool_]
    distance: NDArray[np.float32]
    origin: NDArray[np.float64]

    def distance_at(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Mm from points, ``(..., 3)`` in mm from the middle of the brain, to the brain's surface; negative inside."""
        from scipy import ndimage

        index = np.moveaxis((points - self.origin) / _STEP, -1, 0)
        return ndimage.map_coordinates(self.distance, index, output=np.float32, order=1, mode="nearest")


@dataclass(frozen=True)
class Fit:
    """Where the atlas lies in the head.

    Attributes:
        matrix: ``(3, 3)``, mm of the atlas to mm of the scanner.
        center: ``(3,)`` position of the brain's middle in RAS mm.
        similarity: Correlation ratio, 0 to 1: the share of the gray values' variance that the atlas explains.
        seen: Share of the atlas' brain that lies inside the volume, 0 to 1.
    """

    matrix: NDArray[np.float64]
    center: NDArray[np.float64]
    similarity: float
    seen: float

    @property
    def sizes(self) -> NDArray[np.float64]:
        """``(3,)`` stretch along the principal axes of the map, descending; 1 is the size of the template."""
        return np.asarray(np.linalg.svd(self.matrix, compute_uv=False), np.float64)

    @property
    def turn_degrees(self) -> float:
        """Angle of the rotation from the template's to the scanner's axes."""
        u, _, v = np.linalg.svd(self.matrix)
        return float(np.rad2deg(np.arccos(np.clip((np.trace(u @ v) - 1) / 2, -1, 1))))

    def to_atlas(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points ``(..., 3)`` in RAS mm as mm from the middle of the atlas' brain."""
        return (points - self.center) @ np.linalg.inv(self.matrix).T


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
    middle = first + _STEP * np.argwhere(inside).mean(axis=0)
    base = (first[2] + _STEP * np.arange(len(level[0, 0])) < _BASE_MM) & np.ones_like(inside)
    grid = np.argwhere(distance < np.where(base, _BASE_SHELLS_MM[-1], _SHELLS_MM[-1]))
    grid = grid[(grid % 2 == 0).all(axis=1) & (grid.sum(axis=1) % 4 == 0)]  # 8.5 mm apart, in all directions alike
    brain, below, far, bright = (part[tuple(grid.T)] for part in (inside, base, distance, level))
    bounds = np.quantile(level[inside], np.linspace(0, 1, _BRIGHTNESSES + 1)[1:-1])
    shell = np.where(below, 50 + np.searchsorted(_BASE_SHELLS_MM, far), np.searchsorted(_SHELLS_MM, far))
    classes = np.where(brain, np.searchsorted(bounds, bright), 100 + shell)
    _, classes = np.unique(classes, return_inverse=True)
    coarse = np.flatnonzero((grid % 4 == 0).all(axis=1))
    return Atlas(first + _STEP * grid - middle, classes, coarse, brain, distance, first - middle)


def register(volume: NDArray[np.float32], affine: NDArray[np.float64], tissue: NDArray[np.bool_]) -> Fit | None:
    """The best position of the atlas in a head.

    Args:
        volume: ``(i, j, k)`` gray values at about 3 mm.
        affine: ``(4, 4)``, its voxel indices to RAS mm.
        tissue: ``(i, j, k)`` bool, the head.

    Returns:
        None if no starting point lies inside the volume. The fit may be a bad one: check it.
    """
    from scipy import ndimage

    atlas = load_atlas()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = (
        _Comparison(
            _Image(ndimage.gaussian_filter(volume, mm / spacing), affine), atlas.points[chosen], atlas.classes[chosen]
        )
        for mm, chosen in ((5.0, atlas.coarse), (2.0, slice(None)))
    )
    starts = [state for start in _starts(tissue, affine) if (state := low.look(*start)) is not None]
    starts.sort(key=lambda state: state.cost)
    best = sorted((low.descend(s, rigid=True, steps=20) for s in starts[:_BEST]), key=lambda state: state.cost)
    if not best:
        return None
    coarse = min((low.descend(s, rigid=False, steps=12) for s in best[:_FOLLOWED]), key=lambda state: state.cost)
    sharp = high.look(coarse.matrix, coarse.center)
    if sharp is None:
        return None
    end = high.descend(sharp, rigid=False, steps=15)
    return Fit(end.matrix, end.center, 1 - end.unexplained, float(end.seen[atlas.brain].mean()))


def _starts(
    tissue: NDArray[np.bool_], affine: NDArray[np.float64]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Matrices and centers to begin from: several turns, sizes, and depths below the crown."""
    from scipy.spatial.transform import Rotation

    places = np.argwhere(tissue) @ affine[:3, :3].T + affine[:3, 3]
    crown = np.quantile(places[:, 2], 0.999)
    center = places[places[:, 2] > crown - 140].mean(axis=0)
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(tissue.shape) - 1)
    ends_above = (corners @ affine[:3, :3].T + affine[:3, 3])[:, 2].max() < crown + 8
    depths = _DEPTHS_MM + (_HIDDEN_DEPTHS_MM if ends_above else ())
    turns = [(pitch, 0.0, 0.0) for pitch in _PITCHES]
    turns += [(0.0, turn, 0.0) for turn in _TURNS] + [(0.0, 0.0, turn) for turn in _TURNS]
    return [
        (
            size * Rotation.from_euler("xyz", turn, degrees=True).as_matrix(),
            np.array([*center[:2] + shift, crown - depth]),
        )
        for turn in turns
        for size in _SIZES
        for depth in depths
        for shift in ((0.0, 0.0), (0.0, 15.0), (0.0, -15.0))
    ]


class _Image:
    """A volume and its gradient in mm, which can be read between the voxels."""

    def __init__(self, volume: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
        self.to_index = np.linalg.inv(affine)
        self.shape = np.array(volume.shape)
        self.parts = [volume, *np.gradient(volume)]

    def at(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Voxel indices ``(3, n)`` of points that lie in the volume, and which of the points do."""
        index = points @ self.to_index[:3, :3].T + self.to_index[:3, 3]
        seen = ((index >= -0.5) & (index <= self.shape - 0.5)).all(axis=1)
        return index[seen].T, seen

    def values(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(n,)`` gray values."""
        return self._read(0, index)

    def slopes(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(n, 3)`` change of the gray value for one mm along each world axis."""
        return np.stack([self._read(part, index) for part in (1, 2, 3)], axis=1) @ self.to_index[:3, :3]

    def _read(self, part: int, index: NDArray[np.float64]) -> NDArray[np.float64]:
        from scipy import ndimage

        return ndimage.map_coordinates(self.parts[part], index, output=np.float64, order=1, mode="nearest")


@dataclass(frozen=True)
class _State:
    """A position of the atlas and what it makes of the volume.

    Attributes:
        cost: `unexplained` and the price of an unlikely size or shape: what is minimized.
        unexplained: 1 minus the correlation ratio.
        index: ``(3, n)`` voxel indices of the points that lie in the volume.
        seen: Which of the atlas' points these are.
        values: ``(n,)`` gray values at these points.
    """

    matrix: NDArray[np.float64]
    center: NDArray[np.float64]
    cost: float
    unexplained: float
    index: NDArray[np.float64]
    seen: NDArray[np.bool_]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class _Comparison:
    """An image and the atlas' points with their classes."""

    image: _Image
    points: NDArray[np.float64]
    classes: NDArray[np.int64]

    def look(self, matrix: NDArray[np.float64], center: NDArray[np.float64]) -> _State | None:
        """One position, or None where too little of the atlas is seen."""
        index, seen = self.image.at(self.points @ matrix.T + center)
        if seen.mean() < _LEAST_SEEN:
            return None
        values = self.image.values(index)
        spread = float(values.var())
        if spread == 0:
            return None
        unexplained = float(self._left(values, self.classes[seen]).var()) / spread
        cost = unexplained + float((_strain(matrix) ** 2).sum()) + _UNSEEN_PRICE * float(1 - seen.mean())
        return _State(matrix, center, cost, unexplained, index, seen, values)

    @staticmethod
    def _left(values: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the mean of each class leaves of ``(n,)`` values."""
        count = np.maximum(np.bincount(classes), 1)
        return values - (np.bincount(classes, values) / count)[classes]

    def descend(self, state: _State, *, rigid: bool, steps: int) -> _State:
        """The position after damped Gauss-Newton steps (K. Levenberg 1944, D. Marquardt 1963).

        Args:
            state: The position to begin from.
            rigid: Only shift, turn and one size; otherwise all twelve parameters.
            steps: At most so many, which bounds the time.
        """
        damping = 1e-2
        for _ in range(steps):
            normal, slope, basis = self._normal_equations(state, rigid)
            before = state.cost
            while damping < 1e3:
                damped = normal + damping * np.diag(np.diag(normal)) + 1e-12 * np.eye(len(normal))
                step = basis @ np.linalg.solve(damped, -slope)
                tried = self.look(state.matrix + step[:9].reshape(3, 3) / _UNIT_MM, state.center + step[9:])
                if tried is not None and tried.cost < before:
                    state, damping = tried, max(damping / 5, 1e-4)
                    break
                damping *= 5
            if before - state.cost < 5e-4 * before:
                break
        return state

    def _normal_equations(
        self, state: _State, rigid: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Approximate Hessian, gradient, and the ``(12, p)`` basis in which both are written."""
        points, classes, values = self.points[state.seen], self.classes[state.seen], state.values
        slopes = self.image.slopes(state.index)
        basis = _rigid_basis(state.matrix) if rigid else np.eye(12)
        change = np.concatenate([(slopes[:, :, None] * points[:, None, :] / _UNIT_MM).reshape(-1, 9), slopes], axis=1)
        change = change @ basis
        # The class means follow each step (variable projection), so only what they leave of a change counts.
        count = np.maximum(np.bincount(classes), 1)
        means = np.stack([np.bincount(classes, column) / count for column in change.T], axis=1)
        projected = change - means[classes]
        slope = projected.T @ self._left(values, classes) - state.unexplained * (change.T @ (values - values.mean()))
        scale = len(values) * float(values.var())
        strain, strains = _strain(state.matrix), _strain_change(state.matrix) @ basis
        return (
            projected.T @ projected / scale + strains.T @ strains,
            slope / scale + strains.T @ strain,
            basis,
        )


def _strain(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(9,)`` Green's strain, weighted by the roots of its prices: how far a map is from turning a usual brain."""
    return _priced(((matrix.T @ matrix / _USUAL_SIZE**2 - np.eye(3)) / 2)[..., None])[:, 0]


def _strain_change(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(9, 12)`` change of the strain with the twelve parameters."""
    change = np.zeros((3, 3, 12))
    for i in range(3):
        for j in range(3):
            change[j, :, 3 * i + j] += matrix[i]
            change[:, j, 3 * i + j] += matrix[i]
    return _priced(change / (2 * _USUAL_SIZE**2 * _UNIT_MM))


def _priced(strain: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(9, n)`` of strains ``(3, 3, n)``, weighted by the roots of the prices of shape and size."""
    size = np.trace(strain) / 3 * np.eye(3)[..., None]
    return (np.sqrt(_SHAPE_PRICE) * (strain - size) + np.sqrt(_SIZE_PRICE) * size).reshape(9, -1)


def _rigid_basis(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(12, 7)``: how the twelve parameters change with turns about three axes, size, and shift."""
    columns = []
    for a in range(3):
        cross = np.zeros((3, 3))
        cross[(a + 2) % 3, (a + 1) % 3], cross[(a + 1) % 3, (a + 2) % 3] = 1, -1
        columns.append((cross @ matrix).ravel())
    columns.append(matrix.ravel())
    basis = np.zeros((12, 7))
    basis[:9, :4] = np.stack(columns, axis=1) * _UNIT_MM
    basis[9:, 4:] = np.eye(3)
    return basis
