"""The page `/review`: all scans of a batch, those first that need a person most."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from nicegui import run, ui

from tumorlens.data.errors import InputError, printable
from tumorlens.data.plotting import plain, shown_probability
from tumorlens.pipeline.services.reviews.agreement import Agreement, Known, measure_agreement
from tumorlens.pipeline.services.reviews.desk import FAILED, OPEN, STATES, Desk, WorkItem, describe_progress
from tumorlens.pipeline.web.reviewer import PATIENCE_S, Reviewer
from tumorlens.pipeline.web.theme import REVIEW, frame, text

_PAGE = 100  # lines shown at once
_EVERY_S = 5.0  # seconds until other reviewers' work shows
_ALL = "all"

_dice: Known = {}  # of all windows: the masks of many scans take a while to read


def address_of(name: str, after: str = "") -> str:
    """The address of a scan on the desk; it says what became of the scan before."""
    return f"/review/case?scan={quote(name, safe='')}" + (f"&after={quote(after, safe='')}" if after else "")


def register(desk: Desk) -> None:
    """Add the page to the application."""

    @ui.page(REVIEW[1], title="Review - tumorlens")
    async def worklist() -> None:
        with frame("Review", REVIEW[1]):
            page = _Worklist(desk)
        await ui.context.client.connected(timeout=PATIENCE_S)
        await page.recall()
        await page.fill()


class _Worklist:
    """The worklist in one window."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._page = 0
        self._shown = ""
        self._state_shown: object = None
        self._items: list[WorkItem] = []
        with ui.element("div").classes("tl-row"):
            self._reviewer = Reviewer(desk.reviewer)
            ui.button("Next open scan", on_click=self._go_on).props('id="next-open"')
        self._progress = ui.label("Reading the results ...").props('role="status"')
        with ui.element("div").classes("tl-filters"):
            self._search = ui.input("Search name or reason", on_change=self._from_start).props(
                "dense outlined clearable"
            )
            states = {_ALL: "all states", **{state: state for state in (OPEN, *STATES.values(), FAILED)}}
            self._state = ui.select(states, value=_ALL, label="State", on_change=self._from_start)
            self._label = ui.select({_ALL: "all labels"}, value=_ALL, label="Label", on_change=self._from_start)
            for select in (self._state, self._label):
                select.props("dense outlined")
        with ui.element("div").classes("tl-scroll").props('tabindex="0" role="region" aria-label="Worklist"'):
            self._table = ui.html("", sanitize=False)
        with ui.element("div").classes("tl-row"):
            self._back = ui.button("Earlier lines", on_click=lambda: self._turn(-1)).props("flat")
            self._place = ui.label()
            self._on = ui.button("Later lines", on_click=lambda: self._turn(1)).props("flat")
        ui.label("Need: one point for each reason, more for doubts, refusals and failures.").classes("tl-quiet")
        text("h2", "Agreement")
        self._agreement = ui.html("", sanitize=False)
        ui.timer(_EVERY_S, self.fill)

    async def recall(self) -> None:
        """Show the name that the browser remembers."""
        await self._reviewer.recall()

    async def fill(self) -> None:
        """Read the state of all scans and show it, if it has changed."""
        try:
            state = await run.io_bound(self._desk.state)
            if state == self._state_shown:
                return
            self._items = await run.io_bound(self._desk.worklist) or []
            agreements = (
                await run.io_bound(lambda: measure_agreement(self._desk.results(), self._desk.store, _dice)) or []
            )
            self._state_shown = state
        except InputError as error:
            self._progress.text = printable(str(error))
            return
        labels = sorted({item.label for item in self._items if item.label})
        self._label.options = {_ALL: "all labels", **{label: plain(label) for label in labels}}
        self._label.update()
        self._progress.text = describe_progress(self._items)
        self._agreement.content = _agreement_table(agreements)
        self._show()

    def _from_start(self) -> None:
        self._page = 0
        self._show()

    def _turn(self, step: int) -> None:
        self._page += step
        self._show()

    def _show(self) -> None:
        words = (self._search.value or "").lower().split()
        chosen = [
            item
            for item in self._items
            if self._state.value in (_ALL, item.state)
            and self._label.value in (_ALL, item.label)
            and all(word in f"{item.name} {' '.join(item.reasons)}".lower() for word in words)
        ]
        last = max(0, (len(chosen) - 1) // _PAGE)
        self._page = min(max(self._page, 0), last)
        lines = chosen[self._page * _PAGE : (self._page + 1) * _PAGE]
        table = _table(lines)
        if table != self._shown:
            self._shown = self._table.content = table
        first = self._page * _PAGE + 1 if chosen else 0
        self._place.text = f"{first} to {self._page * _PAGE + len(lines)} of {len(chosen)}"
        self._back.set_visibility(self._page > 0)
        self._on.set_visibility(self._page < last)

    async def _go_on(self) -> None:
        name = await self._reviewer.ask()
        if name:
            following = await run.io_bound(self._desk.next_open, "", name)
            if following is None:
                ui.notify("You have decided on every scan, or others have the rest open.")
            else:
                ui.navigate.to(address_of(following))


def _table(items: list[WorkItem]) -> str:
    if not items:
        return "<p>No scan fits the filter.</p>"
    head = "".join(
        f'<th scope="col">{t}</th>' for t in ("Scan", "Label", "State", "Need", "Confidence", "Volume", "Why")
    )
    return f'<table class="tl-list"><thead><tr>{head}</tr></thead><tbody>{"".join(map(_line, items))}</tbody></table>'


def _line(item: WorkItem) -> str:
    content = item.result.content
    name = escape(printable(item.name))
    link = name if item.result.failed else f'<a href="{escape(address_of(item.name))}">{name}</a>'
    color = item.result.classes.color(item.label)
    label = (
        f'<span class="tl-swatch" style="background:{color}"></span>{escape(plain(item.label))}' if item.label else ""
    )
    state = item.state + (f" ({escape(', '.join(item.reviewers))})" if item.reviewers else "")
    if item.claim is not None:
        state += f"<br>{escape(item.claim.reviewer)} has it open"
    confidence = content.get("confidence")
    volume = content.get("tumor_volume_mm3")
    cells = [
        f"<td>{link}</td><td>{label}</td><td>{state}</td>",
        f'<td class="tl-number">{item.need:.1f}</td>',
        f'<td class="tl-number">{"" if confidence is None else escape(shown_probability(confidence))}</td>',
        f'<td class="tl-number">{"" if not volume else f"{volume / 1000:.1f} ml"}</td>',
        f"<td>{escape(printable('; '.join(item.reasons)))}</td>",
    ]
    return f'<tr class="{"" if item.state == OPEN else "tl-done"}">{"".join(cells)}</tr>'


def _agreement_table(agreements: list[Agreement]) -> str:
    if not agreements:
        return "<p>Nobody has decided yet.</p>"
    head = "".join(
        f'<th scope="col">{text}</th>'
        for text in ("Between", "Labels that agree", "Cohen's kappa", "Mean Dice of masks")
    )
    rows = "".join(
        f"<tr><td>{escape(a.first)} and {escape(a.second)}</td><td>{a.same} of {a.n}"
        f"{f', {a.rejected} rejected' if a.rejected else ''}</td>"
        f"<td>{'' if a.kappa is None else f'{a.kappa:.2f}'}</td>"
        f"<td>{'' if a.dice is None else f'{a.dice:.2f} ({a.n_masks} scans)'}</td></tr>"
        for a in agreements
    )
    return f'<table class="tl-list"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
