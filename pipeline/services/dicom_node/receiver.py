"""Verification and Storage SCP: objects from the network into the `Intake`.

pynetdicom speaks the protocol. What it leaves open is closed here: it would read messages of any length into memory,
and let all senders wait for the TLS handshake of one.
"""

from __future__ import annotations

import logging
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined] # made when the module is loaded
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from tumorlens.data.errors import InputError, one_line
from tumorlens.pipeline.services.dicom_node.entity import new_entity, tls_problem
from tumorlens.pipeline.services.dicom_node.intake import BrokenError, Intake, study_of
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits

# All that `data.dicom.decoding` reads, lossless ones first: a sender that offers several gets the first.
SYNTAXES = (
    "1.2.840.10008.1.2.1",  # explicit little endian
    "1.2.840.10008.1.2",  # implicit little endian
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.70",  # JPEG, lossless
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS, lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless
    "1.2.840.10008.1.2.4.201",  # HTJ2K, lossless
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.2",  # explicit big endian
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
    "1.2.840.10008.1.2.4.50",
)
SUCCESS, FULL, ANOTHER, BROKEN = 0x0000, 0xA700, 0xA900, 0xC000  # PS3.4 table B.2-1
_LONGEST_PDU = 2**17  # bytes that we ask for
_LONGEST_READ = 2**20  # some senders do not listen, and a request with many contexts is long
_IS_COMMAND, _IS_LAST = 1, 2  # PS3.8 annex E.2
_log = logging.getLogger(__name__)


@dataclass
class _Traffic:
    """What comes through one association.

    Attributes:
        n_bytes: Bytes of the message that is on its way.
        is_whole: Whether none is.
        study: The last object's study.
        begun: When it began, monotonic.
        last: When something came last.
        studies: All studies with objects in it.
        lossy: Those of which an object was refused; empty for an object whose study is not known.
    """

    n_bytes: int = 0
    is_whole: bool = True
    study: str = ""
    begun: float = field(default_factory=time.monotonic)
    last: float = 0.0
    studies: set[str] = field(default_factory=set)
    lossy: set[str] = field(default_factory=set)


class Receiver:
    """The server. It listens from `start` to `stop`."""

    def __init__(
        self,
        intake: Intake,
        limits: NodeLimits,
        title: str,
        callers: tuple[str, ...],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Args:
        intake: Where objects go.
        limits: Of associations and objects.
        title: Our AE title.
        callers: AE titles that may call; all if empty.
        tls: From `tls_of`; None speaks in the clear.
        """
        self._intake, self._limits, self._tls = intake, limits, tls
        self._ae = new_entity(title, limits.idle_timeout)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(callers)
        self._ae.maximum_associations = limits.associations
        self._ae.maximum_pdu_size = _LONGEST_PDU
        self._ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            # A sender whose reports are refused may give up the whole study; `Intake.store` drops them.
            self._ae.add_supported_context(context.abstract_syntax or "", list(SYNTAXES))

    def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            InputError: The host is not known, or the port cannot be used.
        """
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_PDU_RECV, self._limit),
            (evt.EVT_REJECTED, self._say_rejected),
        ]
        try:
            server: Any = self._ae.make_server(
                (host, port),
                ssl_context=self._tls,
                evt_handlers=handlers,
                server_class=_Server,
                request_handler=_Handler,
            )
        except (OSError, UnicodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"port {port} of {host} cannot be used ({reason}); choose another with --port") from None
        server.on_end = self._end
        self._intake.under_way = lambda: {association.traffic.study for association in server.active_associations}
        self._ae._servers.append(server)  # as `AE.start_server` does, which knows no other class of servers
        server.start()
        return int(server.server_address[1])

    def stop(self) -> None:
        """Stop listening, and end the associations. Objects that were not answered come again."""
        self._ae.shutdown()

    def _limit(self, event: Any) -> None:
        """Cut off what an object has over its limit, before it takes memory; `_store` then refuses it."""
        if not isinstance(event.pdu, P_DATA_TF):
            return
        traffic = event.assoc.traffic
        traffic.last = time.monotonic()
        for item in event.pdu.presentation_data_value_items:
            content = item.presentation_data_value or b"\0"
            if traffic.is_whole:
                traffic.n_bytes = 0
            traffic.n_bytes += len(content) - 1
            traffic.is_whole = content[0] & (_IS_COMMAND | _IS_LAST) == _IS_LAST
            if traffic.n_bytes > self._limits.object_bytes:
                item.presentation_data_value = content[:1]

    def _store(self, event: Any) -> int:
        status = self._take(event)
        if status != SUCCESS:
            study = study_of(BytesIO(event.encoded_dataset())) or event.assoc.traffic.study
            event.assoc.traffic.lossy.add(study)
            self._intake.note_loss(study)
        return status

    def _end(self, association: Any) -> None:
        """Note which studies are whole, however an association has ended."""
        traffic = association.traffic
        if traffic.studies and not association.is_released:
            text = "%s: the association was cut off; its studies may be incomplete: %s"
            _log.warning(text, _name(association), ", ".join(sorted(traffic.studies)))
        for study in traffic.studies:
            if association.is_released and not traffic.lossy & {study, ""}:
                self._intake.note_end(study, traffic.begun)
            else:
                self._intake.note_loss(study, traffic.last)

    def _take(self, event: Any) -> int:
        traffic = event.assoc.traffic
        caller = _name(event.assoc)
        if traffic.n_bytes > self._limits.object_bytes:
            _log.warning("%s: an object of more than %d MB was refused (--object-mb)", caller, self._limits.object_mb)
            return FULL
        instance = str(event.request.AffectedSOPInstanceUID)
        try:
            study = self._intake.store(event.encoded_dataset(), instance)
        except InputError as error:  # the disk or the queue is full
            _log.warning("%s: an object was refused: %s", caller, error)
            return FULL
        except OSError as error:
            _log.warning("%s: an object was refused: it cannot be written (%s)", caller, error.strerror)
            return FULL
        except BrokenError as error:
            return ANOTHER if error.is_another else BROKEN
        except Exception as error:  # a fault of ours; its text may quote a header, and so a patient
            _log.error("internal error, please report it (%s)", type(error).__name__)
            return BROKEN
        traffic.study = study or traffic.study
        traffic.studies |= {study} - {""}
        if study in traffic.lossy:  # of a study that is open only now
            self._intake.note_loss(study)
        return SUCCESS

    def _say_rejected(self, event: Any) -> None:
        titles = self._ae.require_calling_aet
        if titles and event.assoc.requestor.ae_title.strip() not in titles:
            why = "its title is not one of --caller"
        elif event.assoc.requestor.primitive.called_ae_title.strip() != self._ae.ae_title.strip():
            why = f"it calls another title than {self._ae.ae_title.strip()} (--title)"
        else:
            why = f"there are {self._limits.associations} associations already (--associations)"
        _log.warning("%s was refused: %s", _name(event.assoc), why)


