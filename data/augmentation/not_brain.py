"""Pictures that are not an MRI of the brain, drawn at random, from which a classifier learns to refuse.

Noise, shapes, text and plots; textures in a head's outline; and pictures made of brains: shuffled, blanked, cut to a
piece, many on one sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.augmentation.blank import blank_head

Picture = NDArray[np.uint8]
_SIDE = 224
_WORDS = ("patient", "report", "findings", "contrast", "slice", "date", "120", "kV", "left", "right", "anterior")


def not_brains(brains_nhw: Sequence[Picture], count: int, seed: int = 0) -> Iterator[Picture]:
    """`count` gray pictures of about 224 pixels a side, each kind in turn.

    Args:
        brains_nhw: Prepared slices that the derived kinds are made of; without any, those kinds are left out.
        count: Number of pictures. A picture of one tone is left out.
        seed: The same seed gives the same pictures.
    """
    kinds: list[Callable[[np.random.Generator], Picture]] = list(_DRAWN)
    if len(brains_nhw):
        for derive in _DERIVED:
            kinds.append(lambda rng, derive=derive: derive(brains_nhw, rng))  # type: ignore[misc]
    for number in range(count):
        picture = kinds[number % len(kinds)](np.random.default_rng((seed, number)))
        if np.ptp(picture):
            yield picture


def _noise(rng: np.random.Generator) -> Picture:
    """Grain of any coarseness, from salt and pepper to clouds."""
    grain = rng.normal(0, 1, (_SIDE, _SIDE)).astype(np.float32)
    if rng.uniform() < 0.75:
        grain = cv2.GaussianBlur(grain, (0, 0), float(rng.uniform(0.5, 30)))
    return _stretched(grain)


def _pink(rng: np.random.Generator) -> Picture:
    """Grain whose power falls with frequency as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None])
    spectrum = rng.normal(size=(2, *frequency.shape)) / np.maximum(frequency, 1 / _SIDE) ** rng.uniform(0.7, 2)
    return _stretched(np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (_SIDE, _SIDE)))


def _gradient(rng: np.random.Generator) -> Picture:
    rows, columns = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * rows + np.sin(angle) * columns
    return _stretched(ramp if rng.uniform() < 0.5 else np.sin(ramp * rng.uniform(3, 80)))


