"""Output: results to standard output, everything else to standard error; what a terminal obeys is neither.

With ``--json`` standard output gets exactly one object, also when the command fails:
``{"schema": "pitr/1", "command", "ok", "data", "warnings", "error"}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from cli.errors import Failure
from verifiers.plain_text import plain_line, plain_text

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "pitr/1"
WARNINGS_MAX = 1000


@dataclass(slots=True)
class Output:
    """Where one command writes.  Colour and bars only where a person looks."""

    command: str = ""
    is_json: bool = False
    is_quiet: bool = False
    color: str = "auto"
    progress: str = "auto"
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    warnings: list[str] = field(default_factory=list)

    def line(self, text: str = "", *, head: str = "", color: str = "") -> None:
        """Write one line of the result; nothing with ``--json``.

        ``head`` stands before it, in a colour (ECMA-48, SGR) where colour may be written.
        """
        if not self.is_json:
            if head and self.is_coloured(self.stdout):
                head = f"\x1b[{color}m{head}\x1b[0m"
            self.stdout.write(head + plain_text(text) + "\n")

    def flush(self) -> None:
        """See that what was written reaches its reader, even if this process is killed next."""
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Tell what is going on, on standard error; nothing when quiet."""
        if not self.is_quiet:
            self.stderr.write(plain_text(text) + "\n")
            self.stderr.flush()

    def warn(self, text: str) -> None:
        """Say and keep a warning; the result repeats it."""
        if len(self.warnings) < WARNINGS_MAX:
            self.warnings.append(text)
        self.stderr.write(f"warning: {plain_text(text)}\n")
        self.stderr.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
        """Write rows under headings, in plain columns that other programs can cut."""
        if self.is_json:
            return
        lines = [[plain_line(cell) for cell in row] for row in rows]
        if not lines:
            self.line(empty)
            return
        widths = [max(len(name), *(len(row[at]) for row in lines)) for at, name in enumerate(columns)]
        for row in ([name.upper() for name in columns], *lines):
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def finish(self, result: Mapping[str, object]) -> None:
        """End a command that did its work; with ``--json``, write the one object."""
        self._write_json(ok=True, result=result, failure=None)
        self.stdout.flush()

    def fail(self, failure: Failure, result: Mapping[str, object] | None = None) -> None:
        """End a command that failed: three lines on standard error, the object with ``--json``."""
        # Where standard output is full, or nobody reads it any more, the error is told all the same.
        with suppress(OSError):
            self._write_json(ok=False, result=result or {}, failure=failure)
            self.stdout.flush()
        first, *rest = map(plain_text, failure.lines())
        head, colon, text = first.partition(": ")
        marked = f"\x1b[1;31m{head}\x1b[0m" if self.is_coloured(self.stderr) else head
        self.stderr.write("\n".join([marked + colon + text, *rest]) + "\n")
        self.stderr.flush()

    def is_coloured(self, stream: TextIO) -> bool:
        """Tell whether colour may be written to ``stream`` (https://no-color.org)."""
        if self.color != "auto":
            return self.color == "always"
        return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()

    def is_interactive(self) -> bool:
        """Tell whether a person can be asked."""
        return sys.stdin is not None and sys.stdin.isatty() and self.stderr.isatty()

    def console(self, *, on_stderr: bool = True) -> Console:
        """Return a rich console that keeps to the choices made for this command."""
        from rich.console import Console

        stream = self.stderr if on_stderr else self.stdout
        is_coloured = self.is_coloured(stream)
        return Console(
            file=stream,
            no_color=not is_coloured,
            force_terminal=None if stream.isatty() else False,
            highlight=False,
            width=None if stream.isatty() else 110,
        )

    def _write_json(self, *, ok: bool, result: Mapping[str, object], failure: Failure | None) -> None:
        if not self.is_json:
            return
        error = None
        if failure is not None:
            error = {
                "code": failure.code,
                "exit": int(failure.exit_code),
                "message": failure.message,
                "why": failure.why,
                "next": failure.next,
            }
        json.dump(
            {
                "schema": SCHEMA,
                "command": self.command,
                "ok": ok,
                "data": result,
                "warnings": self.warnings,
                "error": error,
            },
            self.stdout,
            default=str,
        )
        self.stdout.write("\n")


def format_bytes(size_bytes: int) -> str:
    """Return a size for people: ``16.0 MiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_seconds(duration_s: float) -> str:
    """Return a duration for people: ``0.8 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    if duration_s < 3600:
        return f"{int(duration_s) // 60} min {int(duration_s) % 60:02d} s"
    if duration_s < 86_400:
        return f"{int(duration_s) // 3600} h {int(duration_s) % 3600 // 60:02d} min"
    return f"{int(duration_s) // 86_400} d {int(duration_s) % 86_400 // 3600:02d} h"
