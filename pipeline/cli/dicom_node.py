"""`tumorlens dicom-node`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.config import setting
from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import say
from tumorlens.pipeline.options import LoadOptions, RunOptions
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits, Peer, check_title

if TYPE_CHECKING:
    from tumorlens.pipeline.pipeline import Pipeline
    from tumorlens.pipeline.services.dicom_node.destinations import Destination
    from tumorlens.pipeline.services.dicom_node.node import Node
    from tumorlens.pipeline.services.spool import Spool

_RUN_OPTIONS = ("plane", "secondary_capture", "force")


@dataclass(frozen=True)
class NodeCall:
    """Where studies come from, and where results go."""

    spool: Path = setting(help="The node's own folder: what came, what is queued, and results.")
    title: str = setting("TUMORLENS", "Our AE title.", metavar="AET")
    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 for senders on other machines.")
    port: int = setting(11112, "Port to listen on; 0 takes any that is free.", least=0, most=65535)
    caller: tuple[str, ...] = setting((), "AE title that may send; repeatable.", metavar="AET")
    any_caller: bool = setting(False, "Let everybody send who reaches the port.")
    send_to: str | None = setting(None, "Where SEG and SR go by C-STORE.", metavar="TITLE@HOST:PORT")
    tls_cert: Path | None = setting(None, "PEM with our certificate: senders must speak TLS.")
    tls_key: Path | None = setting(None, "PEM with its key.")
    tls_client_ca: Path | None = setting(None, "PEM: senders need a certificate that one of these has signed.")
    send_ca: Path | None = setting(None, "PEM: results go by TLS to whom one of these certificates has signed.")
    orthanc: str | None = setting(None, "Open no port: fetch studies from this Orthanc.", metavar="URL")
    dicomweb: str | None = setting(None, "Open no port: fetch studies from these DICOMweb services.", metavar="URL")
    days: int = setting(1, "With --dicomweb: fetch studies of today and so many days before.", least=0)
    poll: float = setting(10.0, "Seconds between two looks at the archive.", least=0.1)
    verbose: bool = setting(False, "Print what other packages log, and where errors arise.", flag="-v --verbose")


def _node(values: Values) -> None:
    call, limits = fill(NodeCall, values), fill(NodeLimits, values)
    load_options = fill(LoadOptions, values)
    options = {name: values[name] for name in _RUN_OPTIONS if name in values}
    _check(call)
    title = check_title(call.title)
    peer = None if call.send_to is None else Peer.from_text(call.send_to)
    callers = tuple(check_title(caller) for caller in call.caller)
    from tumorlens.pipeline.services.spool import DICOM, open_spool

    def load() -> Pipeline:
        from tumorlens.pipeline.pipeline import Pipeline

        return Pipeline.load(**vars(load_options))

    def node(spool: Spool, destination: Destination | None) -> Node:
        from tumorlens.pipeline.services.dicom_node.node import Node

        return Node(spool, load, limits, destination, options)

    # What needs the extra, or a certificate, comes first: where it is missing, no spool is left behind.
    with _remarks_with_time():
        if url := call.orthanc or call.dicomweb:
            from tumorlens.pipeline.services.dicom_node.archive import Archive
            from tumorlens.pipeline.services.dicom_node.destinations import WebDestination
            from tumorlens.pipeline.services.dicom_node.puller import Puller

            archive = Archive(url, is_orthanc=call.orthanc is not None)
            with open_spool(call.spool, DICOM) as spool, node(spool, WebDestination(archive)) as fetching:
                puller = Puller(fetching.intake, archive, call.orthanc is not None, call.days, limits)
                say(f"tumorlens: fetching from {archive} (Ctrl-C stops it)")
                fetching.poll(puller, call.poll)
            return
        from tumorlens.pipeline.services.dicom_node.destinations import PeerDestination, client_tls
        from tumorlens.pipeline.services.dicom_node.receiver import Receiver, tls_of

        tls = None
        if call.tls_cert is not None and call.tls_key is not None:
            tls = tls_of(call.tls_cert, call.tls_key, call.tls_client_ca)
        destination = None
        if peer is not None:
            send_tls = client_tls(call.send_ca, call.tls_cert, call.tls_key) if call.send_ca is not None else None
            destination = PeerDestination(peer, title, send_tls)
        with open_spool(call.spool, DICOM) as spool, node(spool, destination) as receiving:
            receiver = Receiver(receiving.intake, limits, title, callers, tls)
            to = f", results to {peer}" if peer else ""
            receiving.serve(
                receiver,
                call.host,
                call.port,
                lambda port: say(f"tumorlens: {title} listens on {call.host}:{port}{to} (Ctrl-C stops it)"),
            )


def _check(call: NodeCall) -> None:
    """Raises:
    InputError: Options are missing, or contradict each other.
    """
    pulls = [name for name in ("orthanc", "dicomweb") if getattr(call, name) is not None]
    if len(pulls) == 2:
        raise InputError("give --orthanc or --dicomweb, not both")
    if call.days != NodeCall.days and call.dicomweb is None:
        raise InputError("--days needs --dicomweb")
    if call.poll != NodeCall.poll and not pulls:
        raise InputError("--poll needs --orthanc or --dicomweb")
    if pulls:
        of_the_port = ("caller", "any_caller", "send_to", "tls_cert", "tls_key", "tls_client_ca", "send_ca")
        useless = next((name for name in of_the_port if getattr(call, name)), None)
        if useless:
            option = f"--{useless.replace('_', '-')}"
            raise InputError(f"with --{pulls[0]} no port is opened, and results go back there; leave out {option}")
        return
    if bool(call.caller) == call.any_caller:
        raise InputError("name the AE titles that may send with --caller, or let everybody send with --any-caller")
    if (call.tls_cert is None) != (call.tls_key is None):
        raise InputError("give --tls-cert and --tls-key together")
    if call.tls_client_ca is not None and call.tls_cert is None:
        raise InputError("--tls-client-ca needs --tls-cert and --tls-key")
    if call.send_ca is not None and call.send_to is None:
        raise InputError("--send-ca needs --send-to")


@contextmanager
def _remarks_with_time() -> Iterator[None]:
    """Print our own remarks with the time, and faults in threads of other packages as one line."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger, hook = logging.getLogger("tumorlens"), threading.excepthook
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Its text may quote a header, and so a patient.
    threading.excepthook = lambda fault: logger.error("a connection was ended by a fault (%s)", fault.exc_type.__name__)
    try:
        yield
    finally:
        threading.excepthook = hook
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


dicom_node = command(
    _node,
    NodeCall,
    NodeLimits,
    RunOptions,
    LoadOptions,
    leave_out=[each.name for each in fields(RunOptions) if each.name not in _RUN_OPTIONS],
    details="The best series of each study is run, as by `tumorlens run`.",
    examples="""
    tumorlens dicom-node --spool spool --caller ORTHANC --send-to ORTHANC@localhost:4242
    tumorlens dicom-node --spool spool --host 0.0.0.0 --caller PACS --tls-cert node.pem --tls-key node.key
    tumorlens dicom-node --spool spool --orthanc http://localhost:8042
    tumorlens dicom-node --spool spool --dicomweb https://pacs.example/dicom-web --days 2
    """,
)
