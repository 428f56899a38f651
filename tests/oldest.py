"""Print pip constraints that hold every direct dependency, and those of training and of the pages, at the oldest version.

Left out are torch and torchvision: each of their versions is a download of gigabytes, and their range is narrow.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

LARGE = ("torch", "torchvision")

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in (*project["dependencies"], *extras["train"], *extras["app"]):
        name, oldest = re.fullmatch(r"([\w-]+)>=([\w.]+),<[\w.]+", requirement).groups()
        if name not in LARGE:
            print(f"{name}=={oldest}.*")
