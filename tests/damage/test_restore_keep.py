"""An old directory is kept where it is right, and nothing of it is believed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_small_backup import MIB, SmallBackup, make_small_backup

from pitr.pipeline.crc import crc32c
from pitr.pipeline.pack_writer import FileStatus
from pitr.restore_estimate import DeltaEstimate, estimate_delta
from pitr.restore_files import ChainLink, FileRestorer, RestoredFiles
from pitr.restore_keep import OldDirectory

LARGE = "base/5/16384"
SPACE_OID = 16385
HOLE_BYTES = 3 * MIB


@pytest.fixture(scope="module")
def backup() -> SmallBackup:
    return make_small_backup()


@dataclass
class Places:
    """An old directory with its tablespace, and where the new one goes."""

    folder: Path

    @property
    def old(self) -> OldDirectory:
        return OldDirectory(self.folder / "old", {SPACE_OID: self.folder / "old space"})

    def path(self, name: str, *, of: str = "old") -> Path:
        prefix = f"pg_tblspc/{SPACE_OID}/"
        if name.startswith(prefix):
            return self.folder / f"{of} space" / name.removeprefix(prefix)
        return self.folder / of / name


@pytest.fixture
def places(backup: SmallBackup, tmp_path: Path) -> Places:
    """An old directory that is exactly what the backup has."""
    made = Places(tmp_path)
    for path, content in backup.contents.items():
        made.path(path).parent.mkdir(parents=True, exist_ok=True)
        made.path(path).write_bytes(content)
    return made


def link(backup: SmallBackup) -> ChainLink:
    return ChainLink(backup.manifest(), backup.key)


def restore(backup: SmallBackup, places: Places, hole_bytes: int = HOLE_BYTES) -> RestoredFiles:
    """Restore over the old directory; assert that every byte is right and that the old one is as it was."""
    for name in ("new", "new space"):
        (places.folder / name).mkdir()
    restorer = FileRestorer(
        backup.store,
        [link(backup)],
        places.folder / "new",
        {SPACE_OID: places.folder / "new space"},
        places.folder / "notes",
        on_file=lambda _file: None,
        on_progress=lambda _progress: None,
        patience_s=0.05,
        old=places.old,
    )
    done = restorer.run()
    for path, content in backup.contents.items():
        assert places.path(path, of="new").read_bytes() == content, path
    assert done.size_bytes == written_bytes(backup, hole_bytes)
    return done


def written_bytes(backup: SmallBackup, hole_bytes: int = HOLE_BYTES) -> int:
    """Return the bytes that extents hold: all but the hole."""
    return sum(map(len, backup.contents.values())) - hole_bytes


def estimate(backup: SmallBackup, places: Places) -> DeltaEstimate:
    return estimate_delta(backup.store, [link(backup)], places.old, places.folder / "estimate")


def packs_bytes(backup: SmallBackup) -> int:
    return sum(stored.size_bytes for stored in backup.packs)


def test_an_unchanged_directory_is_kept_and_next_to_nothing_is_fetched(
    backup: SmallBackup, places: Places
) -> None:
    expected = estimate(backup, places)
    done = restore(backup, places)
    assert done.kept_bytes == done.size_bytes == expected.kept_bytes
    assert done.fetched_bytes == expected.fetched_bytes < packs_bytes(backup) // 100


def test_times_and_sizes_decide_nothing(backup: SmallBackup, places: Places) -> None:
    path = places.path(LARGE)
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[6 * MIB + 17] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = restore(backup, places)
    # The frame with the other byte, and no other one.
    assert done.size_bytes - done.kept_bytes == MIB
    assert MIB < done.fetched_bytes < 2 * MIB


def forge(content: bytearray, change: int, patch: int) -> None:
    """Flip a bit at ``change`` and choose four bytes at ``patch`` so that the CRC-32C stays what it was."""
    wanted = crc32c(bytes(content))
    content[change] ^= 1
    content[patch : patch + 4] = bytes(4)
    base = crc32c(bytes(content))
    basis: dict[int, tuple[int, int]] = {}
    for bit in range(32):
        content[patch : patch + 4] = (1 << bit).to_bytes(4, "little")
        difference, bits = crc32c(bytes(content)) ^ base, 1 << bit
        while difference and difference.bit_length() in basis:
            other, with_bits = basis[difference.bit_length()]
            difference, bits = difference ^ other, bits ^ with_bits
        basis[difference.bit_length()] = difference, bits
    left, chosen = wanted ^ base, 0
    while left:
        difference, bits = basis[left.bit_length()]
        left, chosen = left ^ difference, chosen ^ bits
    content[patch : patch + 4] = chosen.to_bytes(4, "little")
    assert crc32c(bytes(content)) == wanted


def test_bytes_with_a_forged_crc_are_not_kept(backup: SmallBackup, places: Places) -> None:
    path = places.path(LARGE)
    content = bytearray(path.read_bytes())
    first = content[:MIB]
    forge(first, 1000, 2000)
    assert first != content[:MIB]
    content[:MIB] = first
    path.write_bytes(content)
    # The index alone cannot tell.
    assert estimate(backup, places).kept_bytes == written_bytes(backup)
    done = restore(backup, places)
    assert MIB < done.size_bytes - done.kept_bytes < done.size_bytes


def control_file(text: bytes) -> bytes:
    """Return a file that ends with its own CRC and zeros, as pg_control does."""
    content = text.ljust(292, b"\0")
    return (content + crc32c(content).to_bytes(4, "little")).ljust(8192, b"\0")


@pytest.mark.parametrize("of_old", [b"the one of the old cluster", b"the one of the BACKUP"])
def test_a_control_file_has_the_crc_of_any_other_and_is_not_kept(tmp_path: Path, of_old: bytes) -> None:
    backup, places = SmallBackup(), Places(tmp_path)
    backup.contents["pg_control"] = control_file(b"the one of the backup")
    writer = backup.writer(0)
    writer.add_small(b"pg_control", backup.contents["pg_control"], FileStatus(0o600, 0))
    writer.finish()
    (tmp_path / "old").mkdir()
    old = control_file(of_old)
    places.path("pg_control").write_bytes(old)
    assert crc32c(old) == crc32c(backup.contents["pg_control"])
    done = restore(backup, places, hole_bytes=0)
    assert done.kept_bytes == 0


def _rotten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:] = bytes(len(content))
    path.write_bytes(content)


def _short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("damage", [_rotten, _short, _pipe, _folder, _link, _unreadable, Path.unlink])
@pytest.mark.parametrize("name", [LARGE, "base/5/7", f"pg_tblspc/{SPACE_OID}/PG_17_202406281/9"])
def test_whatever_lies_in_a_files_place_the_right_bytes_come_out(
    backup: SmallBackup, places: Places, damage: Callable[[Path], None], name: str
) -> None:
    damage(places.path(name))
    done = restore(backup, places)
    assert 0 < done.kept_bytes < done.size_bytes


def test_an_old_directory_of_nothing_costs_no_more_than_none(backup: SmallBackup, places: Places) -> None:
    shutil.rmtree(places.folder / "old")
    (places.folder / "old").mkdir()
    done = restore(backup, places)
    assert done.kept_bytes <= 3 * MIB
    assert done.fetched_bytes <= packs_bytes(backup) + MIB
