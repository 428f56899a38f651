"""pynetdicom, with its log off: it prints what it cannot parse, which may name a patient."""

from __future__ import annotations

import logging
import ssl

from pynetdicom import AE, _config

_ANSWERS_S, _CONNECT_S = 60.0, 15.0
_TLS_PROBLEMS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not accept our certificate",
}


def new_entity(title: str, timeout: float = _ANSWERS_S) -> AE:
    """An application entity.

    Args:
        title: Its AE title.
        timeout: Seconds of silence after which it ends an association.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    entity = AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout
    entity.connection_timeout = _CONNECT_S
    return entity


def tls_problem(error: ssl.SSLError) -> str:
    """Why a handshake failed, in words about the other side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    return _TLS_PROBLEMS.get(error.reason, f"TLS fails ({(error.reason or 'no reason').lower().replace('_', ' ')})")
