"""Structured logs: `log.info("dedup done", extra={"sandbox_id": …})` as key=value text or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

from medes.limits import LOG_FIELD_CHARS_MAX

# What every LogRecord has; whatever else it carries came in through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields a caller gave in `extra`."""
    return {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, extra fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        row.update(extra_fields(record))
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


class TextFormatter(logging.Formatter):
    """Human-readable lines; values with blanks or control characters are quoted, so that a line stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            _timestamp(record),
            record.levelname.lower().ljust(7),
            record.getMessage().replace("\n", "\\n"),
        ]
        for key, value in extra_fields(record).items():
            text = str(value)[:LOG_FIELD_CHARS_MAX]
            parts.append(
                f"{key}={text if text.isprintable() and ' ' not in text and text else json.dumps(text)}"
            )
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def setup_logs(level: str = "info", *, as_json: bool = False, stream: TextIO | None = None) -> None:
    """Sends the root logger to `stream` (standard error). Replaces handlers of an earlier call."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # grpc.aio logs every refused poll at debug and nothing an operator needs.
    logging.getLogger("grpc").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
