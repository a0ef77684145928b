"""Restores over an old data directory: only what differs is fetched, and the old one stays until the end."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fix_increment import SUMMARIES, Chain
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres
from fix_restore import HISTORY_SETTINGS, History, Judge, make_history
from fix_stores import FaultyStore

from pitr.errors import RecoveryFailed, RestoreRefused
from pitr.postgres.installation import Installation
from pitr.recover import ArrivedElsewhere
from pitr.recovery import RecoveryTarget
from pitr.restore import restore
from pitr.restore_request import Progress, RestoreRequest
from storage.local import DirectoryStore
from storage.memory import MemoryStore

CHILD = Path(__file__).parents[1] / "restore_child.py"
LATEST = RecoveryTarget("latest")
# Nothing that zstd could make smaller, so that packs are as large as what they hold.
NOISE = """
    INSERT INTO noise SELECT g, (SELECT string_agg(sha512((g * 10 + i)::text::bytea), '')
    FROM generate_series(1, 8) i) FROM generate_series(1, 60000) g
"""


@pytest.fixture(scope="module")
def region(module_major: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("region") / "store"


@pytest.fixture(scope="module")
def history(
    module_major: int, module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse, region: Path
) -> History:
    server = module_postgres_factory(module_major, settings=HISTORY_SETTINGS, name="delta")
    server.execute("CREATE TABLE noise (n int PRIMARY KEY, bytes bytea)")
    server.execute(NOISE)
    server.execute("VACUUM (FREEZE, ANALYZE)")
    history = make_history(server, postgres_house.user, DirectoryStore.create(region))
    server.stop()
    return history


@pytest.fixture
def old(history: History, server_tmp_path: Path) -> Path:
    """A copy of the server's data directory, as its owner left it."""
    return copy(history.server, server_tmp_path / "data")


def copy(server: RunningPostgres, to: Path) -> Path:
    subprocess.run(["cp", "-a", str(server.data_dir), str(to)], check=True)
    (to / "postmaster.pid").unlink(missing_ok=True)
    return to


def delta(history: History, target: Path, aim: RecoveryTarget = LATEST, **options: object) -> RestoreRequest:
    house = history.restores
    options = {"is_delta": True, "keep_running": True, **options}
    return house.request(house.plan(aim), target, history.server, **options)