def tls_of(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """The TLS side of a server.

    Args:
        certificate: PEM with the certificate, and those between it and the root.
        key: PEM with its key.
        client_ca: PEM with the certificates that may sign those of senders; None asks for none.

    Raises:
        InputError: A file cannot be read, or the key is of another certificate.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise InputError(f"{certificate}, {key}: not a PEM certificate with its key ({_reason(error)})") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise InputError(f"{client_ca}: not a PEM with certificates ({_reason(error)})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)


def _name(assoc: Any) -> str:
    """The sender, for the log."""
    return f"{one_line(assoc.requestor.ae_title.strip())}@{assoc.requestor.address}"


class _Server(ThreadedAssociationServer):
    """A server that leaves the TLS handshake to the thread of the connection."""

    ae: AE
    request_queue_size = 64
    on_end: Callable[[Any], None]  # called with each association, in its thread, when it has ended

    def start(self) -> None:
        """Listen in a thread."""
        import threading

        threading.Thread(target=self.serve_forever, name="dicom", daemon=True).start()

    def get_request(self) -> Any:
        """The next connection, which has yet to shake hands."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        connection.settimeout(self.ae.network_timeout)
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is dealt with: those that never ask for an association do not pile up."""
        return len(self.active_associations) < 2 * self.ae.maximum_associations + 8

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say which connection failed, and why."""
        error = sys.exc_info()[1]
        why = f": {tls_problem(error)}" if isinstance(error, ssl.SSLError) else ""
        _log.warning("%s: the connection failed before an association was asked for%s", client_address[0], why)


class _Handler(RequestHandler):
    """A connection on which no message is longer than any should be."""

    def handle(self) -> None:
        """Shake hands, then let pynetdicom go on."""
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().handle()

    def _create_association(self) -> Any:
        association: Any = super()._create_association()
        association.traffic = _Traffic()
        run = association.run

        def run_to_the_end() -> None:
            try:
                run()
            finally:  # no event tells of all ends: a fault in the thread has none
                association._server.on_end(association)

        association.run = run_to_the_end
        connection = association.dul.socket
        receive = connection.recv

        def receive_some(n_bytes: int) -> bytearray:
            if n_bytes > _LONGEST_READ:
                raise OSError("the message is too long")  # pynetdicom then closes the connection
            return receive(n_bytes)

        connection.recv = receive_some
        return association
