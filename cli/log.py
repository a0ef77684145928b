"""The log: structlog on standard error, as text for people or JSON for machines.

Imported by the daemon only; structlog takes seconds to import on a busy host.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class LastingStream:
    """A stream whose errors end nobody: a full disk or a reader that is gone must not stop archiving.

    Nobody could be told of them; what is written when there is room again is there.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def configure_log(*, form: str, verbosity: int, is_coloured: bool) -> FilteringBoundLogger:
    """Set the log up and return the logger of the whole process."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=is_coloured, pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbosity else logging.INFO),
        # It writes and flushes, and asks no more of a stream.
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", LastingStream(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    # APScheduler speaks of every run on its own; what matters of it, the timetable reports.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger
