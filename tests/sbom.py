"""Reads a CycloneDX list of packages and prints it without web addresses, which say nothing of versions."""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    bom = json.load(sys.stdin)
    for component in (bom["metadata"]["component"], *bom["components"]):
        component.pop("externalReferences", None)
    bom["metadata"].pop("tools", None)
    print(json.dumps(bom, indent=1))
