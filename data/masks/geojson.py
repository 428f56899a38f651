"""Masks <-> GeoJSON (RFC 7946) as QuPath has it, in pixels of the picture, one file for each picture."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import write_text
from tumorlens.data.masks.drawn import check_size, reading, ring_of
from tumorlens.data.masks.labeling import MaskLabel, parts_of
from tumorlens.data.masks.outlines import Outline, Ring, fill, outlines_of

_SIZE = ("imageHeight", "imageWidth")


def write_geojson(path: Path, values_hw: NDArray[np.uint8], labels: Sequence[MaskLabel]) -> None:
    """Write the mask of one slice: an annotation for each label, with holes as inner rings.

    Beside QuPath's fields, the collection has ``imagePath``, the picture ``<name>.png`` beside it, and its size.

    Args:
        path: Ends in ``.geojson``.
        values_hw: ``(rows, columns)``, with the values of `labels`.
        labels: The labels of the scan.
    """
    content = {
        "type": "FeatureCollection",
        "imagePath": path.with_suffix(".png").name,
        "imageHeight": values_hw.shape[0],
        "imageWidth": values_hw.shape[1],
        "features": [_feature(label, outlines_of(part)) for label, part in parts_of(values_hw, labels)],
    }
    write_text(path, json.dumps(content) + "\n")


def read_geojson(path: Path, content: Mapping[str, Any], shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask, 0 and 1, ``(rows, columns)``, of all polygons. Rings of one polygon inside each other are holes.

    Args:
        path: The file, for messages.
        content: What it holds.
        shape_hw: The size of the picture, which QuPath does not write.

    Raises:
        InputError: The file is not as QuPath writes it, or a shape has no area.
    """
    mask = np.zeros(shape_hw, np.uint8)
    with reading(path, "a GeoJSON file"):
        check_size((content.get(name, n) for name, n in zip(_SIZE, shape_hw, strict=True)), shape_hw)
        for feature in content["features"]:
            kind, polygons = feature["geometry"]["type"], feature["geometry"]["coordinates"]
            if kind not in ("Polygon", "MultiPolygon"):
                raise InputError(f"a shape is a {str(kind)[:20]}, which has no area; draw lesions as polygons")
            for rings in polygons if kind == "MultiPolygon" else [polygons]:
                mask |= fill([ring_of(ring, shape_hw) for ring in rings or [[]]], shape_hw)
    return mask


def _feature(label: MaskLabel, outlines: Sequence[Outline]) -> dict[str, Any]:
    polygons = [[_closed(ring) for ring in outline.rings] for outline in outlines]
    several = len(polygons) > 1
    return {
        "type": "Feature",
        "id": str(uuid.uuid4()),
        "geometry": {
            "type": "MultiPolygon" if several else "Polygon",
            "coordinates": polygons if several else polygons[0],
        },
        "properties": {
            "objectType": "annotation",
            "name": label.name,
            "classification": {"name": label.tumor.prose, "color": list(label.rgb)},
        },
    }


def _closed(ring: Ring) -> list[list[float]]:
    points: list[list[float]] = ring.tolist()
    return [*points, points[0]]
