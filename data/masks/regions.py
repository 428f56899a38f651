"""`Regions`: the parts of a lesion that a segmenter tells apart, such as whole tumor, core and enhancing tumor.

As in nnU-Net's region-based training (F. Isensee et al., BraTS 2020), a region is a set of values of the masks, and
regions may lie in each other: those of BraTS are ``whole=1,2,4``, ``core=1,4`` and ``enhancing=4``. The network has a
channel for each. Masks with a value for each region are painted in the order of the regions, the last on top, so that
the values that come out are those that went in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import COLOR

# A bit each. The palette of M. Okabe and K. Ito (Color Universal Design, 2008), and white.
_COLORS = ("#F0E442", "#56B4E9", "#D55E00", "#CC79A7", "#009E73", "#E69F00", "#0072B2", "#FFFFFF")
_MOST_VALUE = 255
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class Region:
    """A part of a lesion.

    Attributes:
        name: Lower-case letters, digits and underscores, as in columns of tables.
        values: Of the masks, each between 1 and 255.
        color: Hexadecimal RGB.
    """

    name: str
    values: tuple[int, ...]
    color: str


@dataclass(frozen=True)
class Regions:
    """The regions of a segmenter, one for each channel of its network; none where it outlines whole lesions only.

    Attributes:
        rows: In the order in which they are painted.
    """

    rows: tuple[Region, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(row.name for row in self.rows)

    @cached_property
    def painted(self) -> tuple[int, ...]:
        """The value that each region has in painted masks: the smallest of its own that no later region has."""
        return tuple(
            min(set(row.values).difference(*(later.values for later in self.rows[k + 1 :])))
            for k, row in enumerate(self.rows)
        )

    def bits(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """The regions of each pixel of a mask, of any shape: bit k is set in region k. Other values are background.

        Args:
            values: Whole numbers, see `Region.values`.
        """
        of_value = np.zeros(_MOST_VALUE + 1, np.uint8)
        for k, row in enumerate(self.rows):
            of_value[list(row.values)] |= 1 << k
        known = (values >= 0) & (values <= _MOST_VALUE)
        return of_value[np.where(known, values, 0).astype(np.uint8)]

    def bits_of(self, label: str) -> int:
        """The regions of a segment's label: that of its name, or those of the value that it is; 0 for another label.

        What follows the name in parentheses does not count, as in ``core (predicted)``.
        """
        name = label.split("(")[0].strip().lower()
        if name in self.names:
            return 1 << self.names.index(name)
        return int(self.bits(np.array(int(name)))) if name.isascii() and name.isdigit() and len(name) < 10 else 0

    def planes(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``(c, ...)`` 0 and 1: a mask of each region from `bits`."""
        return np.stack([(bits >> k) & 1 for k in range(len(self))])

    @staticmethod
    def pack(planes: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[np.uint8]:
        """The bits of masks of each region, 0 and 1: the inverse of `planes`."""
        bits = np.zeros(planes[0].shape, np.uint8)
        for k, plane in enumerate(planes):
            bits |= plane.astype(np.uint8) << np.uint8(k)
        return bits

    def paint(self, planes: NDArray[Any]) -> NDArray[np.uint8]:
        """The mask with a value for each region from ``(c, ...)`` masks, the last region on top."""
        labels = np.zeros(planes.shape[1:], np.uint8)
        for plane, value in zip(planes, self.painted, strict=True):
            labels[plane != 0] = value
        return labels

    def label(self, maps: NDArray[np.uint8], threshold: int) -> NDArray[np.uint8]:
        """The painted mask of lesion pixels, ``(...)``, from maps ``(c, ...)`` of each region.

        A pixel that no map takes for its region is in the likeliest one, so that every pixel of a lesion has a region.

        Args:
            maps: Of pixels that lie in a lesion; 255 is certain.
            threshold: The lowest byte of a region's pixel.
        """
        inside = maps >= threshold
        lost, likeliest = ~inside.any(axis=0), maps.argmax(axis=0)
        for k, plane in enumerate(inside):
            plane |= lost & (likeliest == k)
        return self.paint(inside)

    def to_card(self) -> dict[str, Any]:
        """The entry ``regions`` of a card or of ``result.json``; nothing where there are none."""
        rows = zip(self.rows, self.painted, strict=True)
        listed = [{"name": r.name, "values": list(r.values), "painted": v, "color": r.color} for r, v in rows]
        return {"regions": listed} if listed else {}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Regions:
        """The regions of a card or of ``result.json``.

        Raises:
            InputError: The entry is not one that `to_card` makes.
        """
        try:
            rows = [
                (str(r["name"]), tuple(int(v) for v in r["values"]), str(r["color"])) for r in card.get("regions", ())
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("the regions on the card are not those that tumorlens writes") from None
        return cls._of([Region(*row) for row in rows], "the card")

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Regions:
        """The regions of a command line, such as ``("whole=1,2,4", "core=1,4")``.

        Raises:
            InputError: A text is not ``NAME=VALUE,VALUE...``; names occur twice; there are too many regions; or later
                regions cover one wholly or overlap with it, so that a painted mask could not show both.
        """
        rows = []
        for k, text in enumerate(texts):
            name, _, values = text.partition("=")
            try:
                numbers = tuple(sorted({int(value) for value in values.split(",")}))
            except ValueError:
                raise InputError(f"--region {text}: give it as NAME=VALUES, such as core=1,4") from None
            rows.append(Region(name.strip(), numbers, _COLORS[k % len(_COLORS)]))
        return cls._of(rows, "--region")

    @classmethod
    def _of(cls, rows: Sequence[Region], where: str) -> Regions:
        names = [row.name for row in rows]
        if len(rows) > len(_COLORS):
            raise InputError(f"{where}: {len(rows)} regions are more than {len(_COLORS)}")
        for k, row in enumerate(rows):
            if not _NAME.fullmatch(row.name):
                raise InputError(f"{where}: {row.name!r} is no valid name; it takes lower-case letters, digits and _")
            if names.count(row.name) > 1:
                raise InputError(f"{where}: there are two regions {row.name}")
            if not row.values or not all(1 <= value <= _MOST_VALUE for value in row.values):
                raise InputError(f"{where}: the values of {row.name} are not between 1 and {_MOST_VALUE}")
            if not COLOR.fullmatch(row.color):
                raise InputError(f"{where}: the color {row.color!r} of {row.name} is not like '#56B4E9'")
            covered = {value for later in rows[k + 1 :] for value in later.values}
            if set(row.values) <= covered:
                raise InputError(
                    f"{where}: the regions after {row.name} have all of its values; name the largest region first"
                )
            for later in rows[k + 1 :]:
                common = set(row.values) & set(later.values)
                if common and not common == set(later.values):  # one value of a painted mask could not stand for both
                    raise InputError(
                        f"{where}: {row.name} and {later.name} share values, and {later.name} does not lie in "
                        f"{row.name}; regions lie in each other or apart"
                    )
        return cls(tuple(rows))


NO_REGIONS = Regions()
