"""The host's signing key as files: the one in use, the next one until its epoch is made, old ones aside.

No step writes over a key or removes the last name of one, so a kill between two loses none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cli.key_files import read_signing_key, remove_staged, write_secret
from pitr.pipeline.sign import Signer
from storage.synced_file import sync_directory


@dataclass(frozen=True, slots=True)
class HostKeyFiles:
    """``path`` is the configured name; beside it lies what is on its way in or out."""

    path: Path

    @property
    def next_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.next")

    def old_path(self, epoch: int) -> Path:
        """Return where the key of a left epoch is kept."""
        return self.path.with_name(f"{self.path.name}.epoch-{epoch}")

    def read_or_make(self, random: Callable[[int], bytes]) -> Signer:
        """Return the key in use; on a new host it is made."""
        return _read(self.path) or _make(self.path, random)

    def read_next(self) -> Signer | None:
        """Return the key that a run before this one has made, if it did not come to use it."""
        return _read(self.next_path)

    def make_next(self, random: Callable[[int], bytes]) -> Signer:
        """Make the key of the next epoch beside the one in use."""
        return _make(self.next_path, random)

    def take_next(self, signer: Signer, left_epoch: int) -> None:
        """Put the next key into use, if it is ``signer``; the key of ``left_epoch`` stays under another name.

        May be repeated; does nothing where no key waits.
        """
        staged = _read(self.next_path)
        if staged is None or staged.public != signer.public:
            return
        if read_signing_key(self.path).public != signer.public:
            with suppress(FileExistsError):  # put there by a run that was killed before the next step
                os.link(self.path, self._free_old_path(left_epoch))
            sync_directory(self.path.parent)
        # Over a key that has another name by now.
        self.next_path.replace(self.path)
        sync_directory(self.path.parent)

    def _free_old_path(self, epoch: int) -> Path:
        """Return the name for the key in use, which another key may have taken."""
        path = self.old_path(epoch)
        number = 1
        while path.exists() and not path.samefile(self.path):
            number += 1
            path = self.old_path(epoch).with_name(f"{self.old_path(epoch).name}-{number}")
        return path


def _read(path: Path) -> Signer | None:
    if not path.exists():
        return None
    remove_staged(path)
    return read_signing_key(path)


def _make(path: Path, random: Callable[[int], bytes]) -> Signer:
    signer = Signer.generate(random)
    write_secret(path, signer.text() + "\n")
    return signer
