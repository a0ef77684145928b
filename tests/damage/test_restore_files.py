"""Files of a backup come back byte for byte, or the restore of them fails and names the object."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fix_small_backup import MIB, SmallBackup, make_small_backup
from fix_stores import FaultyStore

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import MalformedValue, NotAuthentic, PitrError
from pitr.pipeline.compress import compress_frame
from pitr.pipeline.keys import DataKey
from pitr.pipeline.packs import IndexFile
from pitr.pipeline.part_objects import SealedPart
from pitr.pipeline.seal import iter_frames, seal_frames
from pitr.restore_files import ChainLink, FileProgress, FileRestorer
from storage.memory import MemoryStore
from storage.store import ObjectStore, StoreUnavailable


@pytest.fixture(scope="module")
def backup() -> SmallBackup:
    return make_small_backup()


def restore(
    backup: SmallBackup,
    folder: Path,
    store: ObjectStore | None = None,
    change: Callable[[BackupManifest], BackupManifest] = lambda manifest: manifest,
    key: DataKey | None = None,
) -> list[IndexFile]:
    for name in ("root", "space"):
        (folder / name).mkdir()
    listed: list[IndexFile] = []
    restorer = FileRestorer(
        store or backup.store,
        [ChainLink(change(backup.manifest()), key or backup.key)],
        folder / "root",
        {16385: folder / "space"},
        folder / "notes",
        on_file=listed.append,
        on_progress=lambda _progress: None,
        workers=3,
        patience_s=0.05,
    )
    done = restorer.run()
    assert done.files == len(listed) == len(backup.contents)
    return listed


def test_every_file_comes_back_byte_for_byte(backup: SmallBackup, tmp_path: Path) -> None:
    listed = restore(backup, tmp_path)
    for path, content in backup.contents.items():
        place = tmp_path / "root" / path
        if path.startswith("pg_tblspc/16385/"):
            place = tmp_path / "space" / path.removeprefix("pg_tblspc/16385/")
        assert place.read_bytes() == content, path
        assert place.stat().st_mode & 0o777 == 0o600
    assert {os.fsdecode(file.path) for file in listed} == set(backup.contents)
    # A hole costs no room.
    assert (tmp_path / "root" / "base/5/16384").stat().st_blocks * 512 < 5 * MIB


def test_a_flip_anywhere_in_any_object_is_noticed(backup: SmallBackup, tmp_path: Path) -> None:
    for number, stored in enumerate([*backup.packs, *backup.indexes]):
        store = FaultyStore(backup.store)
        store.damage(stored.key)
        (tmp_path / str(number)).mkdir()
        with pytest.raises(NotAuthentic, match="no region has a good copy"):
            restore(backup, tmp_path / str(number), store)


def test_whoever_interrupts_a_restore_does_not_wait_for_whole_packs(tmp_path: Path) -> None:
    """A pack of thousands of small files takes minutes on a slow disk."""
    backup = SmallBackup()
    head = backup.writer(0)
    for folder in ("base", "base/5"):
        head.add_directory(folder.encode(), 0o700)
    head.finish()
    body = backup.writer(1)
    for number in range(2):
        backup.add_large(body, f"base/5/{number}", 3 * MIB)
    body.finish()
    (tmp_path / "root").mkdir()
    begun, may_go_on = threading.Event(), threading.Event()
    written: list[int] = []

    def on_progress(progress: FileProgress) -> None:
        written.append(progress.written_bytes)
        begun.set()
        assert may_go_on.wait(30)

    def on_file(file: IndexFile) -> None:
        if file.path == b"base/5/1":
            assert begun.wait(30)
            threading.Timer(0.5, may_go_on.set).start()
            raise KeyboardInterrupt

    restorer = FileRestorer(
        backup.store,
        [ChainLink(backup.manifest(), backup.key)],
        tmp_path / "root",
        {},
        tmp_path / "notes",
        on_file=on_file,
        on_progress=on_progress,
        workers=1,
    )
    with pytest.raises(KeyboardInterrupt):
        restorer.run()
    assert written == [MIB]


def test_several_packs_are_fetched_at_the_same_time(backup: SmallBackup, tmp_path: Path) -> None:
    store = FaultyStore(backup.store)
    gates = [store.hold("get", pack.key) for pack in backup.packs]
    restoring = threading.Thread(target=restore, args=(backup, tmp_path, store))
    restoring.start()
    # Three workers, and nothing has come yet of what any of them asked for.
    deadline = time.monotonic() + 30
    while sum(gate.entered.is_set() for gate in gates) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    under_way = sum(gate.entered.is_set() for gate in gates)
    store.heal()
    restoring.join(30)
    assert under_way == 3
    assert (tmp_path / "root" / "base/5/16384").exists()


def test_a_missing_object_is_named(backup: SmallBackup, tmp_path: Path) -> None:
    store = FaultyStore(backup.store)
    store.lose(backup.packs[-1].key)
    with pytest.raises(NotAuthentic, match="pack-0001"):
        restore(backup, tmp_path, store)


def test_a_store_that_stays_away_is_said_to_be_unavailable(backup: SmallBackup, tmp_path: Path) -> None:
    store = FaultyStore(backup.store)
    store.go_down()
    with pytest.raises(StoreUnavailable):
        restore(backup, tmp_path, store)


def test_a_short_outage_is_waited_for(backup: SmallBackup, tmp_path: Path) -> None:
    store = FaultyStore(backup.store)
    store.fail(StoreUnavailable("a moment"), "get", times=1)
    restore(backup, tmp_path, store)


def _swap_packs(manifest: BackupManifest) -> BackupManifest:
    """Give two packs each other's bytes, digests included: only the context tells."""
    *rest, one, two = manifest.packs
    return replace(
        manifest,
        packs=(
            *rest,
            replace(one, sha256=two.sha256, size_bytes=two.size_bytes),
            replace(two, sha256=one.sha256, size_bytes=one.size_bytes),
        ),
    )


