"""Structured logs on standard error: one event name and fields per line, as key=value or JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import IO, Any, Literal

from services.common.settings import SettingsModel

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_FIELDS = "tiercel_fields"


class LogSettings(SettingsModel):
    """The `[log]` section, shared by every service."""

    format: LogFormat = "text"
    """`text` for key=value lines, `json` for one object per line."""
    level: LogLevel = "info"
    """Least severe level that is written."""


class Logger:
    """Logs an event with fields: `log.info("endpoint_down", endpoint=name, reason=text)`."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: object) -> None:
        """Logs detail that only matters while looking for a fault."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Logs a normal change of state."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Logs something degraded that the process copes with."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Logs a failure somebody should look at."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException, **fields: object) -> None:
        """Logs a bug with its traceback."""
        self._logger.log(logging.ERROR, event, exc_info=error, extra={_FIELDS: fields})

    def _log(self, level: int, event: str, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: fields})


def get_logger(name: str) -> Logger:
    """Returns the logger of a module; call it with `__name__`."""
    return Logger(logging.getLogger(name))


def configure_logging(
    *,
    service: str,
    log_format: LogFormat = "text",
    level: LogLevel = "info",
    stream: IO[str] | None = None,
    worker: int = 0,
) -> None:
    """Sends every log record of the process to `stream` (standard error by default).

    Args:
        service: Name of the process, on every line.
        log_format: `text` for `key=value` lines, `json` for one object per line.
        level: Least severe level that is written.
        stream: Where to write; tests pass their own.
        worker: Number of the worker process, on every line; 0 if there are none.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = (_JsonFormatter if log_format == "json" else _TextFormatter)(service, worker)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The library repeats as a log line what the interceptor already counts and answers, and logs
    # each message that it cannot read with a traceback.
    for name in ("grpc._cython.cygrpc", "grpc._common"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _time_text(record: logging.LogRecord) -> str:
    stamp = datetime.fromtimestamp(record.created, tz=UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, _FIELDS, {})
    return dict(fields) if isinstance(fields, dict) else {}


class _TextFormatter(logging.Formatter):
    """`time LEVEL service event key=value ...`, quoted where a value holds spaces."""

    def __init__(self, service: str, worker: int) -> None:
        super().__init__()
        self._service = f"{service}/{worker}" if worker else service

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line, with the traceback below it if there is one."""
        head = f"{_time_text(record)} {record.levelname:<7} {self._service} {record.getMessage()}"
        pairs = [f"{key}={_quoted(value)}" for key, value in _fields(record).items()]
        line = " ".join([head, *pairs])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    """One JSON object per line; fields of the event beside `time`, `level`, `service`, `event`."""

    def __init__(self, service: str, worker: int) -> None:
        super().__init__()
        self._head: dict[str, Any] = {"service": service} | ({"worker": worker} if worker else {})

    def format(self, record: logging.LogRecord) -> str:
        """Returns one JSON object; values JSON does not know become text."""
        entry: dict[str, Any] = {
            "time": _time_text(record),
            "level": record.levelname.lower(),
            **self._head,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _quoted(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    needs_quotes = not text or not text.isprintable() or any(c in text for c in ' "=')
    return json.dumps(text) if needs_quotes else text