def tree(root: Path) -> dict[str, str]:
    """Return what lies below a directory: files by digest, links by where they lead."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def child_words(region: Path, history: History, old: Path, point: str) -> list[str]:
    """Return the words for a restore in a process of its own, which kills itself at ``point``."""
    installation = history.server.instance.installation
    words = [str(CHILD), str(region), history.restores.identity.text(), str(old)]
    return [*words, str(installation.major), str(installation.bin_dir), point, "delta"]


def packs_bytes(history: History) -> int:
    return sum(stored.size_bytes for stored in history.restores.plan(LATEST).backup.packs)


def test_a_cluster_that_is_as_the_backup_left_it_is_kept_and_next_to_nothing_is_fetched(
    history: History, old: Path, server_tmp_path: Path, judge: Judge
) -> None:
    result = history.restores.restore(delta(history, old, keep_running=False))
    # Bulk and catalogues have changed since; the noise has not.
    assert result.fetched_bytes < packs_bytes(history) * 0.05
    assert result.kept_bytes > result.size_bytes * 0.8
    assert judge.examine(history, old) == history.end
    certified = "data.recovery-certificate.json"
    assert {entry.name for entry in server_tmp_path.iterdir()} == {"data", "judge", "judge.log", certified}


@pytest.mark.mostly_17
def test_a_chain_is_restored_over_what_came_of_it(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    server = postgres_factory(pg_installation.major, settings=SUMMARIES, name="chain")
    server.execute("CREATE TABLE noise (n int PRIMARY KEY, bytes bytea)")
    server.execute(NOISE.replace("60000", "15000"))
    server.execute("VACUUM (FREEZE, ANALYZE)")
    chain = Chain(server, MemoryStore(), postgres_house.user, server_tmp_path / "notes")
    chain.back_up()
    server.execute("UPDATE noise SET bytes = 'changed' WHERE n % 1000 = 0")
    assert chain.back_up().type == "incr"
    server.execute("UPDATE noise SET bytes = 'later' WHERE n < 10")
    moment = chain.moments[-1]
    server.stop()
    target = copy(server, server_tmp_path / "data")
    plan = chain.restores.plan(chain.target(moment))
    assert plan.parents
    result = chain.restores.restore(chain.restores.request(plan, target, server, is_delta=True))
    assert 0 < result.kept_bytes < result.size_bytes
    assert judge.examine(server, target) == moment.tables


def spoil(old: Path) -> None:
    """Do what a bad disk, a bad person and a bad copy do."""
    files = sorted((old / "base").rglob("*"), key=lambda path: path.stat().st_size, reverse=True)
    with files[0].open("r+b") as file:
        for offset in range(12_345, files[0].stat().st_size, 1 << 23):
            file.seek(offset)
            file.write(b"rot")
    os.truncate(files[1], files[1].stat().st_size // 3)
    times = files[2].stat()
    files[2].write_bytes(os.urandom(files[2].stat().st_size))
    os.utime(files[2], ns=(times.st_atime_ns, times.st_mtime_ns))
    files[3].unlink()
    (old / "base" / "999999").mkdir()
    (old / "base" / "999999" / "1").write_text("stale")
    (old / "README.encrypted").write_text("pay")
    shutil.rmtree(old / "pg_wal")


def test_whatever_happened_to_the_old_directory_the_restored_one_is_right(
    history: History, old: Path, judge: Judge
) -> None:
    spoil(old)
    second = history.moments[1]
    request = delta(
        history, old, RecoveryTarget("time", instant=second.at), keep_running=False, verify_files=True
    )
    result = history.restores.restore(request)
    assert 0 < result.kept_bytes < result.size_bytes
    assert judge.examine(history, old) == second.tables
    assert not (old / "README.encrypted").exists()
    assert not (old / "base" / "999999").exists()


def test_links_out_of_the_old_directory_are_neither_followed_nor_written_through(
    history: History, old: Path, server_tmp_path: Path, judge: Judge
) -> None:
    outside = server_tmp_path / "outside"
    outside.mkdir()
    files = sorted((old / "base").rglob("*"), key=lambda path: path.stat().st_size, reverse=True)
    # One leads to the right bytes, one to somebody's; two folders were moved elsewhere.
    files[0].rename(outside / "largest")
    files[0].symlink_to(outside / "largest")
    files[1].unlink()
    (outside / "precious").write_text("data")
    files[1].symlink_to(outside / "precious")
    for folder in ("base/1", "pg_wal"):
        (old / folder).rename(outside / Path(folder).name)
        (old / folder).symlink_to(outside / Path(folder).name)
    (old / "global" / "all").symlink_to("/")
    before = tree(outside)
    result = history.restores.restore(delta(history, old, keep_running=False))
    assert (outside / "largest").stat().st_size <= result.size_bytes - result.kept_bytes
    assert tree(outside) == before
    assert not any(path.is_symlink() for path in old.rglob("*"))
    assert judge.examine(history, old) == history.end


def test_a_full_disk_leaves_the_old_cluster_as_it_is_and_the_restore_can_be_repeated(
    history: History, region: Path, old: Path
) -> None:
    before = tree(old)
    # EFBIG stands for ENOSPC: the same way through the code, without a filesystem of our own.
    code = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, 20 << 20)); sys.argv = sys.argv[1:];"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, *child_words(region, history, old, "file:99999")],
        capture_output=True,
        check=False,
        timeout=120,
        text=True,
    )
    assert "RestoreRefused: could not write base" in done.stderr
    assert tree(old) == before
    request = delta(history, old, action="none", keep_running=False)
    assert history.restores.restore(request).kept_bytes > 0


def test_a_missing_directory_is_restored_as_without_delta(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    result = history.restores.restore(delta(history, server_tmp_path / "data"))
    assert result.kept_bytes == 0
    assert judge.tables(result) == history.end


def test_files_that_are_only_prepared_replace_the_old_ones(history: History, old: Path) -> None:
    history.restores.restore(delta(history, old, action="none", keep_running=False))
    assert (old / "recovery.signal").exists()
    assert not (old.parent / "data.pitr" / "kept").exists()


def test_the_old_cluster_is_kept_until_a_paused_one_is_promoted(
    history: History, old: Path, judge: Judge
) -> None:
    before = tree(old)
    result = history.restores.restore(delta(history, old, action="pause"))
    judge.adopt(result).stop("immediate")
    kept = old.parent / "data.pitr" / "kept"
    assert tree(kept) == before
    assert any(str(kept) in step for step in result.next_steps)
    with pytest.raises(RestoreRefused, match="earlier restore"):
        history.restores.restore(delta(history, old))
    assert tree(kept) == before


def refused(history: History, request: RestoreRequest, words: str) -> None:
    before = {path: tree(path) for path in request.target.parent.iterdir() if path.is_dir()}
    with pytest.raises(RestoreRefused, match=words):
        history.restores.restore(request)
    assert {path: tree(path) for path in request.target.parent.iterdir() if path.is_dir()} == before


def test_what_may_not_be_replaced_is_refused_and_stays_as_it_is(
    history: History, old: Path, judge: Judge
) -> None:
    refused(history, delta(history, old, is_delta=False), "holds a PostgreSQL cluster")
    (old.parent / "link").symlink_to(old)
    refused(history, delta(history, old.parent / "link"), "is a link")
    running = judge.start(history, old)
    with pytest.raises(RestoreRefused, match="server is running"):
        history.restores.restore(delta(history, old))
    running.stop()
    (old / "global" / "pg_control").write_bytes(os.urandom(8192))
    refused(history, delta(history, old), "no cluster that is known")


def test_another_cluster_is_replaced_only_by_its_name(
    history: History, postgres_factory: PostgresFactory, server_tmp_path: Path, judge: Judge
) -> None:
    foreign = postgres_factory(history.server.instance.installation.major, name="foreign")
    identifier = int(str(foreign.value("SELECT system_identifier FROM pg_control_system()")))
    foreign.stop()
    target = copy(foreign, server_tmp_path / "data")
    refused(history, delta(history, target, replaced_cluster=identifier + 1), "another cluster")
    assert (
        judge.tables(history.restores.restore(delta(history, target, replaced_cluster=identifier)))
        == history.end
    )


# In the files; between prepare, fetch, place and recover; in replay; before, in and after promotion.
POINTS = ["file:9", "clock:6", "arrived:2"]
MORE_POINTS = ["clock:5", "replay:1"]


@pytest.mark.parametrize(
    "point", [*POINTS, *(pytest.param(point, marks=pytest.mark.slow) for point in MORE_POINTS)]
)
def test_a_killed_delta_restore_is_repeated_with_the_same_outcome(
    history: History, region: Path, old: Path, judge: Judge, point: str
) -> None:
    before = tree(old)
    words = child_words(region, history, old, point)
    done = subprocess.run([sys.executable, *words], capture_output=True, check=False, timeout=120, text=True)
    assert done.returncode == -9, f"{point} was never reached: {done.stderr[-2000:]}"
    kept = old.parent / "data.pitr" / "kept"
    assert tree(kept if kept.exists() else old) == before
    assert judge.tables(history.restores.restore(delta(history, old))) == history.end
    assert not kept.exists()


def test_a_refused_restore_gives_the_old_cluster_back(history: History, old: Path, judge: Judge) -> None:
    before = tree(old)
    plan = history.restores.plan(LATEST)
    assert plan.stop is not None
    wrong = replace(plan, stop=replace(plan.stop, replay_end=plan.stop.replay_end + 8))
    with pytest.raises(ArrivedElsewhere) as failure:
        history.restores.restore(replace(delta(history, old), plan=wrong))
    assert "is at" in (failure.value.hint or "")
    assert tree(old) == before
    assert (old.parent / "data.pitr" / "refused" / "PG_VERSION").exists()
    assert judge.tables(history.restores.restore(delta(history, old))) == history.end


def test_a_recovery_that_fails_says_where_the_old_cluster_is_and_can_go_on(
    history: History, old: Path, judge: Judge
) -> None:
    before = tree(old)
    store = FaultyStore(history.restores.backups.store)
    request = delta(history, old, ahead_bytes_max=1)
    house = history.restores
    house.store = store

    def go_down(progress: Progress) -> None:
        if type(progress).__name__ == "ReplayProgress":
            store.go_down()

    try:
        with pytest.raises(RecoveryFailed) as failed:
            restore(request, house.repository, house.data_keys, on_progress=go_down)
        kept = old.parent / "data.pitr" / "kept"
        assert str(kept) in (failed.value.detail or "")
        assert tree(kept) == before
    finally:
        house.store = house.backups.store
    assert judge.tables(house.restore(request)) == history.end


def test_a_server_that_is_started_meanwhile_stops_the_restore_and_it_can_go_on(
    history: History, old: Path, judge: Judge
) -> None:
    started: list[Callable[[], None]] = []
    # Several threads write files, and each of them tells how far it is.
    one_at_a_time = threading.Lock()

    def start(_progress: Progress) -> None:
        with one_at_a_time:
            if not started:
                started.append(judge.start(history, old).stop)

    house = history.restores
    request = delta(history, old)
    with pytest.raises(RestoreRefused, match="server is running"):
        restore(request, house.repository, house.data_keys, on_progress=start)
    assert (old / "postmaster.pid").exists()
    started[0]()
    assert judge.tables(house.restore(request)) == history.end
