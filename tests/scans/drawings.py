"""Files of boxes and outlines, as YOLO and COCO have them."""

from __future__ import annotations

import json

import numpy as np

from tumorlens.data.masks.boxes import boxes_of
from tumorlens.data.masks.outlines import outlines_of


def yolo_boxes(mask_hw, number=0):
    """The text of a file of YOLO with the boxes around the parts of a mask."""
    size = np.array(mask_hw.shape[::-1])
    lines = [
        f"{number} {' '.join(f'{v:.6f}' for v in (*((box[:2] + box[2:]) / 2 / size), *((box[2:] - box[:2]) / size)))}"
        for box in boxes_of(mask_hw)
    ]
    return "".join(f"{line}\n" for line in lines)


def yolo_outlines(mask_hw, number=0):
    """The same with its outlines."""
    size = np.array(mask_hw.shape[::-1])
    rings = [outline.exterior / size for outline in outlines_of(mask_hw)]
    return "".join(f"{number} {' '.join(f'{v:.6f}' for v in ring.ravel())}\n" for ring in rings)


def coco(path, masks, categories=(), outlines=False):
    """Write a COCO file with the boxes around masks, or their outlines.

    Args:
        path: The file.
        masks: File name -> mask.
        categories: The name of each image's category.
        outlines: Whether annotations have outlines besides boxes.
    """
    names = sorted(set(categories))
    images, annotations = [], []
    for number, (name, mask) in enumerate(masks.items()):
        images.append({"id": number, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]})
        for box, outline in zip(boxes_of(mask).tolist(), outlines_of(mask), strict=True):
            annotation = {
                "id": len(annotations),
                "image_id": number,
                "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
            }
            annotation["category_id"] = names.index(categories[number]) if names else 0
            annotation["segmentation"] = [outline.exterior.ravel().tolist()] if outlines else []
            annotations.append(annotation)
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    path.write_text(json.dumps(content))
    return path
