"""Which of the images that lie at one place belong to which volume of a series: echoes, time points, directions ...

Values of the header come first: one counts only if the images of every place have the same ones. Where no value parts
them, the order of times or numbers does, if it shows a pattern in which scanners number volumes. Else nothing tells.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import lgamma, log
from typing import Any, Generic, TypeVar

import numpy as np

from tumorlens.data.dicom.headers import number
from tumorlens.data.dicom.sequence import (
    TIMES,
    Described,
    Texts,
    Values,
    acquisition_values,
    as_clock,
    as_numbers,
    as_ranks,
    moments,
    other_values,
    read,
    uid_numbers,
)
from tumorlens.data.errors import InputError

_FEW = 0.25  # of the places: as many may hold more images than the others, as where a scanner repeats a slice
_SHARED = 0.5  # of its places, which a volume has in common with the largest one
_CHANCE = 1e-3  # that numbers in random order show a pattern
AT_ONE_PLACE = "at the same place"
BETWEEN = "whose slices lie between each other"
_FEWEST = 3  # places: any numbers show a pattern at two


T = TypeVar("T", bound=Described)
_Listed = Callable[[Sequence[Described]], Iterator[tuple[str, Values, Texts]]]


@dataclass(frozen=True)
class Volume(Generic[T]):
    """One of the volumes that a series holds at the same place.

    Attributes:
        name: What tells it from the others, such as ``"echo time 90"``.
        places: The images at each place that it has. A few places may hold several images that nothing tells apart; the
            one with the lowest number is the first.
    """

    name: str
    places: list[list[T]]


def split_volumes(places: list[list[T]], between: bool = False) -> tuple[list[Volume[T]], str]:
    """The volumes of a series.

    Args:
        places: The images at each place along the normal, in any order.
        between: Whether a place is an interval that holds a slice of each volume. The order along the normal then does
            not separate volumes, because the slices of a single volume have the same order.

    Returns:
        The volumes, the first echo, the earliest time ... first; and what tells them apart, in words, where it is not a
        value of the header.

    Raises:
        InputError: Many places hold several images, and nothing tells which of them belong together.
    """
    places = [sorted(group, key=_number_and_uid) for group in places]
    if all(len(group) == 1 for group in places):
        return [Volume("", places)], ""
    orders: list[str] = []
    volumes = _parted(Volume("", places), orders, between)
    if volumes is None or (between and len(volumes) == 1):
        several, n_images = max(len(group) for group in places), sum(len(group) for group in places)
        raise InputError(
            f"the series holds {several} volumes {BETWEEN if between else AT_ONE_PLACE} ({n_images} images at "
            f"{len(places)} places), and nothing tells which images belong together: all values of their headers were "
            "compared, and the order of their times, instance numbers and SOP Instance UIDs; put the files of each "
            "volume into a folder of its own and run these folders one by one"
        )
    how = " and ".join(dict.fromkeys(orders))
    return volumes, f"their order by {how} tells the volumes apart, as no value of the header does" if how else ""


def is_repeat(volume: Volume[Any], largest: Volume[Any]) -> bool:
    """Whether a volume is only a few slices of the largest one that were acquired again."""
    return len(volume.places) <= _FEW * len(largest.places)


def _parted(images: Volume[T], orders: list[str], between: bool) -> list[Volume[T]] | None:
    """The volumes that some images make; none if nothing parts them. What they are sorted by is added to `orders`."""
    few = sum(len(group) > 1 for group in images.places) <= _FEW * len(images.places)
    if images.name and few:
        return [images]
    for part in (
        partial(_by_values, acquisition_values),
        partial(_by_order, _counted, orders, between),
        partial(_by_values, other_values),
        partial(_by_order, _by_uid, orders, between),
    ):
        groups: list[Volume[T]] = part(images.places)
        if len(groups) > 1:
            parted = [
                _parted(replace(group, name=", ".join(filter(None, (images.name, group.name)))), orders, between)
                for group in groups
            ]
            return None if None in parted else [volume for volumes in parted for volume in volumes or ()]
        if few:
            return [images]
    return None


# By values


def _by_values(listed: _Listed, places: list[list[T]]) -> list[Volume[T]]:
    """The images with the same values; one group where no value parts them."""
    first: _Labels[T] | None = None
    for most in sorted({len(group) for group in places} - {1}, reverse=True):
        labels = _Labels(places, most)
        if labels.part(listed):
            return labels.groups()
        first = first or labels
    return first.groups() if first is not None else []


class _Labels(Generic[T]):
    """The values that tell each image from the others at its place.

    Args:
        places: The images at each place.
        most: How many volumes there are. The few places that hold more images need not be parted.
    """

    def __init__(self, places: list[list[T]], most: int) -> None:
        self.most = most
        self.images = [image for group in places for image in group]
        ends = np.cumsum([len(group) for group in places]).tolist()
        self.at_place = [range(end - len(group), end) for group, end in zip(places, ends, strict=True)]
        self.regular = [at for at in self.at_place if len(at) <= most]
        self.full = next(at for at in self.at_place if len(at) == most)
        self.labels: list[tuple[Hashable, ...]] = [()] * len(self.images)
        self.used: list[tuple[str, dict[Any, str]]] = []  # name of each value, and the texts of its values

    def part(self, listed: _Listed) -> bool:
        """Add values of a list until they part the images at every place; returns whether they do."""
        full = [self.images[i] for i in self.full]
        for name, values_of, texts_of in listed(full):
            if len(set(values_of(full))) > 1 and self._add(values_of(self.images)):
                values = [label[-1] for label in self.labels]
                self.used.append((name, _distinct_texts(values, texts_of)))
                if all(len({self.labels[i] for i in at}) == len(at) for at in self.regular):
                    return True
        return False

    def _add(self, values: list[Any]) -> bool:
        expected = Counter(values[i] for i in self.full)
        if not set(values) <= set(expected):
            return False
        if not all(Counter(values[i] for i in at) <= expected for at in self.regular):
            return False
        finer = [(*label, v) for label, v in zip(self.labels, values, strict=True)]
        if not len(set(self.labels)) < len(set(finer)) <= self.most or not self._share_places(finer):
            return False
        self.labels = finer
        return True

    def _share_places(self, labels: list[tuple[Hashable, ...]]) -> bool:
        """Whether the volumes lie at the same places: what parts a stack into halves does not part volumes."""
        covered: dict[Hashable, set[int]] = defaultdict(set)
        for place, at in enumerate(self.at_place):
            for i in at:
                covered[labels[i]].add(place)
        largest = max(covered.values(), key=len)
        return all(len(own & largest) >= _SHARED * len(own) for own in covered.values())

    def groups(self) -> list[Volume[T]]:
        """Name and places of the images of each label, in the order of the values."""
        groups = []
        for label in sorted(set(self.labels), key=lambda label: [(v is not None, v) for v in label]):
            names = (
                f"{name} {texts[v]}" if v is not None else f"no {name}"
                for (name, texts), v in zip(self.used, label, strict=True)
            )
            members = ([self.images[i] for i in at if self.labels[i] == label] for at in self.at_place)
            groups.append(Volume(", ".join(names), [group for group in members if group]))
        return groups


def _distinct_texts(values: list[Any], texts_of: Texts) -> dict[Any, str]:
    ordered = sorted({v for v in values if v is not None})
    texts = texts_of(ordered)
    return dict(zip(ordered, texts if len(set(texts)) == len(texts) else as_ranks(ordered), strict=True))


# By order


@dataclass(frozen=True)
class _Order:
    """Something that images can be sorted by.

    Attributes:
        name: As in "by instance number".
        values_of: Gives the values.
        texts_of: Shows them; none if they mean nothing to people.
        unique: Whether they count only if no two images have the same.
        slack: How much steps between volumes may differ, as a share of the smallest.
        counts: Whether scanners count up with them. Else a pattern must be so clear that it is hardly due to chance.
    """

    name: str
    values_of: Values
    texts_of: Texts | None
    unique: bool = False
    slack: float = 0.0
    counts: bool = True


def _by_order(
    listed: Callable[[], Iterator[_Order]], names: list[str], between: bool, places: list[list[T]]
) -> list[Volume[T]]:
    """The volumes in the first order of a list that shows a pattern; its name is added to `names`."""
    images = [image for group in places for image in group]
    place_of = [place for place, group in enumerate(places) for _ in group]
    for order in listed():
        values = order.values_of(images)
        if None in values or (order.unique and len(set(values)) < len(values)):
            continue
        runs = _volume_of_each(values, place_of, order, between)
        if runs is None:
            continue
        members: list[list[list[T]]] = [[[] for _ in places] for _ in range(max(runs) + 1)]
        for image, run, place in zip(images, runs, place_of, strict=True):
            members[run][place].append(image)
        names.append(order.name)
        named = zip(_names_by_order(order, values, runs), members, strict=True)
        return [Volume(name, [group for group in groups if group]) for name, groups in named]
    return []


def _counted() -> Iterator[_Order]:
    for name, element, day in (*TIMES, ("creation time", "InstanceCreationTime", "InstanceCreationDate")):
        yield _Order(name, partial(moments, element, day), as_clock, slack=0.1)
    yield _Order("trigger time", read(number, "TriggerTime"), as_numbers, slack=0.1)
    yield _Order("instance number", read(number, "InstanceNumber"), as_numbers, unique=True)
    yield _Order("frame number", lambda images: [image.place[1] + 1 for image in images], as_numbers, unique=True)


def _by_uid() -> Iterator[_Order]:
    yield _Order("SOP Instance UID", read(uid_numbers, "SOPInstanceUID"), None, unique=True, counts=False)


def _number_and_uid(image: Described) -> tuple[Any, ...]:
    ((instance,), (uid,)) = read(number, "InstanceNumber")([image]), read(uid_numbers, "SOPInstanceUID")([image])
    return instance is None, instance or 0, uid or (), image.place


def _names_by_order(order: _Order, values: list[Any], runs: list[int]) -> list[str]:
    """``instance number 1 to 24`` where the volumes follow each other, else ``1 of 2 by instance number``."""
    n = max(runs) + 1
    own = [[value for value, run in zip(values, runs, strict=True) if run == k] for k in range(n)]
    if order.texts_of is None or any(max(a) >= min(b) for a, b in pairwise(own)):
        return [f"{k} of {n} by {order.name}" for k in range(1, n + 1)]
    return [f"{order.name} {' to '.join(order.texts_of(sorted({min(v), max(v)})))}" for v in own]


def _volume_of_each(values: list[Any], place_of: list[int], order: _Order, between: bool) -> list[int] | None:
    """The volume of each image, from 0; none if the values show no pattern.

    The patterns: one volume after the other; place after place, with all its images in a row; or at every place the
    same step from a volume to the next.
    """
    if not order.counts:
        ranks = {value: rank for rank, value in enumerate(sorted(set(values)))}
        values = [ranks[value] for value in values]
    at_place: dict[int, list[Any]] = defaultdict(list)
    for value, place in zip(values, place_of, strict=True):
        at_place[place].append(value)
    groups = [sorted(group) for group in at_place.values()]
    most = max(len(group) for group in groups)
    n_full = sum(len(group) == most for group in groups)
    in_order = sorted(range(len(values)), key=lambda i: (values[i], place_of[i]))
    sequence = [place_of[i] for i in in_order]
    if n_full >= _FEWEST if order.counts else _is_clear(n_full, most, by_place=False):
        starts = _starts_of_volumes(sequence, [values[i] for i in in_order], most)
        if starts is not None:
            runs = np.searchsorted(starts, np.arange(len(sequence)), side="right").tolist()
            return [run for _, run in sorted(zip(in_order, runs, strict=True))]
    if between or n_full < len(groups) or any(len(set(group)) < most for group in groups):
        return None
    in_a_row = all(len(set(sequence[k : k + most])) == 1 for k in range(0, len(sequence), most))
    enough = n_full >= _FEWEST if order.counts else _is_clear(n_full, most, by_place=True)
    if len(groups) == 1 or (in_a_row and enough) or (order.counts and _is_same_step(groups, order.slack)):
        first = dict(zip(at_place, groups, strict=True))
        return [first[place].index(value) for value, place in zip(values, place_of, strict=True)]
    return None


def _starts_of_volumes(places: list[int], values: list[float], most: int) -> list[int] | None:
    """Where each volume but the first begins in a sequence of images; none if the volumes do not follow each other.

    No volume has a place twice. Where missing places leave a start open, it is after the one longest pause.
    """
    latest = _starts(places)
    earliest = sorted(len(places) - start for start in _starts(places[::-1]))
    if len(latest) != most - 1 or len(earliest) != most - 1:
        return None
    starts = []
    for low, high in zip(earliest, latest, strict=True):
        pauses = sorted((values[k] - values[k - 1], k) for k in range(low, high + 1))
        if not pauses or pauses[-1][0] <= 0 or (len(pauses) > 1 and pauses[-1][0] < 2 * pauses[-2][0]):
            return None
        starts.append(pauses[-1][1])
    runs = [places[a:b] for a, b in zip([0, *starts], [*starts, len(places)], strict=True)]
    return starts if all(len(set(run)) == len(run) for run in runs) else None


def _starts(places: list[int]) -> list[int]:
    """Where runs without a place twice begin, each as long as possible; without the first."""
    starts: list[int] = []
    seen: set[int] = set()
    for k, place in enumerate(places):
        if place in seen:
            starts.append(k)
            seen.clear()
        seen.add(place)
    return starts


def _is_same_step(groups: list[list[float]], slack: float) -> bool:
    steps = np.diff(np.array(groups, np.float64), axis=1)
    return len(groups) > 1 and bool((np.ptp(steps, axis=0) <= slack * steps.min()).all())


def _is_clear(n_places: int, n_volumes: int, by_place: bool) -> bool:
    """Whether numbers in random order hardly ever put one volume after the other (or one place)."""
    blocks = lgamma(n_places + 1) * (1 if by_place else n_volumes)
    return n_places * lgamma(n_volumes + 1) + blocks - lgamma(n_places * n_volumes + 1) < log(_CHANCE)
