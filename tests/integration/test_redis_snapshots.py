"""Snapshots of Redis: taken of every master, sealed, found again, and loaded by new servers."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_cli import wait_until
from fix_ports import HOST
from fix_redis import MakeRedis, RedisCluster, RedisServer, RedisSite

from pitr.derived.access import RedisAccess
from pitr.derived.rdb_file import check_own
from pitr.derived.redis_nodes import Node
from pitr.errors import DerivedRefused

QUEUE = '[[redis.namespace]]\nprefix = "queue:"\npolicy = "restore"\n'


@pytest.mark.parametrize("way", ["replication", "file"])
def test_new_servers_load_the_snapshot_of_a_cluster(
    way: str, redis_cluster: RedisCluster, redis_site: RedisSite, tmp_path: Path
) -> None:
    redis_cluster.fill("queue:", 3000)
    redis_site.declare([redis_cluster.masters[1].address], QUEUE, f'snapshots = "{way}"')
    taken = redis_site.redis("snapshot")["snapshots"][0]
    assert sum(one["keys"] for one in taken["nodes"]) == 3000
    # What comes later is not in it.
    redis_cluster.fill("later:", 10)
    assert all("queue" not in path.read_bytes().decode("latin-1") for path in parts_of(redis_site))
    into = tmp_path / "into"
    words = ("redis", "restore", "--into", into, "--identity", redis_site.identity)
    done = redis_site(*words)
    assert "README.txt" in done.stdout
    files = sorted(into.glob("*.rdb"))
    assert [one.name for one in files] == [
        "node-0000-slots-0-5460.rdb",
        "node-0001-slots-5461-10922.rdb",
        "node-0002-slots-10923-16383.rdb",
    ]
    assert all(one.stat().st_mode & 0o077 == 0 for one in files)
    text = (into / "README.txt").read_text()
    assert "All 16384 slots" in text
    assert "SHUTDOWN NOSAVE" in text
    # As README.txt says: a new cluster with the same slots, stopped, and started on the files.
    other = RedisCluster(redis_cluster.folder / f"other-{way}")
    try:
        other.start()
        for server, file in zip(other.masters, files, strict=True):
            server.stop()
            shutil.copy(file, server.rdb)
        for server in other.masters:
            server.start()
        other.wait_ready()
        assert other.keys() == {f"queue:{number}" for number in range(3000)}
        assert other.get("queue:7") == b"value 7"
    finally:
        other.stop()


def test_a_snapshot_is_chosen_by_the_moment_when_it_was_whole(
    make_redis: MakeRedis, redis_site: RedisSite, tmp_path: Path
) -> None:
    server = make_redis()
    redis_site.declare([server.address], QUEUE)
    server.client().set("queue:a", "first")
    first = redis_site.redis("snapshot")["snapshots"][0]
    between = datetime.now(UTC).isoformat()
    server.client().set("queue:a", "second")
    second = redis_site.redis("snapshot")["snapshots"][0]
    listed = redis_site.redis("restore")["snapshots"]
    assert [one["snapshot"] for one in listed] == sorted([first["snapshot"], second["snapshot"]])
    told = redis_site.redis("plan", "--at", between)["redis"][0]["unknown"]
    assert any(first["snapshot"] in text for text in told)
    words = ("redis", "restore", "--identity", redis_site.identity)
    redis_site(*words, "--at", between, "--into", tmp_path / "one")
    redis_site(*words, "--into", tmp_path / "two")
    assert [load(make_redis, tmp_path / name) for name in ("one", "two")] == [b"first", b"second"]
    redis_site(*words, "--at", "2026-01-01T00:00:00Z", "--into", tmp_path / "none", exit_code=4)
    assert not (tmp_path / "none").exists()
    # A restore goes on in its own directory, mends what is wrong there, and touches nobody else's.
    damaged = next((tmp_path / "one").glob("*.rdb"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-3])
    redis_site(*words, "--at", between, "--into", tmp_path / "one")
    assert damaged.read_bytes() == whole
    redis_site(*words, "--into", tmp_path / "one", exit_code=1)


def test_a_damaged_part_is_got_from_another_region_or_refused(
    make_redis: MakeRedis, redis_site: RedisSite, tmp_path: Path
) -> None:
    server = make_redis()
    server.client().set("queue:a", "1")
    redis_site.declare([server.address], QUEUE)
    redis_site("redis", "snapshot")
    words = ("redis", "restore", "--identity", redis_site.identity, "--into")
    for number in range(2):
        (part,) = parts_of(redis_site, number)
        body = bytearray(part.read_bytes())
        body[-1] ^= 1
        part.write_bytes(body)
        redis_site(*words, tmp_path / f"into{number}", exit_code=0 if number == 0 else 8)
    assert not list((tmp_path / "into1").glob("*.rdb"))


def test_a_file_that_the_server_has_not_just_written_is_refused(make_redis: MakeRedis) -> None:
    server = make_redis()
    server.client().save()
    time.sleep(1.1)
    with Node(RedisAccess(5.0), HOST, server.port) as node, server.rdb.open("rb") as file:
        began_s = int(node.now().timestamp())
        with pytest.raises(DerivedRefused, match="cannot be used here"):
            check_own(node, server.rdb, file, began_s)
        server.client().save()
        with server.rdb.open("rb") as fresh:
            check_own(node, server.rdb, fresh, began_s)


def parts_of(site: RedisSite, region: int = 0) -> list[Path]:
    return [path for key, path in site.regions[region].objects("derived/").items() if "/parts/" in key]


def load(make_redis: MakeRedis, folder: Path) -> bytes | None:
    """Return what a new server has under ``queue:a`` after it has loaded the only file in ``folder``."""
    (file,) = folder.glob("*.rdb")
    server: RedisServer = make_redis()
    server.stop()
    shutil.copy(file, server.rdb)
    server.start()
    wait_until(lambda: server.client().info("persistence")["loading"] == 0, "it has loaded")
    found = server.client().get("queue:a")
    assert found is None or isinstance(found, bytes)
    return found
