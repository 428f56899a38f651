"""The documentation holds: links lead somewhere, options and columns are described, the README stays short."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tumorlens.data.phantom import phantom_volume
from tumorlens.pipeline.cli.app import COMMANDS
from tumorlens.pipeline.outputs.table import COLUMNS

SBOM = REPOSITORY / "docs" / "sbom.json"
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), flags=re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`]*`", "", _prose(page))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link} is not there"
        assert not anchor or anchor in _anchors(target), f"{link}: no heading of that name"


def test_the_readme_is_one_page():
    assert len(_prose(REPOSITORY / "README.md").split()) <= 700


def test_the_sbom_names_every_dependency():
    """`make sbom` renews it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["app"]]
    listed = {part["name"].lower().replace("_", "-") for part in json.loads(SBOM.read_text())["components"]}
    names = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in needed}
    assert names - {"tumorlens"} <= listed


def test_every_column_is_described():
    page = (REPOSITORY / "docs" / "reference" / "results-csv.md").read_text(encoding="utf-8")
    assert not [column for column in COLUMNS if f"`{column}`" not in page]


def _commands(places=COMMANDS, above=()):
    for name, (place, _) in places.items():
        if isinstance(place, str):
            yield [*above, name]
        else:
            yield from _commands(place, (*above, name))


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_option_is_described(words, command):
    page = (REPOSITORY / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", command(*words, "--help").stdout, flags=re.MULTILINE)
    assert options
    assert not [option for option in options if option != "--help" and not re.search(rf"{option}(?![\w-])", page)]


def test_every_field_of_a_result_is_described(pipeline):
    page = (REPOSITORY / "docs" / "reference" / "result-json.md").read_text(encoding="utf-8")
    result = pipeline.run(phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0)).image).to_dict()
    assert result["lesions"]
    fields = {*result, *result["scan"], *result["lesions"][0], *result["slices"][0]}
    assert not [field for field in sorted(fields) if f"`{field}`" not in page]
