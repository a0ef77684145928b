"""Whole chains without a server: random histories of files, backed up in full and by what changed."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fix_chain import PAGE_BYTES, STATUS, ChainMaker, LayerMaker, page
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr.pipeline.crc import crc32c
from pitr.restore_estimate import estimate_delta
from pitr.restore_files import RestoredFiles
from pitr.restore_keep import OldDirectory

# Some larger than a frame of 128 pages, and with small packs larger than a pack.
_PAGES_MAX = 300


@dataclass
class FileModel:
    """A file of now, and what an incremental backup knows of it since the last one."""

    pages: list[int]
    is_new: bool = True
    limit: int = 1 << 30
    changed: set[int] = field(default_factory=set)
    # Which backup gave each page; None where nothing but zeros was ever written.
    givers: list[int | None] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        return b"".join(map(page, self.pages))


class History:
    """A cluster's files, changed at random, and the chain of their backups."""

    def __init__(self, seed: int, pack_bytes: int) -> None:
        self.random = random.Random(seed)
        self.pack_bytes = pack_bytes
        self.chain = ChainMaker()
        self.files: dict[str, FileModel] = {}
        # What the files were at each backup.
        self.past: list[dict[str, bytes]] = []
        self._pages = 0
        self._names = 0
        for _ in range(self.random.randint(1, 8)):
            self._create()

    def live(self) -> None:
        """Let something happen."""
        for _ in range(self.random.randint(0, 8)):
            step = self.random.choice(
                [self._write] * 4 + [self._truncate, self._grow, self._drop, self._create]
            )
            step()

    def back_up(self) -> None:
        """Take the next backup of the chain."""
        layer = self.chain.layer(pack_bytes=self.pack_bytes)
        depth = layer.depth
        for path, file in self.files.items():
            part = self.random.randint(1, 2)
            size = len(file.pages)
            if file.is_new or self.random.random() < 0.1:
                layer.add_whole(path, file.content, part)
                # Frames of zeros are left out; those that are not are written with the zeros in them.
                file.givers = [depth] * size
                if size * PAGE_BYTES > 512 * 1024:
                    for start in range(0, size, 128):
                        if not any(file.pages[start : start + 128]):
                            file.givers[start : start + 128] = [None] * len(file.givers[start : start + 128])
            else:
                self._add_changed(layer, path, file, part)
            file.is_new, file.limit, file.changed = False, 1 << 30, set()
        self.chain.add(layer)
        self.past.append({path: file.content for path, file in self.files.items()})

    def _add_changed(self, layer: LayerMaker, path: str, file: FileModel, part: int) -> None:
        size = len(file.pages)
        kept = min(size, file.limit)
        blocks = sorted(block for block in file.changed if block < size)
        layer.add_changed(
            path,
            blocks,
            [page(file.pages[block]) for block in blocks],
            size_bytes=size * PAGE_BYTES,
            parent_bytes=kept * PAGE_BYTES,
            part=part,
            frame_pages=self.random.choice([128, 5]),
        )
        file.givers = [*file.givers[:kept], *[None] * (size - len(file.givers[:kept]))]
        for block in blocks:
            file.givers[block] = layer.depth

    def _number(self) -> int:
        self._pages += 1
        return self._pages if self.random.random() < 0.9 else 0

    def _create(self) -> None:
        self._names += 1
        size = self.random.choice([0, 1, 3, 20, 60, 64, 65, 130, _PAGES_MAX])
        zeros = self.random.random() < 0.2
        pages = [0 if zeros else self._number() for _ in range(size)]
        self.files[f"base/5/{16384 + self._names}"] = FileModel(pages)

    def _some(self) -> FileModel | None:
        return self.files[self.random.choice(list(self.files))] if self.files else None

    def _write(self) -> None:
        file = self._some()
        if file is None or not file.pages:
            return
        size = len(file.pages)
        if self.random.random() < 0.3:
            first = self.random.randrange(size)
            blocks = list(range(first, min(size, first + self.random.randint(1, size))))
        else:
            blocks = [self.random.randrange(size) for _ in range(self.random.randint(1, 90))]
        for block in blocks:
            file.pages[block] = self._number()
            file.changed.add(block)

    def _truncate(self) -> None:
        file = self._some()
        if file is not None:
            size = self.random.randint(0, len(file.pages))
            del file.pages[size:]
            file.limit = min(file.limit, size)
            file.changed = {block for block in file.changed if block < size}

    def _grow(self) -> None:
        file = self._some()
        if file is not None:
            for _ in range(self.random.randint(1, 70)):
                number = self._number()
                # A page of zeros is in no WAL.
                if number:
                    file.changed.add(len(file.pages))
                file.pages.append(number)

    def _drop(self) -> None:
        if self.files:
            del self.files[self.random.choice(list(self.files))]

    def leave(self, root: Path, of: int) -> OldDirectory:
        """Return an old directory: the files of backup ``of``, and what has happened to some of them."""
        for path, content in self.past[of].items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(self._worn(content))
        return OldDirectory(root, {})

    def _worn(self, content: bytes) -> bytes:
        match self.random.randint(0, 5):
            case 0 if content:
                at = self.random.randrange(len(content))
                return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            case 1:
                return content[: self.random.randint(0, len(content))]
            case _:
                return content

    def check(self, *, old_of: int | None = None) -> RestoredFiles:
        """Restore the newest backup, over what ``old_of`` left if given; compare it with the files of now."""
        with tempfile.TemporaryDirectory() as folder:
            old, estimate = None, None
            if old_of is not None:
                old = self.leave(Path(folder) / "old", old_of)
                estimate = estimate_delta(
                    self.chain.store, self.chain.links[::-1], old, Path(folder) / "estimate"
                )
            done, listed = self.chain.restore(Path(folder), old=old)
            if estimate is not None:
                assert estimate.kept_bytes == done.kept_bytes
                # The estimate leaves out what is read between frames that lie near each other.
                assert estimate.fetched_bytes <= done.fetched_bytes
            for path, file in self.files.items():
                assert (Path(folder) / "root" / path).read_bytes() == file.content, path
        assert {line.path.decode(): line.crc32c for line in listed} == {
            path: crc32c(file.content) for path, file in self.files.items()
        }
        assert len(listed) == done.files == len(self.files)
        # Every page was written by the one backup that gave it, and by no other.
        given = sum(giver is not None for file in self.files.values() for giver in file.givers)
        assert done.size_bytes == given * PAGE_BYTES
        return done


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    increments=st.integers(0, 6),
    pack_bytes=st.sampled_from([1, 64 * 1024, 1 << 21]),
)
def test_any_chain_gives_the_files_of_its_newest_backup(seed: int, increments: int, pack_bytes: int) -> None:
    history = History(seed, pack_bytes)
    history.back_up()
    for _ in range(increments):
        history.live()
        history.back_up()
    history.check()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    increments=st.integers(0, 5),
    old_of=st.integers(0, 5),
    pack_bytes=st.sampled_from([1, 64 * 1024, 1 << 21]),
)
def test_any_chain_is_restored_over_whatever_an_older_or_the_newest_backup_left(
    seed: int, increments: int, old_of: int, pack_bytes: int
) -> None:
    history = History(seed, pack_bytes)
    history.back_up()
    for _ in range(increments):
        history.live()
        history.back_up()
    history.check(old_of=min(old_of, increments))


