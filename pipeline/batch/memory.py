"""Where the scans of an output folder lie. The output folder itself does not say, because a path may name a patient."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from tumorlens.data.files import write_text


def remember_inputs(out: Path, inputs: Sequence[str]) -> None:
    """Note in the user's own state folder which inputs were run into an output folder.

    It lies on this machine only, is readable by this user only, and saves `tumorlens serve OUT` from asking. A machine
    without such a folder goes without it.
    """
    with suppress(OSError):
        place = _place_of_note(out)
        known = [*remembered_inputs(out), *(str(Path.cwd() / text) for text in inputs)]
        write_text(place, json.dumps(list(dict.fromkeys(known))))
        place.chmod(0o600)


def _place_of_note(out: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(out))).hexdigest()[:32]
    return user_state_path("tumorlens", appauthor=False) / "inputs" / f"{name}.json"


def remembered_inputs(out: Path) -> list[str]:
    """The inputs that `remember_inputs` noted, oldest first; none where it did not."""
    try:
        known = json.loads(_place_of_note(out).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [text for text in known if isinstance(text, str)] if isinstance(known, list) else []
