"""Preparation of slices, and the way back, as MONAI transforms: the configuration of a bundle names them.

MONAI has no transform that finds the convex hull of a head, so a bundle needs tumorlens for these two steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.padding import without_padding
from tumorlens.data.preprocessing.preprocess import Placement, Preprocess
from tumorlens.data.scan import Scan
from tumorlens.segmentation.predict import Segmenter

_Data = Mapping[Hashable, Any]


class PrepareSlicesd(MapTransform, InvertibleTransform):
    """Pictures and volumes as MONAI loads them -> all slices as a network sees them, ``(1, size, size, n_slices)``.

    Takes ``(c, columns, rows)`` of a picture or ``(1, i, j, k)`` of a volume, with the affine to RAS mm in its meta
    data. Gives bytes 0 to 255 as float32. A slice of one value becomes 0 everywhere. `monai.transforms.Invertd` brings
    maps ``(c, size, size, n_slices)`` in 0..1 back to the loaded grid.
    """

    def __init__(self, keys: Any, size: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.preprocess = Preprocess(size)

    def __call__(self, data: _Data) -> dict[Hashable, Any]:
        """A copy of the items, the named ones prepared.

        Raises:
            InputError: As `data.preprocessing.preprocess.to_gray`, for a picture.
        """
        items = dict(data)
        for key in self.key_iterator(items):
            items[key] = self._prepared(items[key])
        return items

    def inverse(self, data: _Data) -> dict[Hashable, Any]:
        """A copy of the items, the named ones on the grid that was loaded."""
        items = dict(data)
        for key in self.key_iterator(items):
            items[key] = self._on_source(items[key])
        return items

    def _prepared(self, loaded: MetaTensor) -> MetaTensor:
        scan = without_padding(_scan_of(loaded))
        slices, placements = [], []
        for k in range(scan.n_slices):
            view = scan.slice(k)
            shown = not scan.volume or view.min() < view.max()
            prepared = self.preprocess(view, scan.pixel_aspect) if shown else None
            slices.append(np.zeros((self.preprocess.size,) * 2, np.uint8) if prepared is None else prepared.image)
            placements.append(None if prepared is None else prepared.placement)
        stack = torch.from_numpy(np.stack(slices, axis=-1)[None].astype(np.float32))
        images = MetaTensor(stack, meta=loaded.meta, applied_operations=loaded.applied_operations)
        self.push_transform(images, orig_size=loaded.shape[1:], extra_info={"placements": placements})
        return images

    def _on_source(self, maps: MetaTensor) -> MetaTensor:
        done = self.pop_transform(maps)
        shape, placements = done["orig_size"], done["extra_info"]["placements"]
        maps_cnhw = np.moveaxis(np.rint(maps.cpu().numpy() * 255).astype(np.uint8), -1, 1)
        empty = MetaTensor(torch.zeros(1, *shape), meta=maps.meta)
        scan = _scan_of(empty)
        whole = np.stack(
            [scan.mask_from_slices(self._slices(of_channel, placements, scan)) for of_channel in maps_cnhw]
        )
        on_source = whole if scan.volume else whole.transpose(0, 2, 1)
        return MetaTensor(torch.from_numpy(on_source / np.float32(255)), meta=maps.meta)

    def _slices(self, maps_nhw: NDArray[np.uint8], placements: list[Placement | None], scan: Scan) -> NDArray[np.uint8]:
        nothing = np.zeros(scan.slice(0).shape, np.uint8)
        return np.stack(
            [
                nothing if placement is None else self.preprocess.map_to_source(one, placement)
                for one, placement in zip(maps_nhw, placements, strict=True)
            ]
        )


class ChooseOutlined(MapTransform):
    """Lesion maps ``(c, size, size, n_slices)`` in 0..1 -> that of one outline, ``(1, ...)``, without smallest specks.

    The outline's own threshold is moved to the card's `mask_threshold`, as `segmentation.predict.Segmenter` does it.
    Where the channels are regions, a lesion is what lies in any of them.
    """

    def __init__(
        self,
        keys: Any,
        outline: str,
        outlines: list[str],
        operating_point: dict[str, Any],
        regions: list[dict[str, Any]] | None = None,
    ) -> None:
        """Raises:
        InputError: The segmenter has several outlines, and this is none of them.
        """
        super().__init__(keys)
        if outlines and outline not in outlines:
            raise InputError(f"outline {outline!r}: choose one of {', '.join(outlines)}")
        card: dict[str, Any] = {"outlines": outlines, "operating_point": operating_point}
        if regions:  # without their colors, which it does not need: MONAI takes # for a reference
            card["regions"] = [region | {"color": "#FFFFFF"} for region in regions]
        self.segmenter = Segmenter(_no_network, card)
        self.channel = self.segmenter.channel_of(outline)

    def __call__(self, data: _Data) -> dict[Hashable, Any]:
        """A copy of the items, with one map in place of several."""
        items = dict(data)
        for key in self.key_iterator(items):
            maps_cnhw = np.moveaxis(np.rint(items[key].cpu().numpy() * 255).astype(np.uint8), -1, 0)
            finished = self.segmenter.finish(maps_cnhw, [self.channel] * len(maps_cnhw))
            stack = torch.from_numpy(np.moveaxis(finished, 0, -1)[None] / np.float32(255))
            items[key] = MetaTensor(stack, meta=items[key].meta, applied_operations=items[key].applied_operations)
        return items


def _no_network(images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    raise NotImplementedError("the bundle holds the network")


def _scan_of(loaded: MetaTensor) -> Scan:
    """What MONAI has loaded as a `Scan`: it puts channels first, and the columns of a picture before its rows."""
    array = loaded.cpu().numpy()
    if array.ndim == 4:
        return Scan.from_array(array[0], affine=np.asarray(loaded.affine, np.float64))
    picture = array[:3].transpose(2, 1, 0)
    if (picture == np.rint(picture)).all() and picture.min() >= 0:  # as in the file; MONAI has made floats of them
        picture = picture.astype(np.uint8 if picture.max() <= 255 else np.uint16)
    gray = picture.shape[2] < 3 or (picture == picture[..., :1]).all()
    return Scan.from_array(picture[..., 0] if gray else picture)