@pytest.mark.parametrize("seed_number", range(3))
def test_a_chain_of_forty_is_restored_at_every_tenth(seed_number: int) -> None:
    history = History(seed_number, 256 * 1024)
    history.back_up()
    for number in range(1, 41):
        history.live()
        history.back_up()
        if number % 10 == 0:
            history.check()


def test_many_runs_of_one_file_are_listed_in_lines_of_bounded_length() -> None:
    """More runs than a line holds, over several packs: every other page of 9,000."""
    chain = ChainMaker()
    before, size = list(range(1, 9001)), 9000 * PAGE_BYTES
    full = chain.layer(pack_bytes=1 << 20)
    full.add_whole("base/5/16384", b"".join(map(page, before)))
    chain.add(full)
    blocks = list(range(0, 9000, 2))
    layer = chain.layer(pack_bytes=1 << 20)
    pages = [page(10_000 + block) for block in blocks]
    layer.add_changed("base/5/16384", blocks, pages, size_bytes=size, parent_bytes=size)
    chain.add(layer)
    with tempfile.TemporaryDirectory() as folder:
        chain.restore(Path(folder))
        restored = (Path(folder) / "root/base/5/16384").read_bytes()
    for block, number in enumerate(before):
        expected = page(10_000 + block) if block % 2 == 0 else page(number)
        assert restored[block * PAGE_BYTES : (block + 1) * PAGE_BYTES] == expected, block


def test_status_of_a_file_that_is_put_together_is_that_of_its_newest_backup() -> None:
    chain = ChainMaker()
    full = chain.layer()
    full.add_whole("base/5/16384", page(1))
    chain.add(full)
    layer = chain.layer()
    layer.add_changed("base/5/16384", [], [], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES)
    chain.add(layer)
    with tempfile.TemporaryDirectory() as folder:
        _done, (line,) = chain.restore(Path(folder))
    assert (line.size_bytes, line.mode, line.mtime) == (PAGE_BYTES, STATUS.mode, STATUS.mtime)
