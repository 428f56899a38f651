"""Where results go: a DICOM application by C-STORE, or an archive by STOW-RS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tumorlens.data.errors import reason_of
from tumorlens.pipeline.services.dicom_node.settings import Peer

if TYPE_CHECKING:
    from tumorlens.pipeline.services.dicom_node.archive import Archive

_STORED = (0x0000, 0xB000, 0xB006, 0xB007)  # PS3.4 table B.2-1: success, and stored with a remark
_HANDSHAKE_S = 15.0


class NotSentError(Exception):
    """Results could not be sent. The message says why in words that follow a colon."""


class Destination(Protocol):
    """Takes DICOM files. To send a file twice does no harm: it is the same object."""

    def send(self, files: Sequence[Path]) -> None:
        """Send files, all or, with an error, perhaps a part of them.

        Raises:
            NotSentError: The other side cannot be reached, or refuses.
        """

    def __str__(self) -> str: ...


class PeerDestination:
    """A DICOM application that takes objects by C-STORE."""

    def __init__(self, peer: Peer, title: str, tls: ssl.SSLContext | None = None) -> None:
        """Args:
        peer: The application.
        title: Our own AE title.
        tls: From `client_tls`; None speaks in the clear.
        """
        self._peer, self._title, self._tls = peer, title, tls

    def __str__(self) -> str:
        return str(self._peer)

    def send(self, files: Sequence[Path]) -> None:
        """Send files in one association.

        Raises:
            NotSentError: The application cannot be reached, or refuses.
        """
        import pydicom
        from pydicom.uid import ImplicitVRLittleEndian
        from pynetdicom import build_context

        from tumorlens.pipeline.services.dicom_node.entity import new_entity

        datasets = [pydicom.dcmread(file) for file in files]
        entity = new_entity(self._title)
        kinds = dict.fromkeys((ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in datasets)
        # Every application knows the second syntax (PS3.5 section 10.1); in a context of its own it is second choice.
        contexts = [build_context(uid, each) for uid, syntax in kinds for each in (syntax, ImplicitVRLittleEndian)]
        tls = (self._tls, self._peer.host) if self._tls else None
        association = entity.associate(
            self._peer.host, self._peer.port, contexts=contexts, ae_title=self._peer.title, tls_args=tls
        )
        if not association.is_established:
            refused = "it refuses the association" if association.is_rejected else self._silence()
            raise NotSentError(refused)
        try:
            for dataset in datasets:
                self._store(association, dataset)
        finally:
            association.release()

    def _silence(self) -> str:
        """Why there is no association. pynetdicom keeps what became of a handshake to itself, so there is another."""
        from tumorlens.pipeline.services.dicom_node.entity import tls_problem

        if self._tls is not None:
            try:
                with socket.create_connection((self._peer.host, self._peer.port), _HANDSHAKE_S) as connection:
                    self._tls.wrap_socket(connection, server_hostname=self._peer.host).close()
            except ssl.SSLError as error:
                return tls_problem(error)
            except OSError:
                pass
        return "it does not answer"

    def _store(self, association: Any, dataset: Any) -> None:
        what = f"{dataset.Modality} object"
        try:
            status = association.send_c_store(dataset).get("Status")
        except ValueError:
            raise NotSentError(f"it does not take a {what}") from None
        except RuntimeError:
            raise NotSentError("it has ended the association") from None
        if status is None:
            raise NotSentError(f"it did not answer to a {what}")
        if status not in _STORED:
            raise NotSentError(f"it refuses a {what} with the status 0x{status:04X}")


class WebDestination:
    """An archive that takes objects by STOW-RS."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def __str__(self) -> str:
        return str(self._archive)

    def send(self, files: Sequence[Path]) -> None:
        """Send files in one request.

        Raises:
            NotSentError: The archive cannot be reached, or refuses.
        """
        import pydicom
        from requests import RequestException

        try:
            answer = self._archive.client.store_instances([pydicom.dcmread(file) for file in files])
        except RequestException as error:
            raise NotSentError(self._archive.problem(error)) from None
        except (ValueError, TypeError, OSError) as error:
            raise NotSentError(f"its answer cannot be read ({type(error).__name__})") from None
        if answer.get("FailedSOPSequence"):
            raise NotSentError(f"it refuses {len(answer.FailedSOPSequence)} of {len(files)} objects")


def client_tls(ca: Path, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """The TLS side of a client.

    Args:
        ca: PEM with the certificates that may sign that of the server.
        certificate: PEM with our own certificate, if the server wants one.
        key: PEM with its key.

    Raises:
        InputError: A file cannot be read.
    """
    from tumorlens.data.errors import InputError

    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{ca}: certificates cannot be read ({reason_of(error)})") from None
    return context
