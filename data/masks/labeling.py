"""The labels of an exported mask: which value is what, by which name, and in which color."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import SHIPPED_CLASSES, TUMOR, ClassList, TumorClass
from tumorlens.data.masks.regions import Regions

_SHADES = (0.0, 0.45, 0.7, 0.22, 0.58)  # shares of white in the colors of a scan's lesions, so that neighbors differ
_MOST = 255


@dataclass(frozen=True)
class MaskLabel:
    """One value of an exported mask.

    Attributes:
        value: The value of its pixels.
        name: Such as ``"Lesion 1 (glioma)"`` or ``"glioma"``.
        tumor: The class.
        rgb: Red, green and blue, 0 to 255.
        lesion: The lesion's number in ``result.json``, or None for all lesions of a class.
        category: The number of the class, as in masks with a value for each class.
        region: The name of the region, or empty.
    """

    value: int
    name: str
    tumor: TumorClass
    rgb: tuple[int, int, int]
    lesion: int | None = None
    category: int = 0
    region: str = ""

    @property
    def color(self) -> str:
        """The color as hexadecimal RGB, such as ``"#D55E00"``."""
        return "#{:02X}{:02X}{:02X}".format(*self.rgb)

    @property
    def concept(self) -> tuple[str, str, str]:
        """The SNOMED CT concept of the class: value, scheme, meaning."""
        return self.tumor.concept or SHIPPED_CLASSES.row(TUMOR).concept or ("", "", "")

    def as_dict(self) -> dict[str, Any]:
        """The label for ``labels.json``."""
        code, scheme, meaning = self.concept
        return {
            "name": self.name,
            "class": self.tumor.name,
            "lesion": self.lesion,
            **({"region": self.region} if self.region else {}),
            "color": self.color,
            "concept": {"value": code, "scheme": scheme, "meaning": meaning},
        }


def label_mask(
    numbers: NDArray[Any], label: str, by: str = "lesion", classes: ClassList = SHIPPED_CLASSES
) -> tuple[NDArray[np.uint8], list[MaskLabel]]:
    """A mask with a value for each label, and the labels.

    Args:
        numbers: The number of each voxel's lesion, 0 outside.
        label: The scan's label. A lesion that a reviewer has drawn in a scan without tumor has no known type.
        by: ``"lesion"``: the values are the numbers of the lesions. ``"class"``: every lesion has the number of its
            class, see `data.labels.ClassList.index`.
        classes: The classes of the classifier.

    Raises:
        InputError: There are more lesions than values.
    """
    tumor = classes.row(label if label in classes.tumors else TUMOR)
    category = class_value(tumor, classes)
    count = int(numbers.max(initial=0))
    if by == "class":
        labels = [MaskLabel(category, tumor.prose, tumor, rgb_of(tumor.color), None, category)] if count else []
        return (numbers != 0).astype(np.uint8) * np.uint8(category), labels
    if count > _MOST:
        raise InputError(f"{count} lesions are more than the {_MOST} values of a mask; give --labels class")
    return numbers.astype(np.uint8), [
        MaskLabel(n, f"Lesion {n} ({tumor.prose})", tumor, _shade(tumor.color, n), n, category)
        for n in range(1, count + 1)
    ]


def label_regions(
    mask: NDArray[np.uint8],
    values: NDArray[np.uint8],
    regions: Regions,
    label: str,
    classes: ClassList = SHIPPED_CLASSES,
) -> tuple[NDArray[np.uint8], list[MaskLabel]]:
    """A mask with the value of each voxel's region, and the labels.

    What a reviewer has cut away has no region. What a reviewer has added is in none that is known, and has a value of
    its own.

    Args:
        mask: Non-zero is lesion.
        values: The model's regions, as `Regions.paint` makes them, on the same grid.
        regions: The regions.
        label: The scan's label.
        classes: The classes of the classifier.
    """
    tumor = classes.row(label if label in classes.tumors else TUMOR)
    category = class_value(tumor, classes)
    labels = [
        MaskLabel(value, f"{row.name} ({tumor.prose})", tumor, rgb_of(row.color), None, category, row.name)
        for row, value in zip(regions.rows, regions.painted, strict=True)
    ]
    painted, added = np.where(mask != 0, values, 0).astype(np.uint8), (mask != 0) & (values == 0)
    if added.any():
        free = next(n for n in range(1, _MOST + 1) if n not in regions.painted)
        painted[added] = free
        labels.append(MaskLabel(free, f"no region ({tumor.prose})", tumor, rgb_of(tumor.color), None, category))
    return painted, [one for one in labels if (painted == one.value).any()]


def class_value(tumor: TumorClass, classes: ClassList = SHIPPED_CLASSES) -> int:
    """The value of a class in masks with a value for each class."""
    return classes.known.index(tumor.name)


def rgb_of(color: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a hexadecimal color."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def parts_of(values_hw: NDArray[np.uint8], labels: Sequence[MaskLabel]) -> list[tuple[MaskLabel, NDArray[np.bool_]]]:
    """The labels that a slice shows, each with its pixels."""
    present = set(np.unique(values_hw).tolist())
    return [(label, values_hw == label.value) for label in labels if label.value in present]


def _shade(color: str, number: int) -> tuple[int, int, int]:
    white = _SHADES[(number - 1) % len(_SHADES)]
    red, green, blue = (round(part + white * (255 - part)) for part in rgb_of(color))
    return red, green, blue
