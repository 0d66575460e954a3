"""What the server logs: lines for people, or JSON objects for a machine; never a payload.

An error's words may quote what a caller sent, so of an exception its types and places are logged;
at level `debug` its words too.
"""

import json
import logging
import traceback
from datetime import UTC, datetime

FORMATS = ("text", "json")
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Text(logging.Formatter):
    """One line, and the places of an exception below it."""

    def formatException(self, ei: object) -> str:
        error = ei[1] if isinstance(ei, tuple) else None
        return _places(error) if isinstance(error, BaseException) else ""


class _Json(logging.Formatter):
    """One object: at, level, logger, message and, of an exception, error."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told = {"at": at, "level": record.levelname.lower(), "logger": record.name}
        told["message"] = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            told["error"] = _places(record.exc_info[1])
        return json.dumps(told)


def configure(level: str, form: str) -> None:
    """Log to standard error from this level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text(_LINE))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _places(error: BaseException) -> str:
    """The traceback of an error and what caused it, without their words."""
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        return "".join(traceback.format_exception(error)).rstrip()
    found: list[str] = []
    following: BaseException | None = error
    while following is not None and len(found) < 10:
        places = "".join(traceback.format_tb(following.__traceback__))
        found.append(f"Traceback (most recent call last):\n{places}{type(following).__name__}")
        following = following.__cause__ or following.__context__
    return "\nwhile another was handled:\n".join(found)
