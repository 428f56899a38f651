"""The text that travels with shared weights: a short model card, figures, license and credit, all from the card."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from tumorlens.data.labels import ClassList

LICENSE_NAME = "tumorlens-weights"
TITLES = {"classification": "tumorlens brain tumor classifier", "segmentation": "tumorlens brain tumor segmenter"}
TASKS = {
    "classification": "says whether a slice of head MRI shows a tumor, and of which type",
    "segmentation": "outlines a brain tumor in slices of head MRI that show one",
}
_OF_SOURCES = "by_source"  # its keys are names of folders


def is_shipped(card: dict[str, Any]) -> bool:
    """Whether the weights are those of tumorlens, which have a license on their card."""
    return "licence" in card


def model_card(card: dict[str, Any], kind: str) -> str:
    """The model card in Markdown, without front matter.

    Args:
        card: The weights' card.
        kind: ``monai-bundle`` or ``huggingface``, which the section on how to use it is for.
    """
    from jinja2 import Environment

    source = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    # It makes Markdown of weights that you export yourself, and no page.
    template = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(source)  # nosec B701
    stage = card["stage"]
    gate = stage != "classification" or ClassList.from_card(card).gate
    return template.render(
        card=card,
        kind=kind,
        stage=stage,
        title=TITLES[stage],
        task=TASKS[stage] if gate else "says which type of tumor a slice of head MRI shows",
        shipped=is_shipped(card),
        figures=figures(card),
        credit=credit(card),
        gate=gate,
    )


def figures(card: dict[str, Any]) -> dict[str, float]:
    """The figures of a card by name, such as ``slice recall glioma``, without those of single data sets."""
    rows: dict[str, float] = {}

    def collect(part: dict[str, Any], names: tuple[str, ...]) -> None:
        for name, value in part.items():
            if isinstance(value, dict) and name != _OF_SOURCES:
                collect(value, (*names, name))
            elif isinstance(value, int | float):
                rows[" ".join((*names, name)).replace("_", " ")] = value

    collect(card.get("metrics", {}), ())
    return rows


def credit(card: dict[str, Any]) -> list[str]:
    """A line for each data set that the weights have learned from: name, license, authors."""
    return [f"{row['name']} ({row['licence']}): {row['credit']}" for row in card.get("training_data", ())]


def weights_license(card: dict[str, Any]) -> str:
    """The license of the weights, with the credit that it asks to pass on."""
    if not is_shipped(card):
        return "Whoever has trained these weights has not stated a license.\n"
    checkout = Path(__file__).parents[2] / "LICENSE-WEIGHTS"
    try:
        text = (
            checkout.read_text()
            if checkout.is_file()
            else distribution("tumorlens").read_text(f"licenses/{checkout.name}")
        )
    except PackageNotFoundError:
        text = None
    text = text or f"License of these weights: {card['licence']}.\n"
    return "\n".join([text, "Training data and credit:", *(f"- {line}" for line in credit(card)), ""])
