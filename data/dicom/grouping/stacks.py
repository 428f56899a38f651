"""Volumes of a series whose slices lie between each other, as where a second acquisition fills the first one's gaps.

Sorted by position, they look like one volume of half the slice distance. The header's distance, uneven gaps, settings
that alternate and slices that overlap show them; `data.dicom.grouping.volumes` tells which slice belongs to which.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.grouping.volumes import AT_ONE_PLACE, BETWEEN, Volume, split_volumes
from tumorlens.data.dicom.headers import number, text
from tumorlens.data.dicom.sequence import PARAMETERS, TYPES, Described, read
from tumorlens.data.errors import InputError

_CLOSE = 0.75  # of the distance that the header gives; images that lie closer may be those of two volumes
_THICK = 1.5  # slice distances; no 2-D slices overlap so much
_UNEVEN = 0.1  # of the slice distance, by which two gaps must differ to be those of two stacks
_SAME_PHASE = 0.04  # of the slice distance, by which two stacks must be moved against each other
_ON_GRID = 0.2  # of the slice distance, within which the slices of one stack lie on their grid
_FULL = 0.5  # of the slices of all stacks that must be there
_FEWEST = 3  # slices of a stack; of another setting, fewer may be repeats
_SETTINGS = (*PARAMETERS, *TYPES, ("contrast agent", ("ContrastBolusAgent",)))
_MIXED = "two volumes may be mixed"
_WARNED = ("echo time", "flip angle", "inversion time")


class Slice(Described, Protocol):
    """Adds what a header says of distances, in mm or none."""

    @property
    def thickness(self) -> float | None: ...
    @property
    def between(self) -> float | None: ...


T = TypeVar("T", bound=Slice)


def volumes_of(places: list[list[T]]) -> tuple[list[Volume[T]], str, list[str]]:
    """The volumes of a series; how they lie, in words; and what tells them apart where no value of the header does.

    Args:
        places: The images at each place, ascending along the normal.

    Raises:
        InputError: Nothing tells which of the images belong together.
    """
    at_one_place, how = split_volumes(places)
    apart = apart_by_rounding(np.array([group[0].position for group in places]))
    parts = [_split(volume, apart) for volume in at_one_place]
    volumes = [volume for stacks, _ in parts for volume in stacks]
    lie = BETWEEN if len(volumes) > len(at_one_place) else AT_ONE_PLACE
    return volumes, lie, list(dict.fromkeys(filter(None, (how, *(stacks_how for _, stacks_how in parts)))))


def _split(volume: Volume[T], rounding: float) -> tuple[list[Volume[T]], str]:
    """The volumes in one that may be several, whose slices lie between each other.

    Args:
        volume: The images at each place, ascending along the normal.
        rounding: How much rounding may put two positions off, mm.

    Returns:
        As `data.dicom.grouping.volumes.split_volumes`; the volume itself if it is one.

    Raises:
        InputError: They are several, and nothing tells which of the images belong together.
    """
    planes = [group[0] for group in volume.places]
    if len(planes) < 2 * _FEWEST:
        return [volume], ""
    depth = _depth(planes)
    for distance, is_certain in _distances(planes, depth, rounding):
        grid = _grid(depth, distance)
        if grid is None:
            continue
        slots, stacks = grid
        places: list[list[T]] = [[] for _ in range(max(slots) + 1)]
        for slot, group in zip(slots, volume.places, strict=True):
            places[slot] += group
        try:
            volumes, how = split_volumes([group for group in places if group], between=True)
        except InputError:
            if is_certain:
                raise
            continue
        stack_of = {image.place: s for s, group in zip(stacks, volume.places, strict=True) for image in group}
        if all(len({stack_of[i.place] for group in v.places for i in group}) == 1 for v in volumes):
            return [
                replace(v, name=", ".join(filter(None, (volume.name, v.name))), places=_by_depth(v.places))
                for v in volumes
            ], how
    for own in _by_setting(planes, depth):
        if all(map(_is_even, own.values())) and not _is_even(depth):
            distances = " and ".join(f"{_usual(np.diff(d)):.4g}" for d in own.values())
            raise InputError(
                f"the series holds {len(own)} volumes {BETWEEN}, of other settings and slices {distances} mm apart; "
                "put the files of each volume into a folder of its own and run these folders one by one"
            )
    return [volume], ""


def _distances(planes: Sequence[T], depth: NDArray[np.float64], rounding: float) -> Iterator[tuple[float, bool]]:
    """Slice distances that the stacks may have, and whether that is certain if the images lie so."""
    gaps = np.diff(depth)
    usual, mean = _usual(gaps), float(gaps.mean())
    first = planes[0]
    if first.between and usual < _CLOSE * first.between:
        yield first.between, _dimensions(first) != "3D"
    pairs = gaps[:-1] + gaps[1:]
    is_as_stated = abs((first.between or first.thickness or 0.0) - mean) <= _UNEVEN * mean  # rounded to whole mm
    if not is_as_stated and np.ptp(pairs) <= _UNEVEN * mean and np.ptp(gaps) > max(2 * _UNEVEN * mean, 2 * rounding):
        yield float(pairs.mean()), True
    for own in [] if is_as_stated else _by_setting(planes, depth):  # such as a TR that differs from package to package
        yield max(_usual(np.diff(d)) for d in own.values()), True
    if _overlap(first, usual) and _dimensions(first) != "3D":
        for gap in (usual, mean):
            yield float(np.ceil((first.thickness or 0.0) / gap - _UNEVEN)) * gap, False


def _by_setting(planes: Sequence[T], depth: NDArray[np.float64]) -> Iterator[dict[str, NDArray[np.float64]]]:
    """For each setting that parts the images into stacks which reach into each other: its values and their depths."""
    for _, elements in _SETTINGS:
        values = np.array([value or "" for value in read(text, *elements)(planes)])
        own = {value: depth[values == value] for value in sorted(set(values.tolist()))}
        if len(own) < 2 or min(map(len, own.values())) < _FEWEST:
            continue
        if max(d[0] for d in own.values()) < min(d[-1] for d in own.values()):
            yield own


def _is_even(depth: NDArray[np.float64]) -> bool:
    gaps = np.diff(depth)
    return bool(np.ptp(gaps) <= _ON_GRID * gaps.min())


def _grid(depth: NDArray[np.float64], distance: float) -> tuple[list[int], list[int]] | None:
    """Slot and stack of each image if the images make several stacks of a slice distance; else none.

    A slot is as long as the distance, and holds a slice of each stack.
    """
    phase = depth % distance
    ordered = np.sort(phase)
    ahead = np.diff(ordered, append=ordered[0] + distance)
    n_stacks = int((ahead > _SAME_PHASE * distance).sum())
    if n_stacks < 2:
        return None
    widest = int(ahead.argmax())
    begin = ordered[widest] + ahead[widest] / 2
    slots = np.floor((depth - begin) / distance).astype(int)
    slots -= slots.min()
    within = (depth - begin) % distance
    order = np.argsort(within, kind="stable")
    stacks = np.empty(len(depth), int)
    stacks[order] = np.concatenate([[0], np.cumsum(np.diff(within[order]) > _SAME_PHASE * distance)])
    widths = [np.ptp(within[stacks == stack]) for stack in range(n_stacks)]
    if max(widths) > _ON_GRID * distance or len(depth) < _FULL * n_stacks * (slots.max() + 1):
        return None
    if min(Counter(stacks.tolist()).values()) < _FEWEST:
        return None
    return slots.tolist(), stacks.tolist()


def doubts_of(planes: Sequence[Slice]) -> list[str]:
    """Warnings of what speaks for several volumes in the images of one, which do not lie as those of several."""
    if len(planes) < 2:
        return []
    warnings = []
    usual, first = _usual(np.diff(_depth(planes))), planes[0]
    if first.between and usual < _CLOSE * first.between:
        warnings.append(f"the images are {usual:.4g} mm apart, the header says {first.between:.4g}: {_MIXED}")
    elif _overlap(first, usual) and _dimensions(first) == "2D":
        warnings.append(f"the images are {usual:.4g} mm apart and {first.thickness:.4g} mm thick: {_MIXED}")
    for name, elements in PARAMETERS:
        values = Counter(f"{value:g}" for value in read(number, *elements)(planes) if value is not None)
        if name in _WARNED and len(values) > 1 and values.most_common(2)[1][1] >= _FEWEST:
            listed = " and ".join(value for value, _ in values.most_common(3))
            warnings.append(f"the slices differ in {name} ({listed}): they may be those of several volumes")
    return warnings


def _overlap(image: Slice, usual: float) -> bool:
    """Whether slices overlap by more than 2-D ones do, and the header does not say so."""
    return not image.between and image.thickness is not None and image.thickness > _THICK * usual


def _depth(planes: Sequence[Slice]) -> NDArray[np.float64]:
    return np.array([plane.normal @ plane.position for plane in planes if plane.position is not None])


def _usual(gaps: NDArray[np.float64]) -> float:
    return float(np.median(gaps[gaps <= 1.5 * gaps.min()]))


def _dimensions(image: Described) -> str:
    return str(read(text, "MRAcquisitionType")([image])[0] or "").upper()


def _by_depth(places: list[list[T]]) -> list[list[T]]:
    """The images of a stack by their own places, which repeated ones share."""
    at: dict[float, list[T]] = defaultdict(list)
    for group in places:
        for image in group:
            assert image.position is not None  # callers check it
            at[round(float(image.normal @ image.position), 6)].append(image)
    return [at[d] for d in sorted(at)]


def apart_by_rounding(positions: NDArray[np.float64]) -> float:
    """How much closer or farther rounding may put two positions, mm."""
    return float(np.sqrt(3)) * 2 * rounding_of(positions)


def rounding_of(values: NDArray[np.float64], whole: int = 1) -> float:
    """How far numbers that are rounded to two decimals or fewer may lie from the true ones; 0 for more decimals.

    Args:
        values: The numbers.
        whole: The fewest decimals that show rounding: numbers with fewer are exact, such as the cosines 0 and 1.
    """
    decimals = next((n for n in range(3) if np.abs(values - values.round(n)).max() < 1e-5), 3)
    return 0.5 * 10.0**-decimals if whole <= decimals < 3 else 0.0