def _shapes(rng: np.random.Generator) -> Picture:
    """Flat shapes, as in drawings and icons."""
    picture = np.full((_SIDE, _SIDE), rng.integers(256), np.uint8)
    for _ in range(int(rng.integers(1, 25))):
        tone, at = int(rng.integers(256)), rng.integers(0, _SIDE, 4)
        fill = int(rng.choice([-1, 1, 3]))
        kind = rng.integers(3)
        if kind == 0:
            cv2.rectangle(picture, at[:2].tolist(), at[2:].tolist(), tone, fill)
        elif kind == 1:
            cv2.circle(picture, at[:2].tolist(), int(at[2] // 3 + 2), tone, fill)
        else:
            cv2.fillPoly(picture, [rng.integers(0, _SIDE, (int(rng.integers(3, 8)), 2)).astype(np.int32)], tone)
    return picture


def _checks(rng: np.random.Generator) -> Picture:
    rows, columns = np.mgrid[:_SIDE, :_SIDE] // int(rng.integers(2, 60))
    return _stretched((rows + columns) % 2 if rng.uniform() < 0.5 else rows % 2)


def _text(rng: np.random.Generator) -> Picture:
    """A page, a sign or a screen."""
    paper = (255, 0, int(rng.integers(256)))[int(rng.integers(3))]
    picture = np.full((_SIDE, _SIDE), paper, np.uint8)
    font, scale = int(rng.integers(8)), float(rng.uniform(0.25, 2.0))
    step = max(8, round(30 * scale))
    for y in range(step, _SIDE + step, step):
        line = " ".join(_WORDS[i] for i in rng.integers(len(_WORDS), size=int(rng.integers(1, 12))))
        cv2.putText(picture, line, (int(rng.integers(0, 12)), y), font, scale, 255 - paper, max(1, round(scale)))
    return picture


def _plot(rng: np.random.Generator) -> Picture:
    """Axes with lines, bars or points."""
    picture = np.full((_SIDE, _SIDE), int(rng.choice([255, 30])), np.uint8)
    ink = 255 - int(picture[0, 0])
    cv2.rectangle(picture, (25, 15), (_SIDE - 12, _SIDE - 25), ink, 1)
    for _ in range(int(rng.integers(1, 5))):
        n = int(rng.integers(5, 60))
        x = np.linspace(26, _SIDE - 14, n).astype(np.int32)
        y = (_SIDE / 2 + 80 * np.tanh(np.cumsum(rng.normal(0, 0.3, n)))).astype(np.int32)
        tone = int(rng.integers(256))
        kind = rng.integers(3)
        if kind == 0:
            cv2.polylines(picture, [np.stack([x, y], axis=1)], isClosed=False, color=tone, thickness=2)
        for px, py in zip(x.tolist(), y.tolist(), strict=True):
            if kind == 1:
                cv2.rectangle(picture, (px, py), (px + 160 // n, _SIDE - 26), tone, -1)
            elif kind == 2:
                cv2.circle(picture, (px, py), 2, tone, -1)
    return picture


def _in_outline(rng: np.random.Generator) -> Picture:
    """Grain, rings or a gradient in the outline of a head, with a rim or without."""
    inside = (_noise, _pink, _gradient, _checks, _radial)[int(rng.integers(5))](rng)
    mask = np.zeros((_SIDE, _SIDE), np.uint8)
    axes = (int(rng.uniform(0.25, 0.48) * _SIDE), int(rng.uniform(0.3, 0.48) * _SIDE))
    center = (_SIDE // 2, _SIDE // 2)
    cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    picture = (rng.uniform(30, 140) + rng.uniform(0.1, 0.5) * inside).clip(0, 255).astype(np.uint8) * mask
    if rng.uniform() < 0.5:
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, int(rng.integers(120, 256)), int(rng.integers(1, 18)))
    return picture


def _radial(rng: np.random.Generator) -> Picture:
    """Rings and spokes, like cut fruit, targets and wheels."""
    rows, columns = (np.mgrid[:_SIDE, :_SIDE] - _SIDE / 2) / _SIDE
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    return _stretched(np.sin(radius * rng.uniform(5, 120)) + rng.uniform(0, 2) * np.cos(angle * rng.integers(0, 24)))


def _cylinders(rng: np.random.Generator) -> Picture:
    """Ellipses of flat tones in a body's outline: a test object, a limb, a trunk in CT."""
    picture = np.zeros((_SIDE, _SIDE), np.float32)
    half = np.array([rng.uniform(60, 108), rng.uniform(45, 108)])
    cv2.ellipse(picture, (112, 112), half.astype(int).tolist(), 0, 0, 360, float(rng.uniform(40, 160)), -1)
    for _ in range(int(rng.integers(1, 12))):
        at = (112 + rng.uniform(-0.75, 0.75, 2) * half).astype(int).tolist()
        size = rng.uniform(0.05, 0.4, 2) * half
        turn, tone = float(rng.uniform(0, 180)), float(rng.choice([0, rng.uniform(0, 255), 255]))
        cv2.ellipse(picture, at, size.astype(int).clip(2).tolist(), turn, 0, 360, tone, -1)
    picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.4, 2)))
    return (picture + rng.normal(0, rng.uniform(0, 12), picture.shape) * (picture > 8)).clip(0, 255).astype(np.uint8)


def _shuffled(brains: Sequence[Picture], rng: np.random.Generator) -> Picture:
    """The tiles of a brain in random order."""
    picture = _one(brains, rng)
    n = int(rng.choice([2, 3, 4, 6]))
    side = picture.shape[0] // n
    tiles = [picture[i * side : (i + 1) * side, j * side : (j + 1) * side] for i in range(n) for j in range(n)]
    order = rng.permutation(n * n)
    return np.vstack([np.hstack([tiles[k] for k in order[i * n : (i + 1) * n]]) for i in range(n)])


def _sheet(brains: Sequence[Picture], rng: np.random.Generator) -> Picture:
    """A sheet of many slices, which would have to be cut apart."""
    n = int(rng.choice([2, 3, 4]))
    small = [
        cv2.resize(_one(brains, rng), (_SIDE // n, _SIDE // n), interpolation=cv2.INTER_AREA) for _ in range(n * n)
    ]
    return np.vstack([np.hstack(small[i * n : (i + 1) * n]) for i in range(n)]).astype(np.uint8)


def _piece(brains: Sequence[Picture], rng: np.random.Generator) -> Picture:
    """A small part of a brain, enlarged."""
    picture = _one(brains, rng)
    side = int(picture.shape[0] * rng.uniform(0.15, 0.33))
    middle = picture.shape[0] // 2
    top, left = (int(v) for v in rng.integers(middle - int(1.2 * side), middle + int(0.2 * side) + 1, 2))
    return np.asarray(cv2.resize(picture[top : top + side, left : left + side], (_SIDE, _SIDE)), np.uint8)


def _blank(brains: Sequence[Picture], rng: np.random.Generator) -> Picture:
    return blank_head(_one(brains, rng), int(rng.integers(2**31)))


def _one(brains: Sequence[Picture], rng: np.random.Generator) -> Picture:
    return brains[int(rng.integers(len(brains)))]


def _stretched(values: NDArray[np.generic]) -> Picture:
    numbers = np.asarray(values, np.float64)
    low, high = numbers.min(), numbers.max()
    return np.rint((numbers - low) / max(high - low, 1e-9) * 255).astype(np.uint8)


_DRAWN = (_noise, _pink, _gradient, _shapes, _checks, _text, _plot, _in_outline, _radial, _cylinders)
_DERIVED = (_shuffled, _sheet, _piece, _blank)
