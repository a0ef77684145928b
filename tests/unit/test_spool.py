"""The spool: what is in it survives, what is damaged is named, what does not fit is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from pitr.errors import AlreadyRunning
from pitr.spool import DirectorySpool, SpooledObject, SpoolFailed, SpoolFull


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def opened(root: Path, bytes_max: int = 1 << 20) -> DirectorySpool:
    return DirectorySpool(root, bytes_max=bytes_max)


def add(spool: DirectorySpool, key: str, body: bytes) -> SpooledObject:
    spool.add(key, body, digest(body))
    return SpooledObject(key, body, digest(body))


def test_objects_come_back_in_order_after_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool")
    first, _, third = add(spool, "wal/b", b"one"), add(spool, "wal/a", b"two"), add(spool, "heads/c", b"")
    spool.remove("wal/a")
    spool.close()
    spool = opened(tmp_path / "spool")
    fourth = add(spool, "wal/a", b"again")
    assert list(spool.objects()) == [first, third, fourth]
    assert spool.held_bytes == 3 + 0 + 5
    spool.close()


def test_the_names_of_the_directories_above_a_new_spool_are_synced(tmp_path: Path) -> None:
    """A name is on disk only once the directory that holds it was synced, so each of them is opened."""
    opening: list[Path] = []
    is_watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if is_watching and event == "open" and isinstance(arguments[0], str | Path):
            opening.append(Path(arguments[0]))

    sys.addaudithook(watch)
    try:
        root = tmp_path / "state" / "pitr" / "spool"
        opened(root).close()
        assert {tmp_path, tmp_path / "state", tmp_path / "state" / "pitr"} <= set(opening)
        opening.clear()
        # Whoever made it may have been killed before it was synced.
        opened(root).close()
        assert root.parent in opening
    finally:
        is_watching = False


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.remove("wal/none")
    spool.close()


def test_a_spool_has_a_limit_and_nothing_of_what_is_refused_stays(tmp_path: Path) -> None:
    spool = opened(tmp_path, bytes_max=10)
    add(spool, "wal/a", bytes(8))
    with pytest.raises(SpoolFull, match="is full"):
        add(spool, "wal/b", bytes(3))
    assert spool.held_bytes == 8
    spool.remove("wal/a")
    add(spool, "wal/b", bytes(10))
    spool.close()


def test_two_processes_cannot_have_one_spool(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    with pytest.raises(AlreadyRunning):
        opened(tmp_path)
    spool.close()
    opened(tmp_path).close()


def test_what_a_crash_left_incomplete_is_removed(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    kept = add(spool, "wal/a", b"whole")
    spool.close()
    (tmp_path / "0000000000000002.new").write_bytes(b"PITRSP1\n\0\0")
    spool = opened(tmp_path)
    assert list(spool.objects()) == [kept]
    assert not list(tmp_path.glob("*.new"))
    spool.close()


@pytest.mark.parametrize("offset", [0, 9, 14, 20, 30, 70, 100])
def test_a_damaged_file_is_left_out_and_named(tmp_path: Path, offset: int) -> None:
    spool = opened(tmp_path)
    add(spool, "wal/damaged", b"body" * 10)
    kept = add(spool, "wal/kept", b"kept")
    spool.close()
    path = tmp_path / "0000000000000001"
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x01
    path.write_bytes(content)
    spool = opened(tmp_path)
    assert list(spool.objects()) == [kept]
    assert spool.damaged == ("0000000000000001",)
    spool.close()


@pytest.mark.parametrize("length", [0, 5, 12, 20, 50])
def test_a_file_that_was_cut_is_left_out_and_named(tmp_path: Path, length: int) -> None:
    spool = opened(tmp_path)
    add(spool, "wal/cut", b"body" * 10)
    spool.close()
    path = tmp_path / "0000000000000001"
    path.write_bytes(path.read_bytes()[:length])
    spool = opened(tmp_path)
    assert list(spool.objects()) == []
    assert spool.damaged == ("0000000000000001",)
    spool.close()


_LIMITED = """
import hashlib, resource, signal, sys
from pathlib import Path
from pitr.spool import DirectorySpool, SpoolFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = DirectorySpool(Path(sys.argv[1]), bytes_max=1 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
body = bytes(5000)
try:
    spool.add("wal/large", body, hashlib.sha256(body).digest())
except SpoolFull as refusal:
    print(refusal.hint)
assert spool.held_bytes == 0
spool.add("wal/small", b"small", hashlib.sha256(b"small").digest())
"""


def test_a_disk_that_takes_no_more_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Make room" in process.stdout
    spool = opened(tmp_path)
    assert [held.key for held in spool.objects()] == ["wal/small"]
    spool.close()


def test_what_cannot_be_made_sure_of_is_taken_back(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.close()  # the directory, which is then synced no more
    with pytest.raises(SpoolFailed):
        add(spool, "wal/a", b"body")
    assert spool.held_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_what_was_taken_back_and_came_again_is_counted_once(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    add(spool, "heads/a", b"taken back")
    content = (tmp_path / "0000000000000001").read_bytes()
    spool.remove("heads/a")
    kept = add(spool, "heads/a", b"kept")
    spool.close()
    (tmp_path / "0000000000000001").write_bytes(content)
    spool = opened(tmp_path)
    assert list(spool.objects()) == [kept]
    assert spool.held_bytes == len(b"kept")
    assert not (tmp_path / "0000000000000001").exists()
    spool.close()


def test_a_file_that_cannot_be_read_is_said_and_the_spool_can_be_opened_again(tmp_path: Path) -> None:
    (tmp_path / "0000000000000001").mkdir()
    with pytest.raises(SpoolFailed):
        opened(tmp_path)
    (tmp_path / "0000000000000001").rmdir()
    opened(tmp_path).close()


def test_a_spool_that_cannot_be_made_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SpoolFailed, match="cannot be used"):
        opened(tmp_path / "file" / "spool")
