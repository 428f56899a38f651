"""Who sits at the desk: a name that the browser remembers."""

from __future__ import annotations

import json

from nicegui import ui

_KEY = "tumorlens-reviewer"
PATIENCE_S = 15.0  # with a browser that is busy
_LONGEST = 64  # a DICOM person name


class Reviewer:
    """The name of the reviewer, with a field to change it.

    Args:
        name: The name that `tumorlens serve --reviewer` gave, which comes before what the browser remembers.
    """

    def __init__(self, name: str = "") -> None:
        self._given = name
        self._field = ui.input("Your name", value=name).props(f'dense outlined maxlength="{_LONGEST}"')
        self._field.on("blur", self._keep)

    @property
    def name(self) -> str:
        """The name, or an empty string."""
        return str(self._field.value or "").strip()

    async def recall(self) -> str:
        """The name, from the browser's memory if the field is empty. The window must be connected."""
        if not self.name:
            code = f"localStorage.getItem({json.dumps(_KEY)}) || ''"
            self._field.value = await ui.run_javascript(code, timeout=PATIENCE_S)
        return self.name

    async def ask(self) -> str:
        """The name; without one, the reviewer is asked to give it, and the answer is an empty string."""
        if not await self.recall():
            ui.notify("Type your name first: it goes into the record of every decision.")
            self._field.run_method("focus")
        else:
            self._keep()
        return self.name

    def _keep(self) -> None:
        if self.name and self.name != self._given:
            ui.run_javascript(f"localStorage.setItem({json.dumps(_KEY)}, {json.dumps(self.name)})")
