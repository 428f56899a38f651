"""The page `/`: drop a scan, look at the result, save what you want to keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from fastapi import HTTPException, Request
from nicegui import Client, app, background_tasks, run, ui
from nicegui.events import GenericEventArguments

from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.examples import EXAMPLES, write_example
from tumorlens.pipeline.services.facts import (
    answer_of,
    doubts_of,
    facts_html,
    measurements_html,
    n_frames_of,
    probabilities_html,
    progress_of,
)
from tumorlens.pipeline.services.jobs import DONE, FAILED, RUNNING, WAITING, QueuedJob
from tumorlens.pipeline.services.uploads import Visits
from tumorlens.pipeline.web import theme

if TYPE_CHECKING:
    from tumorlens.pipeline.result import Result

_UPLOADS = "/uploads"
_THROTTLE_S = 0.05
_GRACE_S = 8.0  # to reload the page
_EVERY_S = 0.2  # between two looks at the jobs
_LOADING = "The models are loading. You can choose files already."
_PICKED = "files => files.length <= {files} && files.reduce((sum, f) => sum + f.size, 0) <= {bytes} ? files : []"
_TOO_MUCH = "entries => emit(entries.length, entries.reduce((sum, e) => sum + e.file.size, 0))"
_NAMED = "files => [{name: 'X-File-Name', value: encodeURIComponent(files[0].name)}]"
_NO_NAVIGATION = (  # a file that misses the place to drop must not replace the page
    '<script>["dragover", "drop"].forEach((t) => document.addEventListener(t, (e) => e.preventDefault()));</script>'
)


def register(visits: Visits) -> None:
    """Register the page, and the address to which it sends files."""

    @app.post(_UPLOADS + "/{visit_id}")
    async def receive(visit_id: str, request: Request) -> dict[str, str]:
        visit = visits.find(visit_id)
        if visit is None:
            raise HTTPException(404, "this page was closed; open it again")
        length = request.headers.get("content-length", "")
        try:
            name = unquote(request.headers.get("x-file-name", ""))
            await visit.receive(name, request.stream(), int(length) if length.isdecimal() else 0)
        except InputError as error:
            raise HTTPException(413, str(error), headers={"Connection": "close"}) from None
        return {"stored": "yes"}

    @ui.page(theme.TRY[1], reconnect_timeout=_GRACE_S)
    def try_a_scan() -> None:
        ui.add_body_html(_NO_NAVIGATION)
        with theme.frame(*theme.TRY):
            page = _Page(visits)
        ui.context.client.on_connect(page.enter)  # clients that are not browsers never connect


class _Page:
    """One page of a visit."""

    def __init__(self, visits: Visits) -> None:
        self.visits = visits
        self.rows: dict[str, _Row] = {}
        self.shown: QueuedJob | None = None
        self.fresh: list[QueuedJob] = []  # of these, the first that is done will be shown
        self.base_url = ""
        self.n_problems = 0
        self.doing = ""  # what the page itself is busy with
        self._build_drop()
        with ui.element("div").classes("tl-row"):
            self.status = ui.label()
            self.status.props('role="status" aria-live="polite"').classes("tl-quiet")
            self.clear = ui.button("Delete all", icon="delete", on_click=self._clear)
            self.clear.props("flat dense").set_visibility(False)
        self.problems = ui.element("div").props('role="alert"')
        self.jobs = ui.element("ul").classes("tl-jobs").props('aria-label="Scans" tabindex="0"')
        self.result = ui.element("section").props('aria-label="Result"')
        self.spoken = ui.label().props('role="status"').classes("tl-spoken")  # the eye sees it in list and result
        self.timer = ui.timer(_EVERY_S, self._refresh, active=False)
        self._show_status()

    def enter(self, client: Client) -> None:
        """Show the visit of a browser's tab. From now on it takes files."""
        if self.timer.active:  # it was here before, and connects again
            return
        client.on_delete(self.leave)
        self.visit = self.visits.enter(str(client.tab_id))
        self.fresh = [] if self.visit.shown else self.visit.jobs
        self.uploader.props(f'url="{_UPLOADS}/{self.visit.id}"', remove="disable")
        self.timer.activate()

    def leave(self) -> None:
        """End the visit, unless another page shows it, and forget the slices on the screen."""
        self._withdraw()
        self.visits.leave(self.visit)

    def _withdraw(self) -> None:
        from tumorlens.pipeline.web.views import withdraw

        if self.base_url:
            withdraw(self.base_url)

    def _clear(self) -> None:
        self.visit.clear()
        self.n_problems = -1
        self.doing = ""
        self.spoken.set_text("")

    def _build_drop(self) -> None:
        limits = self.visits.limits
        with ui.card().classes("tl-card tl-drop") as card:
            # Hidden, for the input of NiceGUI's uploader has no label; disabled until the page is connected.
            self.uploader = ui.upload(multiple=True, auto_upload=True).classes("hidden").props("disable")
            queue = f"getElement({self.uploader.id}).$refs.qRef"
            with ui.element("div").classes("tl-row"):
                choose = ui.button("Choose files", icon="upload_file")
                ui.label("or drop them here: pictures, NIfTI, DICOM files, a zip of DICOM files.")
            theme.text(
                "p",
                f"At most {limits.upload_files} files and {limits.upload_mb} MB. They stay on the computer that runs "
                "tumorlens, and are deleted when you close the page.",
            ).classes("tl-quiet")
            with ui.element("div").classes("tl-row"):
                ui.label("No scan at hand? Synthetic heads:")
                for name in EXAMPLES:
                    ui.button(name, on_click=partial(self._example, name)).props("outline dense").classes("px-2")
        choose.on("click", js_handler=f"() => {queue}.pickFiles()")
        mark = "e.currentTarget.classList.{0}('tl-over')"
        card.on("dragover", js_handler=f"(e) => {mark.format('add')}")
        card.on("dragleave", js_handler=f"(e) => {mark.format('remove')}")
        add = f"{mark.format('remove')}; {queue}.addFiles(e.dataTransfer.files)"
        card.on("drop", js_handler=f"(e) => {{ {add}; }}")
        app.remove_route(self.uploader.props["url"])  # NiceGUI's own address has no limits
        picked = _PICKED.format(files=limits.upload_files, bytes=limits.n_bytes)
        self.uploader.props(f'send-raw :headers="{_NAMED}" :filter="{picked}"')
        self.uploader.on("start", lambda: self._do("Sending files ..."), args=[])
        self.uploader.on("rejected", self._reject, js_handler=_TOO_MUCH)
        self.uploader.on("failed", self._fail, args=[])
        self.uploader.on("finish", self._take, args=[])

    def _reject(self, event: GenericEventArguments) -> None:
        n_files, n_bytes = event.args
        refusal = self.visit.limits.refusal(int(n_files), int(n_bytes))
        if refusal:  # else a file was dropped twice
            self.visit.problems.append(f"Nothing was sent: {refusal}")

    def _fail(self) -> None:
        if len(self.visit.problems) == self.n_problems:  # the server has not said why
            self.visit.problems.append("A file could not be sent; if it is a folder, make it a zip")

    async def _take(self) -> None:
        self.uploader.reset()
        self._do("Looking into the files ...")
        self._choose(await run.io_bound(self.visit.take_received) or [])

    async def _example(self, name: str) -> None:
        self._do("Making a synthetic head ...")
        path = self.visit.new_file(EXAMPLES[name].file)

        def make() -> list[QueuedJob]:
            write_example(name, path)
            return self.visit.submit([path])

        self._choose(await run.io_bound(make) or [])

    def _choose(self, jobs: list[QueuedJob]) -> None:
        """Show the first of some new scans that is done."""
        self.fresh = jobs
        self._do("")

    def _do(self, what: str) -> None:
        self.doing = what
        self._show_status()

    def _show_status(self) -> None:
        queue = self.visits.queue
        text = self.doing or ("" if queue.ready or queue.problem else _LOADING)
        if not text and self.timer.active and len(self.visit.jobs) > 1:
            text = f"{sum(job.ended.is_set() for job in self.visit.jobs)} of {len(self.visit.jobs)} done"
        if self.status.text != text:
            self.status.set_text(text)

    # What changes while the page is open ------------------------------------------------------------------------

    def _refresh(self) -> None:
        visit, queue = self.visit, self.visit.queue
        if len(visit.problems) != self.n_problems:
            self.n_problems = len(visit.problems)
            self.problems.clear()
            with self.problems:
                for problem in visit.problems[-5:]:
                    theme.text("p", problem if problem.endswith((".", "!", "?")) else f"{problem}.").classes("tl-alert")
        done = next((job for job in self.fresh if job.state == DONE), None)
        if done is not None:
            self._pick(done)
        known = {job.id for job in visit.jobs}
        self.clear.set_visibility(bool(known))
        for gone in [id for id in self.rows if id not in known]:
            self.rows.pop(gone).element.delete()
        for job in visit.jobs:
            if job.id not in self.rows:
                with self.jobs:
                    self.rows[job.id] = _Row(job, self._pick, self._dismiss, self._run_again)
            self.rows[job.id].refresh(queue.position(job), queue.ready, job.id == visit.shown)
        shown = next((job for job in visit.jobs if job.id == visit.shown and job.state == DONE), None)
        if shown is not self.shown:
            self.shown = shown
            background_tasks.create(self._show(shown))
        self._show_status()

    def _pick(self, job: QueuedJob) -> None:
        self.visit.shown, self.fresh = job.id, []

    def _dismiss(self, job: QueuedJob) -> None:
        if job.ended.is_set():
            self.visit.remove(job)
        else:
            self.visit.queue.cancel(job)

    async def _show(self, job: QueuedJob | None) -> None:
        result = None if job is None else await run.io_bound(lambda: job.result)
        if self.result.is_deleted:  # the page was closed meanwhile
            return
        self._withdraw()
        with self.result:
            self.result.clear()
            if job is not None and result is not None and job is self.shown:
                self._build_result(job, result)
                self.spoken.set_text(f"{job.name}: {answer_of(result)}")

    def _build_result(self, job: QueuedJob, result: Result) -> None:
        with self.result, ui.element("div").classes("tl-result"):
            with ui.element("div").classes("tl-card"):
                self._build_picture(result)
            with ui.element("div").classes("tl-card"):
                with ui.element("div").classes("tl-answer"):
                    theme.text("h2", answer_of(result))
                ui.html(probabilities_html(result), sanitize=False)
                ui.html(doubts_of(result), sanitize=False)
                if result.refused:
                    forced = partial(self._run_again, job, force=True)
                    ui.button("Judge it all the same", on_click=forced).props("outline")
                ui.html(measurements_html(result), sanitize=False)
                theme.text("h3", "Save")
                self._build_saving(job, result)
                ui.html(facts_html(result, job.seconds), sanitize=False)

    def _build_picture(self, result: Result) -> None:
        from tumorlens.pipeline.services.views import View
        from tumorlens.pipeline.web.viewer import Viewer
        from tumorlens.pipeline.web.views import publish

        view = View(result.scan, result.mask, result.heat, result.shown_slice, start=result.shown_slice)
        self.base_url = publish(view)
        volume = result.scan.n_slices > 1
        viewer = Viewer(self.base_url, view.describe(), panes="all" if volume else "one")
        if volume and result.lesions:  # the other planes begin at the largest lesion
            center = result.lesions[0].centroid_index
            for pane, axis in list(enumerate(view.axes))[1:]:
                viewer.run_method("setIndex", pane, round(center[axis]))
        with ui.element("div").classes("tl-controls"):
            ui.switch("Mask", value=True, on_change=lambda e: viewer.set_mask_visible(e.value))
            with ui.element("div").classes("tl-opacity"):
                ui.label("Opacity")
                opacity = ui.element("input").props('type="range" min="0" max="100" value="35"')
                opacity.props('aria-label="Opacity of the mask in percent"')  # Quasar's slider takes no label
                opacity.on(
                    "input",
                    lambda e: viewer.set_opacity(e.args / 100),
                    throttle=_THROTTLE_S,
                    js_handler="(e) => emit(+e.target.value)",
                )
            if result.heat is not None:
                named = (
                    f"Where the classifier looked (slice {result.shown_slice})"
                    if volume
                    else "Where the classifier looked"
                )

                def show_heat(visible: bool) -> None:
                    viewer.set_heat_visible(visible)
                    if visible:
                        viewer.set_slice(result.shown_slice)

                ui.switch(named, on_change=lambda e: show_heat(e.value))
            if volume:
                ui.switch("Three planes", value=True, on_change=lambda e: viewer.set_panes("all" if e.value else "one"))

    def _build_saving(self, job: QueuedJob, result: Result) -> None:
        from tumorlens.pipeline.services import downloads

        def save(find: Callable[[Path], Path]) -> Callable[[], Any]:
            async def save_file() -> None:
                try:
                    file = await run.io_bound(lambda: find(downloads.write_files(job)))
                except InputError as error:
                    self.visit.problems.append(str(error))
                    return
                if file is not None:  # None while the server stops
                    ui.download.file(file, downloads.saved_name(job, file))

            return save_file

        kinds: dict[str, Callable[[Path], Path]] = {
            "Overlay": lambda folder: downloads.find_file(folder, downloads.OVERLAY),
            "Report": lambda folder: downloads.find_file(folder, downloads.REPORT),
            "All files (zip)": downloads.zip_files,
        }
        if not result.refused:
            kinds = {"Mask": lambda folder: downloads.find_file(folder, *downloads.MASKS), **kinds}
        with ui.element("div").classes("tl-row"):
            for name, find in kinds.items():
                ui.button(name, icon="download", on_click=save(find)).props("outline dense").classes("px-2")

    def _run_again(self, job: QueuedJob, **changes: Any) -> None:
        self._choose(self.visit.run_again(job, **changes))


