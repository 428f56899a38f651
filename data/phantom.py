"""Synthetic heads as post-contrast T1 shows them, healthy or with a lesion and its mask: for the demo and the tests.

The anatomy is analytic: skin, skull, fluid, folded cortex, white matter, ventricles, falx and vessels are functions of
a position in mm, so a slice and a volume of one seed show the same head. A phantom stands in for a scan. It is not a
model of disease: measurements on phantoms do not say how accurate the program is on patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, TUMOR_FREE
from tumorlens.data.scan import Scan

_HEAD_MM = np.array([72.0, 92.0, 88.0])  # half axes: right, anterior, superior
_BRAIN = 0.86  # the brain's surface, as a share of the head's radius
_LEVELS = {"skin": 0.62, "skull": 0.07, "fluid": 0.10, "gray": 0.30, "white": 0.37, "enhancing": 0.80}
Field = NDArray[np.float64]


@dataclass(frozen=True)
class Phantom:
    """A synthetic scan.

    Attributes:
        image: uint8 ``(rows, columns)`` with anterior up, or int16 ``(i, j, k)`` in RAS order.
        mask: uint8, 0 and 1, of the same shape.
        label: The class of its lesion, one of `data.labels.CLASSES`.
        affine: ``(4, 4)`` voxel indices to RAS mm of a volume; none for a slice.
    """

    image: NDArray[Any]
    mask: NDArray[np.uint8]
    label: str
    affine: NDArray[np.float64] | None = None

    @property
    def scan(self) -> Scan:
        """The phantom as a scan, without its mask."""
        return Scan.from_array(self.image, self.affine)


def phantom_slice(seed: int, label: str = "glioma", size: int = 256, pixel_mm: float = 0.9) -> Phantom:
    """An axial slice of a synthetic head, through the middle of the lesion if there is one.

    Args:
        seed: The same seed gives the same picture.
        label: One of `data.labels.CLASSES`.
        size: Rows and columns.
        pixel_mm: Side of a pixel in mm.

    Raises:
        InputError: The label is unknown.
    """
    head = _Head(seed, label)
    steps = (np.arange(size) - (size - 1) / 2) * pixel_mm
    y, x = np.meshgrid(-steps, -steps, indexing="ij")  # rows run to posterior, columns to the patient's left
    height = head.center[2] if label != TUMOR_FREE else float(head.rng.uniform(0, 35))
    signal, inside = head.render(x, y, np.full_like(x, height))
    noisy = _acquire(signal, head.rng, pixel_mm)
    return Phantom(np.rint(noisy * 255).astype(np.uint8), inside.astype(np.uint8), label)


def phantom_volume(
    seed: int,
    label: str = "glioma",
    shape: tuple[int, int, int] = (192, 224, 24),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 5.0),
) -> Phantom:
    """A volume of axial slices of a synthetic head, in RAS order.

    Args:
        seed: The same seed gives the same head as `phantom_slice`.
        label: One of `data.labels.CLASSES`.
        shape: Voxels to the right, to anterior, to superior.
        spacing_mm: Voxel size along each axis in mm.

    Raises:
        InputError: The label is unknown.
    """
    head = _Head(seed, label)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    axes[2] = axes[2] + 18.0  # most of the vault, little of the skull base, which has no face here
    x, y, z = np.meshgrid(*axes, indexing="ij")
    signal, inside = head.render(x, y, z)
    noisy = np.stack([_acquire(signal[:, :, k], head.rng, spacing_mm[0]) for k in range(shape[2])], axis=2)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    return Phantom(np.rint(noisy * 1500).astype(np.int16), inside.astype(np.uint8), label, affine)


class _Head:
    """One head: everything that follows from a seed."""

    def __init__(self, seed: int, label: str) -> None:
        if label not in CLASSES:
            raise InputError(f"label {label!r} is not one of {', '.join(CLASSES)}")
        self.rng = np.random.default_rng(seed)
        self.label = label
        self.half_axes = _HEAD_MM * self.rng.uniform(0.95, 1.05, 3)
        self.fold = _Waves(self.rng, 14, wavelength_mm=(13.0, 26.0))
        self.shape_noise = _Waves(self.rng, 6, wavelength_mm=(60.0, 140.0))
        self.texture = _Waves(self.rng, 10, wavelength_mm=(5.0, 14.0))
        self.ventricle = self.rng.uniform(0.85, 1.25)
        self.vessels = self.rng.uniform(-1, 1, (7, 3)) * self.half_axes * np.array([0.5, 0.5, 0.3])
        self.radius = 0.0
        self.center = np.zeros(3)
        if label != TUMOR_FREE:
            self._place_lesion()

    def render(self, x: Field, y: Field, z: Field) -> tuple[Field, NDArray[np.bool_]]:
        """Signal 0..1 and lesion mask at positions in mm (right, anterior, superior)."""
        radius = np.sqrt((x / self.half_axes[0]) ** 2 + (y / self.half_axes[1]) ** 2 + (z / self.half_axes[2]) ** 2)
        radius = radius * (1 + 0.02 * self.shape_noise(x, y, z))
        signal = np.where(radius < 1.0, _LEVELS["skin"] * (1 - 0.25 * _bump(radius, 0.985, 0.02)), 0.0)
        signal = np.where(radius < 0.945, _LEVELS["skull"] + 0.16 * _bump(radius, 0.915, 0.008), signal)
        signal = np.where(radius < 0.885, _LEVELS["fluid"] + 0.25 * _bump(radius, 0.882, 0.006), signal)
        brain = radius < _BRAIN
        signal = np.where(brain, self._brain(x, y, z, radius), signal)
        signal = self._midline(signal, x, y, z, radius)
        return self._lesion(signal, x, y, z, radius)

    def _brain(self, x: Field, y: Field, z: Field, radius: Field) -> Field:
        depth_mm = (_BRAIN - radius) * self.half_axes[0]
        fold = self.fold(x, y, z)
        sulcus = _bump(fold, 0.0, 0.16) * np.clip(1 - depth_mm / 17, 0, 1)
        cortex = np.clip(1 - (depth_mm - 2.5) / 3, 0, 1) + _bump(fold, 0.0, 0.45) * np.clip(1 - depth_mm / 20, 0, 1)
        level = _LEVELS["white"] + (_LEVELS["gray"] - _LEVELS["white"]) * np.clip(cortex, 0, 1)
        nuclei = np.exp(-((((np.abs(x) - 19) / 9) ** 2 + ((y - 6) / 17) ** 2 + ((z - 6) / 12) ** 2) ** 2))
        level = level + (0.8 * _LEVELS["gray"] + 0.2 * _LEVELS["white"] - level) * nuclei
        level = level + (_LEVELS["fluid"] - level) * 0.85 * sulcus
        level = level * (1 + 0.04 * self.texture(x, y, z))
        s = self.ventricle  # two lateral ventricles, bent outward to the back
        bend = 8 + 0.0035 * (y - 12) ** 2
        horn = ((np.abs(x) - bend) / (4.5 * s)) ** 2 + ((y + 6) / (37 * s)) ** 2 + ((z - 22) / (11 * s)) ** 2
        third = (x / 2.2) ** 2 + ((y - 2) / 11) ** 2 + ((z - 4) / 9) ** 2
        fluid = np.clip(4 * (1.15 - np.minimum(horn, third)), 0, 1)
        return level + (_LEVELS["fluid"] - level) * fluid

    def _midline(self, signal: Field, x: Field, y: Field, z: Field, radius: Field) -> Field:
        fissure = np.exp(-((x / 1.6) ** 2)) * (radius < 0.875) * ((np.abs(y) > 28) | (z > 34))
        signal = signal + (_LEVELS["fluid"] - signal) * 0.8 * fissure
        falx = np.exp(-((x / 0.6) ** 2)) * (radius < 0.88) * ((np.abs(y) > 32) | (z > 36))
        signal = signal + 0.25 * falx
        sinus = np.exp(-((x / 3.2) ** 2)) * _bump(radius, 0.868, 0.02) * ((y < 0) | (z > 40)) * (radius < 0.9)
        signal = signal + (0.75 - signal) * np.clip(1.3 * sinus, 0, 1)
        for px, py, pz in self.vessels:
            dot = np.exp(-(((x - px) / 1.1) ** 2 + ((y - py) / 1.1) ** 2 + ((z - pz) / 9) ** 2))
            signal = signal + 0.3 * dot * (radius < _BRAIN)
        return signal

    def _place_lesion(self) -> None:
        rng, axes = self.rng, self.half_axes
        self.border = _Waves(rng, 6, wavelength_mm=(18.0, 40.0))
        side = rng.choice([-1.0, 1.0])
        if self.label == "glioma":
            self.radius = float(rng.uniform(17, 25))
            self.center = np.array([side * rng.uniform(24, 34), rng.uniform(-35, 38), rng.uniform(14, 36)])
        elif self.label == "meningioma":
            self.radius = float(rng.uniform(13, 20))
            angle = rng.uniform(-1.1, 1.1)
            height = float(rng.uniform(12, 40))
            ring = np.sqrt(max(1 - (height / axes[2]) ** 2, 0.1)) * 0.86
            self.center = np.array([side * np.cos(angle) * axes[0] * ring, np.sin(angle) * axes[1] * ring, height])
            self.center[:2] *= 1 - 0.72 * self.radius / np.linalg.norm(self.center[:2])
        else:
            self.radius = float(rng.uniform(9, 13))
            self.center = np.array([rng.uniform(-2, 2), rng.uniform(18, 24), rng.uniform(-24, -16)])

    def _lesion(self, signal: Field, x: Field, y: Field, z: Field, radius: Field) -> tuple[Field, NDArray[np.bool_]]:
        if self.label == TUMOR_FREE:
            return signal, np.zeros(signal.shape, bool)
        dx, dy, dz = x - self.center[0], y - self.center[1], z - self.center[2]
        rough = {"glioma": 0.13, "meningioma": 0.05, "pituitary": 0.08}[self.label]
        distance = np.sqrt(dx**2 + dy**2 + dz**2) * (1 + rough * self.border(x, y, z)) / self.radius
        inside = (distance <= 1) & (radius < 0.875)
        grain = 1 + 0.06 * self.texture(x, y, z)
        if self.label == "glioma":
            edema = np.clip((1.9 - distance) / 0.6, 0, 1) * (radius < _BRAIN)
            signal = signal * (1 - 0.38 * edema)
            rim = _bump(distance, 0.80, 0.20)
            patchy = 0.47 + 0.07 * self.border(y, z, x) + 0.05 * self.texture(x, y, z)
            necrosis = np.clip((0.55 - distance) / 0.2, 0, 1)
            core = np.clip(patchy + 0.20 * rim - 0.22 * necrosis, 0.12, 0.85)
            return np.where(inside, core * grain, signal), inside
        if self.label == "meningioma":
            halo = np.clip((1.35 - distance) / 0.3, 0, 1) * (radius < _BRAIN)
            signal = signal * (1 - 0.25 * halo)
        return np.where(inside, _LEVELS["enhancing"] * 0.92 * grain, signal), inside


class _Waves:
    """A smooth random function of position: a sum of plane waves, of unit variance."""

    def __init__(self, rng: np.random.Generator, count: int, wavelength_mm: tuple[float, float]) -> None:
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self.wave = direction * (2 * np.pi / rng.uniform(*wavelength_mm, (count, 1)))
        self.phase = rng.uniform(0, 2 * np.pi, count)

    def __call__(self, x: Field, y: Field, z: Field) -> Field:
        total = np.zeros(np.shape(x))
        for (kx, ky, kz), phase in zip(self.wave, self.phase, strict=True):
            total += np.cos(kx * x + ky * y + kz * z + phase)
        return total * np.sqrt(2 / len(self.phase))


def _bump(value: Field, center: float, width: float) -> Field:
    return np.exp(-(((value - center) / width) ** 2))


def _acquire(signal_hw: Field, rng: np.random.Generator, pixel_mm: float) -> Field:
    """Add the effects of a scanner: point spread, an uneven coil, Rician noise (Gudbjartsson and Patz, MRM 1995)."""
    sigma = 0.75 / pixel_mm
    side = 2 * int(4 * sigma + 0.5) + 1
    blurred = cv2.GaussianBlur(signal_hw, (side, side), sigma, borderType=cv2.BORDER_REFLECT)
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in signal_hw.shape), indexing="ij")
    a, b, c = rng.uniform(-0.12, 0.12, 3)
    shaded = blurred * (1 + a * rows + b * columns + c * (rows**2 + columns**2))
    real = shaded + rng.normal(0, 0.012, signal_hw.shape)
    imaginary = rng.normal(0, 0.012, signal_hw.shape)
    return np.clip(np.hypot(real, imaginary), 0, 1)
