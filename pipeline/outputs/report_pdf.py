"""A report as PDF: by WeasyPrint if it is installed, else by a Chromium that prints it without network and script."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType

from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.scratch import ScratchFolder

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    *("--headless", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-extensions", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--no-pdf-header-footer"),
)
_PATIENCE_S = 120


def check_pdf() -> None:
    """Check, before any scan is run, that something can make a PDF.

    Raises:
        InputError: Neither WeasyPrint nor a Chromium is there. The message says what to install.
    """
    if _weasyprint() is None and _browser() is None:
        raise InputError(
            "--pdf needs WeasyPrint (pip install 'tumorlens[pdf]') or Chromium; --report alone writes HTML, which any "
            "browser can print"
        )


def write_pdf(html: str, path: Path) -> None:
    """Write a page as PDF, whole or not at all. Nothing outside of the page is loaded.

    Raises:
        InputError: Neither WeasyPrint nor a Chromium is there, or it failed.
    """
    check_pdf()
    printer, browser = _weasyprint(), _browser()
    with whole_file(path) as part:
        if printer is not None:
            # No other address than data: is opened, neither of a host nor of a file.
            fetcher = printer.urls.URLFetcher(allowed_protocols={"data"})
            printer.HTML(string=html, url_fetcher=fetcher).write_pdf(part)
        elif browser is not None:
            _print(html, part, browser)


def _print(html: str, path: Path, browser: str) -> None:
    with ScratchFolder() as temporary:
        page = Path(temporary) / "report.html"
        page.write_text(html, encoding="utf-8", errors="backslashreplace")
        # Chromium refuses to run as root inside of its sandbox, as in most containers.
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        flags = [*_FLAGS, *(["--no-sandbox"] if is_root else []), f"--user-data-dir={temporary}/profile"]
        try:
            subprocess.run(
                [browser, *flags, f"--print-to-pdf={path}", page.as_uri()],
                check=True,
                capture_output=True,
                timeout=_PATIENCE_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(f"{Path(browser).name} made no PDF: {type(error).__name__}") from None
    with path.open("rb") as file:
        if file.read(4) != b"%PDF":
            raise InputError(f"{Path(browser).name} made no PDF")


@cache
def _weasyprint() -> ModuleType | None:
    try:
        import weasyprint
    except (ImportError, OSError):  # OSError: it is there, but Pango is not
        return None
    return weasyprint if hasattr(weasyprint.urls, "URLFetcher") else None


def _browser() -> str | None:
    return next((found for name in _BROWSERS if (found := shutil.which(name))), None)
