"""pynetdicom, with its log off: it prints what it cannot parse, which may name a patient."""

from __future__ import annotations

import logging

from pynetdicom import AE, _config

_ANSWERS_S, _CONNECT_S = 60.0, 15.0


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
