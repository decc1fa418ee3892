"""Logs as lines of JSON, each with the request it belongs to; no secrets, and no user unless the settings say so."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

REQUEST: Final[ContextVar[str]] = ContextVar("request_id", default="")
ACCESS: Final = logging.getLogger("reloop.access")


class Lines(logging.Formatter):
    """A record as one line of JSON: at, level, logger, message, request_id, and what `extra={"said": {...}}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.msg:
            line["message"] = record.getMessage()
        if request_id := REQUEST.get():
            line["request_id"] = request_id
        line |= getattr(record, "said", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def install(level: int = logging.INFO) -> None:
    """Send all logs of this process to standard output as lines of JSON."""
    # What no line tells is not looked up for each (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    setattr(logging, "_srcfile", None)  # noqa: B010 - its name is private to type checkers, its use is documented
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