class _Row:
    """The line of a scan in the list. It stays while the scan changes, so that the keyboard does not lose its place."""

    def __init__(
        self,
        job: QueuedJob,
        pick: Callable[[QueuedJob], None],
        dismiss: Callable[[QueuedJob], None],
        run_again: Callable[..., None],
    ) -> None:
        self.job, self.run_again = job, run_again
        self.frames: ui.element | None = None
        with ui.element("li").classes("tl-job") as self.element:
            self.button = ui.button(on_click=lambda: pick(job)).props("flat align=left").classes("tl-state")
            self.failure = ui.label().classes("tl-state")
            self.dismiss = ui.button(on_click=lambda: dismiss(job)).props("flat dense")
            self.bar = ui.element("progress")
            self.bar.props["aria-label"] = f"Progress of {job.name}"

    def refresh(self, position: int, ready: bool, shown: bool) -> None:
        """Say how far the scan is."""
        job = self.job
        text = f"{job.name}: {progress_of(job, position, ready)}"
        done, going = job.state == DONE, job.state in (WAITING, RUNNING)
        for element, visible in (
            (self.button, done),
            (self.failure, not done),
            (self.bar, going),
        ):
            if element.visible != visible:
                element.set_visibility(visible)
        target = self.button if done else self.failure
        if target.text != text:
            target.set_text(text)
        act = "Cancel" if going else "Remove"
        if self.dismiss.text != act:
            self.dismiss.set_text(act)
            self.dismiss.props["aria-label"] = f"{act} {job.name}"
        n_frames = n_frames_of(job)
        if n_frames and self.frames is None:
            self._build_frames(n_frames)
        share = {"max": job.n_all, "value": job.n_done} if job.state == RUNNING and job.n_all else {}
        if {key: self.bar.props.get(key) for key in share} != share:
            self.bar.props.update(share)
            self.bar.update()
        self.failure.classes(
            "tl-failed" if job.state == FAILED else "", remove="" if job.state == FAILED else "tl-failed"
        )
        current = "true" if shown and done else "false"
        if self.button.props.get("aria-pressed") != current:
            self.button.props["aria-pressed"] = current
            self.element.classes("tl-shown" if shown and done else "", remove="" if shown and done else "tl-shown")

    def _build_frames(self, n_frames: int) -> None:
        """Offer the frames of a 4-D scan."""
        with self.element, ui.element("div").classes("tl-row tl-frames") as self.frames:
            frame = ui.number("Frame", value=0, min=0, max=n_frames - 1, precision=0).props("dense outlined")

            def run_again() -> None:
                self.run_again(self.job, frame=min(max(int(frame.value or 0), 0), n_frames - 1))

            ui.button("Use this frame", on_click=run_again).props("outline dense").classes("px-2")