def test_swapped_packs_do_not_open(backup: SmallBackup, tmp_path: Path) -> None:
    one, two = backup.packs[-2:]
    store = MemoryStore()
    for info in backup.store.list_objects(""):
        source = {one.key: two.key, two.key: one.key}.get(info.key, info.key)
        store.put(info.key, backup.store.get(source))
    with pytest.raises(PitrError):
        restore(backup, tmp_path, store, _swap_packs)


class _Altering(SmallBackup):
    """A backup whose packs were sealed anew, rightly signed for, with one byte changed before."""

    def sink(self, sealed: SealedPart) -> None:
        if sealed.kind == "pack":
            context = self.context("pack", sealed.part, sealed.number)
            frames = [bytearray(frame) for frame in iter_frames(sealed.body, self.key, context)]
            frames[-1][100] ^= 1
            body = seal_frames([compress_frame(bytes(frame)) for frame in frames], self.key, context)
            assert len(body) == len(sealed.body)
            sealed = replace(sealed, body=body, sha256=hashlib.sha256(body).digest())
        SmallBackup.sink(self, sealed)


def test_bytes_other_than_those_read_from_the_server_are_refused(tmp_path: Path) -> None:
    backup = _Altering()
    writer = backup.writer(0)
    backup.add_large(writer, "noise", 2 * MIB)
    writer.finish()
    with pytest.raises(NotAuthentic, match="not what was read from the server"):
        restore(backup, tmp_path)


def test_another_data_key_opens_nothing(backup: SmallBackup, tmp_path: Path) -> None:
    with pytest.raises(NotAuthentic):
        restore(backup, tmp_path, key=DataKey.generate(os.urandom))
    assert not any((tmp_path / "root").iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: replace(manifest, packs=manifest.packs[:-1]),
        lambda manifest: replace(manifest, indexes=manifest.indexes[1:]),
        lambda manifest: replace(manifest, files=manifest.files + 1),
        lambda manifest: replace(
            manifest,
            packs=(
                *manifest.packs,
                replace(manifest.packs[0], key=manifest.packs[0].key.replace("-000000-", "-000077-")),
            ),
        ),
    ],
    ids=["a pack less", "an index less", "a file more", "a pack more"],
)
def test_a_manifest_that_does_not_fit_its_index_is_refused(
    backup: SmallBackup, tmp_path: Path, change: Callable[[BackupManifest], BackupManifest]
) -> None:
    with pytest.raises((MalformedValue, NotAuthentic)):
        restore(backup, tmp_path, change=change)
