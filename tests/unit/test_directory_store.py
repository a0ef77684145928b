"""DirectoryStore: what a file system can do to it, and what it must never do in turn."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.listing import sorted_names
from storage.local import MARKER, DirectoryStore, _mapped
from storage.store import (
    CopyDamaged,
    ObjectConflict,
    ObjectMissing,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "mount" / "region"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore.create(root)


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_creating_may_be_repeated_and_keeps_what_is_there(store: DirectoryStore, root: Path) -> None:
    store.put("k", b"x")
    assert DirectoryStore.create(root).get("k") == b"x"


def test_a_directory_with_other_things_in_it_is_not_made_a_region(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(StoreRefused, match="not empty"):
        DirectoryStore.create(tmp_path)
    assert files_below(tmp_path) == ["thesis.txt"]


def test_creating_goes_on_where_a_killed_one_stopped(root: Path) -> None:
    (root / "objects").mkdir(parents=True)
    DirectoryStore.create(root).put("k", b"x")


@pytest.mark.parametrize("loss", ["destroyed", "unmounted", "replaced by a file"])
def test_a_region_that_is_gone_is_down_and_never_made_again(
    store: DirectoryStore, root: Path, loss: str
) -> None:
    store.put("a/b", b"x")
    shutil.rmtree(root)
    if loss == "unmounted":
        root.mkdir()
    elif loss == "replaced by a file":
        root.write_text("?")
    before = files_below(root.parent)
    for call in (
        lambda: store.put("a/b", b"x"),
        lambda: store.put("k", b"x"),
        lambda: store.get("a/b"),
        lambda: store.get_range("a/b", 0, 0),
        lambda: list(store.list_objects("")),
        lambda: store.delete("a/b"),
    ):
        with pytest.raises(StoreUnavailable, match="is not there"):
            call()
    assert files_below(root.parent) == before


def test_a_region_that_goes_away_during_a_listing_is_not_the_listings_end(
    store: DirectoryStore, root: Path
) -> None:
    for number in range(5):
        store.put(f"{number}/k", b"x")
    listing = store.list_objects("")
    next(listing)
    shutil.rmtree(root)
    with pytest.raises(StoreUnavailable):
        list(listing)


def test_nothing_is_left_in_staging(store: DirectoryStore, root: Path) -> None:
    store.put("k", b"x")
    with pytest.raises(ObjectConflict):
        store.put("k", b"y")
    assert list((root / "staging").iterdir()) == []


def test_what_a_killed_writer_left_in_staging_is_swept_and_a_live_ones_is_not(
    store: DirectoryStore, root: Path
) -> None:
    (root / "staging" / "body-left").write_bytes(b"half")
    live = root / "staging" / "body-live"
    with live.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        store.put("k", b"x")
        assert [path.name for path in (root / "staging").iterdir()] == ["body-live"]


def test_a_full_disk_is_a_refusal_and_leaves_nothing(root: Path) -> None:
    DirectoryStore.create(root)
    # EFBIG stands for ENOSPC here: the same way through the code, without a file system of our own.
    code = """
import resource, signal, sys
from pathlib import Path
from storage.local import DirectoryStore
from storage.store import StoreRefused
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    DirectoryStore(Path(sys.argv[1])).put("k", bytes(200_000))
except StoreRefused as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "File too large" in found.stdout
    assert files_below(root) == ["objects", MARKER, "staging"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, StoreRefused),
        (errno.EDQUOT, StoreRefused),
        (errno.EROFS, StoreRefused),
        (errno.EACCES, StoreRefused),
        (errno.EIO, StoreUnavailable),
        (errno.ESTALE, StoreUnavailable),
        (errno.EMFILE, StoreUnavailable),
        (errno.ETIMEDOUT, StoreUnavailable),
    ],
)
def test_an_error_of_the_disk_says_what_to_do(code: int, expected: type[StoreError]) -> None:
    with pytest.raises(expected, match="object k in /region: ") as caught, _mapped("object k in /region"):
        raise OSError(code, os.strerror(code))
    assert os.strerror(code) in str(caught.value)


def test_every_acknowledged_object_survives_kill_9_whole(root: Path) -> None:
    DirectoryStore.create(root)
    code = """
import sys
from pathlib import Path
from storage.local import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
for number in range(1_000_000):
    store.put(f"d{number % 7}/k{number}", bytes([number % 251]) * 300_000)
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        acknowledged = [int(process.stdout.readline()) for _ in range(30)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait(60)
    store = DirectoryStore(root)
    for number in acknowledged:
        assert store.get(f"d{number % 7}/k{number}") == bytes([number % 251]) * 300_000
    # One more may be there; none may be there in part.
    assert {found.size_bytes for found in store.list_objects("")} == {300_000}


def test_a_link_is_not_followed(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (root / "objects" / "k").symlink_to(secret)
    with pytest.raises(StoreRefused):
        store.get("k")
    with pytest.raises(StoreRefused):
        store.put("k", b"secret")
    (root / "objects" / "d").symlink_to(tmp_path)
    assert "d/secret" not in [found.key for found in store.list_objects("")]


def test_a_pipe_in_place_of_an_object_holds_nobody(store: DirectoryStore, root: Path) -> None:
    os.mkfifo(root / "objects" / "k")
    with pytest.raises(CopyDamaged):
        store.get("k")


def test_an_object_above_another_is_refused(store: DirectoryStore) -> None:
    store.put("a/b", b"x")
    with pytest.raises(StoreRefused):
        store.put("a", b"x")
    with pytest.raises(StoreRefused):
        store.put("a/b/c", b"x")
    with pytest.raises(ObjectMissing):
        store.get("a/b/c")


def test_deleting_takes_empty_directories_along(store: DirectoryStore, root: Path) -> None:
    store.put("wal/1/2/k", b"x")
    store.put("wal/3/k", b"x")
    store.delete("wal/1/2/k")
    assert files_below(root / "objects") == ["wal", "wal/3", "wal/3/k"]


def test_puts_and_deletes_in_one_directory_do_not_disturb_each_other(store: DirectoryStore) -> None:
    def work(number: int) -> None:
        for turn in range(30):
            store.put(f"shared/dir/{number}", b"x")
            assert store.get(f"shared/dir/{number}") == b"x", turn
            store.delete(f"shared/dir/{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert list(store.list_objects("")) == []


def test_a_large_directory_is_listed_in_batches(store: DirectoryStore, root: Path) -> None:
    names = sorted(
        [f"d/{number:03}" for number in range(50)] + [f"d/{number:03}x/y" for number in range(0, 50, 5)]
    )
    for name in names:
        store.put(name, b"")
    for names_max in (1, 3, 50, 60, 61):
        assert list(sorted_names(root / "objects", "", "", names_max=names_max)) == names
        assert list(sorted_names(root / "objects", "d/0", names[7], names_max=names_max)) == names[8:]
