"""The rules of the house that a machine can check: which room may import which, no circles, cheap starts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY

# From the ground up. A module stands on the floor of the longest name that it begins with. It imports only from its own
# floor and from those below. On one floor there is no circle of files.
FLOORS = [
    ["data.errors", "data.labels", "data.spellings", "data.config"],
    [
        "data.files",
        "data.workers",
        "data.locks",
        "data.scratch",
        "data.bootstrap",
        "data.devices",
        "data.plotting",
        "data.scan",
        "data.components",
        "data.padding",
        "data.phantom",
    ],
    ["data.dicom"],
    ["data.preprocessing"],
    ["data.augmentation"],
    ["data.formats"],
    ["data.cards"],
    ["data.masks"],
    ["data.datasets"],
    ["data.inspection"],
    ["data.training"],
    ["classification.config", "segmentation.config"],
    ["classification.evaluation", "segmentation.evaluation"],
    [
        "classification.architectures",
        "classification.model",
        "classification.probabilities",
        "classification.refusal",
        "classification.sequence",
        "classification.network",
    ],
    ["classification.trust"],
    ["classification", "segmentation"],
    ["pipeline.versions", "pipeline.options", "pipeline.measurements"],
    ["pipeline.case"],
    ["pipeline.read_ahead"],
    ["pipeline.gate"],
    ["pipeline.volumes"],
    ["pipeline.measure"],
    ["pipeline.engines"],
    ["pipeline.sharing"],
    ["pipeline.result"],
    ["pipeline.review"],
    ["pipeline.pipeline"],
    ["pipeline.outputs"],
    ["pipeline.evaluation"],
    ["pipeline.batch"],
    ["pipeline.services"],
    ["pipeline.web"],
    ["pipeline.cli"],
]
# Methods for users of Python may call up, inside the function: a result writes its files.
CALLS_UP = {"pipeline.result": {"pipeline.outputs.overlay", "pipeline.outputs.write"}}
ROOMS = ("data", "classification", "segmentation", "pipeline")
# Where a package may be imported when a module is loaded. Elsewhere it waits inside the function that needs it, so that
# `--help` and a run with OpenVINO do not pay for it.
AT_THE_TOP = {
    "torch": (
        "data.training",
        "data.augmentation.augment",
        "classification.architectures",
        "classification.gradcam",
        "classification.model",
        "classification.module",
        "classification.network",
        "segmentation.loss",
        "segmentation.model",
        "segmentation.module",
        "segmentation.network",
        "pipeline.engines.graphs",
        "pipeline.engines.export",
        "pipeline.sharing.transforms",
    ),
    "lightning": (
        "data.training",
        "classification.module",
        "segmentation.module",
    ),
    "click": ("pipeline.cli",),
    "matplotlib": ("data.training",),
    "sklearn": (),
    "scipy": (),
    "h5py": (),
    "SimpleITK": (),
    "nicegui": ("pipeline.web",),
    "pynetdicom": ("pipeline.services.dicom_node",),
    "ray": (),
    "fsspec": (),
    "pyarrow": (),
}
MOST_FILES = 15


def _modules() -> dict[str, ast.Module]:
    """Module name without ``tumorlens.`` -> its syntax tree."""
    found = {}
    for room in ROOMS:
        for file in sorted((REPOSITORY / room).rglob("*.py")):
            name = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
            if name != "pipeline.package":
                found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


MODULES = _modules()


def _imported(tree: ast.AST, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    """Everything a module imports, also inside functions and under TYPE_CHECKING, as dotted names."""
    names: set[str] = set()
    for node in nodes or ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole.removeprefix("tumorlens.") in MODULES else str(node.module))
    return names


def _ours(name: str) -> set[str]:
    imported = {n.removeprefix("tumorlens.") for n in _imported(MODULES[name]) if n.startswith("tumorlens.")}
    unknown = imported - set(MODULES)
    assert not unknown, f"{name} imports {unknown}, which are not there"
    return imported - {name}


IMPORTS = {name: _ours(name) - CALLS_UP.get(name, set()) for name in MODULES}


def _floor(module: str) -> int:
    places = [(len(name), i) for i, names in enumerate(FLOORS) for name in names if f"{module}.".startswith(f"{name}.")]
    assert places, f"{module} is on no floor"
    return max(places)[1]


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ROOMS])
def test_a_module_imports_only_from_its_floor_and_below(module):
    upward = [other for other in IMPORTS[module] if other not in ROOMS and _floor(other) > _floor(module)]
    assert not upward, f"{module} imports {upward}, which stand above it"


def test_the_documentation_has_all_floors():
    page = (REPOSITORY / "docs" / "background" / "how-it-is-built.md").read_text(encoding="utf-8")
    words = re.findall(r"\w+", page.partition("## Floors")[2].partition("\n## ")[0])
    assert not [name for floor in FLOORS for name in floor if name.rpartition(".")[2] not in words]


def test_the_stages_do_not_know_each_other():
    for module, imported in IMPORTS.items():
        room = module.split(".")[0]
        other = {"classification": "segmentation", "segmentation": "classification"}.get(room)
        assert not [name for name in imported if name.split(".")[0] == other], module


def test_no_file_imports_itself_through_others():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(IMPORTS[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def _run_at_load(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when a module is loaded: not those in functions, nor those for type checkers."""
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        stack += list(ast.iter_child_nodes(node))


@pytest.mark.parametrize("package", AT_THE_TOP)
def test_heavy_packages_are_loaded_in_their_rooms_only(package):
    for name, tree in MODULES.items():
        loaded = {imported.split(".")[0] for imported in _imported(tree, _run_at_load(tree))}
        allowed = any(f"{name}.".startswith(f"{place}.") for place in AT_THE_TOP[package])
        assert allowed or package not in loaded, f"{name} imports {package} at the top"


def test_folders_stay_small():
    for folder in {file.parent for room in ROOMS for file in (REPOSITORY / room).rglob("*.py")}:
        files = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= MOST_FILES, f"{folder.relative_to(REPOSITORY)} holds {len(files)} files"


def test_every_folder_is_installed():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent.relative_to(REPOSITORY) for room in ROOMS for file in (REPOSITORY / room).rglob("*.py")}
    packages = {"tumorlens." + ".".join(folder.parts) for folder in folders} - {"tumorlens.pipeline.package"}
    assert set(settings["packages"]) == packages | {"tumorlens"}


def test_help_loads_no_heavy_package():
    code = (
        "import sys; sys.argv = ['tumorlens', '--help']\n"
        "from tumorlens.pipeline.cli.app import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'torchvision', 'monai', 'lightning', 'cv2', 'numpy', 'nibabel', 'matplotlib', 'pydantic'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
