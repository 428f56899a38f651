"""`tumorlens serve`."""

from __future__ import annotations

import os
import re
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.config import setting
from tumorlens.data.errors import InputError, require
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import own_remarks, say
from tumorlens.pipeline.options import LoadOptions, ServiceOptions, UploadLimits

if TYPE_CHECKING:
    from tumorlens.pipeline.pipeline import Pipeline

_TOKEN = "TUMORLENS_TOKEN"


@dataclass(frozen=True)
class ServeCall:
    """The results to review, and where the server is reached."""

    out: Path | None = setting(None, "Output folder of `tumorlens run`, to review its results.", argument=True)
    scans: tuple[str, ...] = setting(
        (), "File, folder or glob of the scans in OUT, if they have moved; repeatable.", metavar="INPUT"
    )
    reviewer: str = setting("", "Your name in the record of reviews.", metavar="NAME", shown="asked on the page")
    host: str = setting("127.0.0.1", "Address to listen on; others than this machine's need --token.")
    port: int = setting(8080, "Port to listen on; 0 takes any that is free.", least=0, most=65535)
    token: str | None = setting(None, "Secret that everybody needs who opens a page.", shown="TUMORLENS_TOKEN, if set")
    browser: bool = setting(True, "Open the page, if you are at a terminal.")
    verbose: bool = setting(False, "Print what other packages log, and where errors arise.", flag="-v --verbose")


def _token(given: str | None) -> str:
    """The secret of ``--token``, else of the environment, where `ps` does not show it; empty where there is none.

    Raises:
        InputError: It cannot be part of addresses and headers.
    """
    name, token = ("--token", given) if given is not None else (_TOKEN, os.environ.get(_TOKEN))
    if token is None:
        return ""
    if not token.strip():
        raise InputError(f"{name} is empty; give a secret")
    if not re.fullmatch("[!-~]+", token):
        raise InputError(f"{name} holds spaces or letters such as é; use ASCII letters, digits and signs")
    return token


def _serve(values: Values) -> None:
    call = fill(ServeCall, values)
    token = _token(call.token)
    if call.scans and call.out is None:
        raise InputError("--scans says where the scans of OUT lie, but there is no OUT; name the results to review")
    load_options, service = fill(LoadOptions, values), fill(ServiceOptions, values)
    require("this command", "app")  # what is imported first below is a package that NiceGUI brings
    with own_remarks(hidden=False):
        from tumorlens.pipeline.web.app import run_server

        desk = None
        if call.out is not None:
            from tumorlens.pipeline.services.reviews.desk import Desk

            desk = Desk(call.out, call.scans, call.reviewer)

        def load() -> Pipeline:
            from tumorlens.pipeline.pipeline import Pipeline

            return Pipeline.load(**vars(load_options))

        def announce(address: str) -> None:
            say(f"tumorlens: {address} (Ctrl-C stops it)")
            if call.browser and sys.stdout.isatty():
                webbrowser.open(address)

        run_server(load, call.host, call.port, announce, token, fill(UploadLimits, values), desk, service)


serve = command(
    _serve,
    ServeCall,
    UploadLimits,
    ServiceOptions,
    LoadOptions,
    details="The pages and the REST service are for this machine only, unless you give --host and --token.",
    examples="""
    tumorlens serve
    tumorlens serve results --scans scans/ --reviewer "A. Reader"
    tumorlens serve --spool /srv/tumorlens --keep-results 2
    tumorlens serve --host 0.0.0.0 --token "$(openssl rand -hex 16)"
    """,
)
