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


def in_outline(picture_hw: Picture, seed: int) -> Picture:
    """A picture of any size, cut to a random ellipse about as large as a head; ``(224, 224)``."""
    return np.asarray(cv2.resize(picture_hw, (_SIDE, _SIDE)), np.uint8) * _outline(np.random.default_rng(seed))


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


def _filled_outline(rng: np.random.Generator) -> Picture:
    """Grain, rings or a gradient in the outline of a head, with a rim or without."""
    inside = (_noise, _pink, _gradient, _checks, _radial)[int(rng.integers(5))](rng)
    mask = _outline(rng)
    picture = (rng.uniform(30, 140) + rng.uniform(0.1, 0.5) * inside).clip(0, 255).astype(np.uint8) * mask
    if rng.uniform() < 0.5:
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, int(rng.integers(120, 256)), int(rng.integers(1, 18)))
    return picture


def _outline(rng: np.random.Generator) -> Picture:
    """A filled ellipse of ones, about the size of a head."""
    mask = np.zeros((_SIDE, _SIDE), np.uint8)
    axes = (int(rng.uniform(0.25, 0.48) * _SIDE), int(rng.uniform(0.3, 0.48) * _SIDE))
    cv2.ellipse(mask, (_SIDE // 2, _SIDE // 2), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return mask


def _vessels(rng: np.random.Generator) -> Picture:
    """A smooth disc with branching vessels: the back of an eye, or an angiogram."""
    size = np.float32(_SIDE)
    field = cv2.GaussianBlur(rng.normal(0, 1, (_SIDE, _SIDE)).astype(np.float32), (0, 0), float(rng.uniform(8, 40)))
    field = rng.uniform(40, 170) + rng.uniform(4, 30) * field / max(float(field.std()), 1e-6)
    contrast = float(rng.uniform(15, 80) * rng.choice([-1, -1, 1]))
    trees = np.zeros((_SIDE, _SIDE), np.float32)
    root = rng.uniform(0.15, 0.85, 2) * size
    tips = [(root, float(angle), float(rng.uniform(1.5, 5))) for angle in rng.uniform(0, 2 * np.pi, rng.integers(3, 9))]
    while tips:
        at, angle, width = tips.pop()
        for _ in range(int(rng.integers(3, 9))):
            to = at + rng.uniform(5, 14) * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(trees, at.astype(int).tolist(), to.astype(int).tolist(), 1.0, max(1, round(width)), cv2.LINE_AA)
            at, angle = to, angle + float(rng.normal(0, 0.25))
        if width > 0.9:
            fork = float(rng.uniform(0.3, 0.9))
            tips += [(at, angle + turn, width * float(rng.uniform(0.55, 0.85))) for turn in (-fork, fork)]
    picture = field + contrast * cv2.GaussianBlur(trees, (0, 0), float(rng.uniform(0.4, 1.2)))
    if rng.uniform() < 0.7:
        radius = int(rng.uniform(6, 18))
        cv2.circle(picture, root.astype(int).tolist(), radius, float(np.clip(field.mean() + 70, 0, 255)), -1)
    picture += rng.normal(0, rng.uniform(0, 6), picture.shape)
    disc = np.zeros((_SIDE, _SIDE), np.uint8)
    cv2.circle(disc, (_SIDE // 2, _SIDE // 2), int(rng.uniform(0.36, 0.5) * _SIDE), 1, -1)
    return picture.clip(0, 255).astype(np.uint8) * (disc if rng.uniform() < 0.8 else 1)


def _hot_spots(rng: np.random.Generator) -> Picture:
    """A blurred body with bright spots, as a gamma camera shows it."""
    picture = np.zeros((_SIDE, _SIDE), np.float32)
    half = np.array([rng.uniform(12, 60), rng.uniform(60, 108)])
    for _ in range(int(rng.integers(2, 7))):
        at = (112 + rng.uniform(-0.6, 0.6, 2) * half).astype(int).tolist()
        size = (rng.uniform(0.3, 0.9, 2) * half).astype(int).clip(3).tolist()
        cv2.ellipse(picture, at, size, float(rng.uniform(-40, 40)), 0, 360, float(rng.uniform(30, 110)), -1)
    for _ in range(int(rng.integers(1, 25))):
        at = (112 + rng.uniform(-0.8, 0.8, 2) * half).astype(int).tolist()
        cv2.circle(picture, at, int(rng.integers(2, 12)), float(rng.uniform(60, 255)), -1)
    picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(1.5, 6)))
    counts = rng.poisson(picture / (scale := float(rng.uniform(0.5, 12)))) * scale
    return _stretched(np.minimum(counts, max(float(np.quantile(counts, rng.uniform(0.97, 1))), 1)))


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


_DRAWN = (
    _noise,
    _pink,
    _gradient,
    _shapes,
    _checks,
    _text,
    _plot,
    _filled_outline,
    _radial,
    _cylinders,
    _vessels,
    _hot_spots,
)
_DERIVED = (_shuffled, _sheet, _piece, _blank)
