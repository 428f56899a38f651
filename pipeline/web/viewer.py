"""The picture area of the pages: slices of a scan with mask and heat, and tools to draw."""

from __future__ import annotations

from typing import Any, Literal

from nicegui import ui

_PATIENCE_S = 60.0  # for strokes on a slow connection


class Viewer(ui.element, component="viewer.js"):
    """Slices of a published view. Slices, gray window, zoom and cross are handled in the browser.

    Events: ``moved`` (``position`` along the array axes, ``slice``), ``edited`` (``slices``, ``undo``, ``redo``) and
    ``failed`` (``message``).

    Args:
        base_url: From `pipeline.web.views.publish`.
        facts: From `pipeline.services.views.View.describe`.
        panes: All three planes of a volume, or the plane of the judged slices alone.
        editable: Whether the mask may be drawn.
    """

    def __init__(
        self,
        base_url: str,
        facts: dict[str, Any],
        panes: Literal["all", "one"] = "all",
        editable: bool = False,
    ) -> None:
        super().__init__()
        self._props.update(
            base=base_url,
            facts=facts,
            panes=panes,
            editable=editable,
            opacity=0.35,
            maskVisible=True,
            heatVisible=False,
            tool="look",
            brush=12,
        )
        self.classes("tl-viewer-element")

    def set_opacity(self, opacity: float) -> None:
        """Set the mask's opacity, 0 to 1."""
        self._set("opacity", opacity)

    def set_mask_visible(self, visible: bool) -> None:
        """Show or hide the mask."""
        self._set("maskVisible", visible)

    def set_heat_visible(self, visible: bool) -> None:
        """Show or hide the heat, which belongs to one slice."""
        self._set("heatVisible", visible)

    def set_panes(self, panes: Literal["all", "one"]) -> None:
        """Show all three planes, or the plane of the judged slices alone."""
        self._set("panes", panes)

    def set_tool(self, tool: str) -> None:
        """Choose ``look``, ``brush``, ``eraser`` or ``fill``."""
        self._set("tool", tool)

    def set_brush(self, diameter: float) -> None:
        """Set the diameter of brush and eraser in pixels."""
        self._set("brush", diameter)

    def set_editable(self, editable: bool) -> None:
        """Allow or forbid drawing."""
        self._set("editable", editable)

    def set_slice(self, index: int) -> None:
        """Go to a slice of the first plane."""
        self.run_method("setSlice", index)

    def edit(self, action: str) -> None:
        """Do ``undo``, ``redo``, ``clear``, ``copy-previous``, ``copy-next`` or ``interpolate`` at the shown slice."""
        self.run_method("edit", action)

    async def settled(self) -> bool:
        """Whether everything that was drawn is saved. Waits for what is on its way."""
        return bool(await self.run_method("settled", timeout=_PATIENCE_S))

    def _set(self, name: str, value: Any) -> None:
        self._props[name] = value
        self.update()
