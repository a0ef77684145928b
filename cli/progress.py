"""Progress: a bar on a terminal, else one line each ten seconds, both on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from cli.output import Output, format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 10.0


class ProgressReport:
    """Shows how far a long run is.  A context manager; ``update`` may be called from any thread."""

    def __init__(
        self, output: Output, *, clock: Callable[[], float] = time.monotonic, unit: str | None = None
    ) -> None:
        """``unit``: what is counted; None for bytes."""
        self._output = output
        self._unit = unit
        self._clock = clock
        self._begun = clock()
        self._last_line = self._begun
        self._step = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        wants_bar = output.progress == "auto" and output.stderr.isatty()
        if wants_bar and not output.is_quiet:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True) if unit is None else MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=output.console(),
                transient=True,
            )

    def __enter__(self) -> ProgressReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: str, done_bytes: int = 0, total_bytes: int | None = None) -> None:
        """Tell the step and how much of it is done."""
        if self._bar is not None:
            self._update_bar(step, done_bytes, total_bytes)
            return
        now = self._clock()
        is_new_step = step != self._step
        is_hidden = self._output.progress == "none"
        if is_hidden or not (is_new_step or now - self._last_line >= LINE_EVERY_S):
            return
        self._step, self._last_line = step, now
        amount = f" {self._amount(done_bytes)}" if done_bytes else ""
        if total_bytes and done_bytes:
            amount += f" of {self._amount(total_bytes)}"
        self._output.note(f"{step}{amount} ({format_seconds(now - self._begun)})")

    def _amount(self, count: int) -> str:
        return format_bytes(count) if self._unit is None else f"{count:,} {self._unit}"

    def _update_bar(self, step: str, done_bytes: int, total_bytes: int | None) -> None:
        assert self._bar is not None
        if self._task is None or step != self._step:
            self._step = step
            self._task = self._bar.add_task(step, total=total_bytes)
        self._bar.update(self._task, completed=done_bytes, total=total_bytes)
