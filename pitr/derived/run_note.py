"""The note of a run on disk: what a kill interrupted goes on as the same run, and raises no epoch twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pitr.errors import PitrError
from storage.synced_file import replace_synced

_NOTE_BYTES_MAX: Final = 4096
_RUN_BYTES: Final = 8


class RunNote:
    """One file for each site; whoever calls sees to it that only one process has it."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def begin(self, digest: str, random: Callable[[int], bytes]) -> str:
        """Return the run's name: the unfinished one's with the same plan, else a new one, noted on disk.

        Raises PitrError if it cannot be noted: nothing must be done then.
        """
        held = self._read()
        if held is not None and held[0] == digest:
            return held[1]
        run = random(_RUN_BYTES).hex()
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_synced(self._path, json.dumps({"plan": digest, "run": run}).encode())
        except OSError as error:
            raise PitrError(
                f"the run cannot be noted in {self._path}",
                detail=error.strerror or str(error),
                hint="check the directory, its owner and the disk; nothing was changed",
            ) from error
        return run

    @property
    def is_unfinished(self) -> bool:
        """Tell whether a run was begun and not ended."""
        return self._read() is not None

    def end(self) -> None:
        """Forget the run: it is done.  May be repeated."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[str, str] | None:
        """Return plan and run; what cannot be read is no run, and a new one costs one more epoch."""
        try:
            with self._path.open("rb") as file:
                fields = json.loads(file.read(_NOTE_BYTES_MAX))
            plan, run = fields["plan"], fields["run"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (plan, run) if isinstance(plan, str) and isinstance(run, str) else None
