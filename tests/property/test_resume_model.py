"""Attempts at a backup that fail anywhere while files change: what the last one stores is what there is."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from fix_attempts import Attempts
from fix_chain import MIB
from hypothesis import given, settings
from hypothesis import strategies as st


class World:
    """Files that change at random between attempts, without telling by their times."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.it = Attempts(folder, workers=self.random.randint(1, 3), pack_bytes=300_000)
        for number in range(self.random.randint(1, 12)):
            self._create(number)

    def _create(self, number: int) -> None:
        size = self.random.choice([0, 1, 8192, 200_000, 524_288, 524_289, MIB, 2 * MIB, 3_300_000])
        content = bytearray(self.random.randbytes(size))
        if size > MIB and self.random.random() < 0.3:
            start = self.random.randrange(size)
            content[start : start + 2 * MIB] = bytes(len(content[start : start + 2 * MIB]))
        self.it.write(f"f{number}", bytes(content))

    def change(self) -> None:
        """Change a few files: in place, in length, altogether."""
        for name, content in self.it.contents().items():
            fate = self.random.random()
            if fate < 0.15 and content:
                at = self.random.randrange(len(content))
                flipped = bytes([content[at] ^ 1])
                self.it.write(name, content[:at] + flipped + content[at + 1 :])
            elif fate < 0.22:
                self.it.write(name, content + self.random.randbytes(self.random.choice([1, 8192, MIB])))
            elif fate < 0.28:
                self.it.write(name, content[: self.random.randrange(len(content) + 1)])
            elif fate < 0.32:
                (self.it.data / "base" / "5" / name).unlink()
        if self.random.random() < 0.3:
            self._create(self.random.randint(20, 30))

    def harm(self) -> None:
        """Lose what may be lost: the end of a journal, a pack."""
        journals = self.it.journal_paths()
        if journals and self.random.random() < 0.3:
            content = journals[-1].read_bytes()
            journals[-1].write_bytes(content[: self.random.randrange(len(content) + 1)])
        packs = [info.key for info in self.it.store.list_objects("backups/") if "/pack-" in info.key]
        if packs and self.random.random() < 0.3:
            self.it.store.delete(self.random.choice(packs))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_what_is_stored_at_last_is_what_there_is(seed: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        world = World(seed, Path(place))
        it = world.it
        for _ in range(world.random.randint(0, 4)):
            it.fail(world.random.randint(0, 12))
            world.harm()
            world.change()
        it.store.calls.clear()
        link = it.attempt()
        assert it.restored([link], "restored") == it.contents()
        put, stored = it.packs_put(), {pack.key for pack in link.manifest.packs}
        assert {pack.key for pack in link.manifest.packs if pack.key_id is None} == set(put)
        assert stored <= {info.key for info in it.store.list_objects("backups/")}
        assert it.journal_paths() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_sent_twice_where_nothing_changed(tmp_path: Path, workers: int) -> None:
    it = Attempts(tmp_path, workers=workers, pack_bytes=MIB)
    source = random.Random(3)
    for number in range(12):
        it.write(f"f{number}", source.randbytes(source.choice([100_000, 400_000, 3 * MIB])))
    it.fail(1_000)
    (journal,) = it.journal_paths()
    assert journal.stat().st_mode & 0o777 == 0o600
    it.store.calls.clear()
    link = it.attempt()
    assert it.packs_put() == []
    assert it.restored([link], "restored") == it.contents()
