"""Print pip constraints that hold all direct dependencies, and those of some extras, at the oldest version.

Left out are torch and torchvision: each of their versions is a download of gigabytes, and their range is narrow.
"""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

LARGE = ("torch", "torchvision")

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    of_extras = (extras[name] for name in ("data", "matlab", "train", "volumes", "app", "dicom-node"))
    for requirement in sorted({*project["dependencies"], *chain(*of_extras)}):
        found = re.fullmatch(r"([\w-]+)>=([\w.]+),<[\w.]+", requirement)
        if found is None:  # another extra
            assert requirement.startswith("tumorlens["), requirement
        elif found[1] not in LARGE:
            print(f"{found[1]}=={found[2]}.*")
