"""Warnings that are logged once, however often their reason occurs."""

import logging
import re

from proxy.protocol.bypass import Bypass

_log = logging.getLogger(__name__)

_MAX_WARNINGS = 256
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class LogOnce:
    def __init__(self) -> None:
        self._logged: set[tuple[str, str]] = set()

    def warn(self, reason: str, effect: str) -> None:
        if (reason, effect) not in self._logged and len(self._logged) < _MAX_WARNINGS:
            self._logged.add((reason, effect))
            _log.warning("%s: %s (logged once; counted in metrics)", effect, reason)


def reason_of(bypass: Bypass) -> str:
    """The reason, with the name of the field if it has one. Any other text there may be a client's."""
    return f"{bypass.reason} {bypass.field!r}" if _FIELD.fullmatch(bypass.field) else bypass.reason
