"""`tumorlens info` describes the models and the devices."""

from __future__ import annotations

import json


def test_info(command):
    done = command("info", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["models"]["classification"]["intact"] is facts["models"]["segmentation"]["intact"] is True
    assert "cpu" in facts["devices"]
    text = command("info").stdout
    assert facts["models"]["segmentation"]["sha256"] in text
    assert command("--version").stdout.startswith("tumorlens ")
