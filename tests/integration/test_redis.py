"""Derived state after a restore, on a real Redis Cluster of three masters, through the program."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fix_cli import CHECKOUT, wait_until
from fix_ports import HOST
from fix_redis import MakeRedis, RedisCluster, RedisSite, TlsFront
from fix_tls import make_certificate

NAMESPACES = """
[[redis.namespace]]
prefix = "cache:"
policy = "drop"
[[redis.namespace]]
prefix = "page:"
policy = "epoch"
[[redis.namespace]]
prefix = "session:"
policy = "keep"
sessions = true
[[redis.namespace]]
prefix = "setting:"
policy = "keep"
[[redis.namespace]]
prefix = "queue:"
policy = "restore"
"""
COUNTER = "pitr:epoch:page"


def declared(site: RedisSite, cluster: RedisCluster, more: str = "") -> RedisSite:
    site.declare([cluster.masters[0].address], NAMESPACES, more)
    return site


def filled(cluster: RedisCluster, count: int = 60) -> RedisCluster:
    for prefix in ("cache:", "v41:page:", "page:", "session:", "setting:", "queue:", "other:"):
        cluster.fill(prefix, count)
    return cluster


def namespaces(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["prefix"]: one for one in data["redis"][0]["namespaces"]}


def counts(cluster: RedisCluster) -> dict[str, int]:
    """How many keys there are by their beginning, the counter and its note left out."""
    found: dict[str, int] = {}
    for key in sorted(cluster.keys()):
        if COUNTER not in key:
            found[key.rstrip("0123456789")] = found.get(key.rstrip("0123456789"), 0) + 1
    return found


def test_a_plan_counts_on_every_master_and_changes_nothing(
    redis_cluster: RedisCluster, redis_site: RedisSite
) -> None:
    filled(redis_cluster)
    before = redis_cluster.keys()
    data = declared(redis_site, redis_cluster).redis("plan")
    found = namespaces(data)
    assert {prefix: (one["keys"], one["stale"]) for prefix, one in found.items()} == {
        "cache:": (60, 60),
        "page:": (120, 120),
        "session:": (60, 0),
        "setting:": (60, 0),
        "queue:": (60, 0),
    }
    assert data["redis"][0]["undeclared"] == {"other:": 60}
    assert len(data["redis"][0]["masters"]) == 3
    assert data["redis"][0]["whole"]
    assert any("no snapshot" in text for text in data["redis"][0]["unknown"])
    # Without --yes the other command is the same plan.
    assert namespaces(redis_site.redis("apply")) == found
    assert redis_cluster.keys() == before


def test_apply_removes_what_is_declared_on_every_master_and_no_more(
    redis_cluster: RedisCluster, redis_site: RedisSite
) -> None:
    filled(redis_cluster, 3000)
    found = namespaces(declared(redis_site, redis_cluster).redis("apply", "--yes"))
    assert (found["cache:"]["removed"], found["page:"]["removed"]) == (3000, 6000)
    assert all(one["left"] == 0 for one in found.values())
    kept = {"session:", "setting:", "queue:", "other:"}
    assert counts(redis_cluster) == dict.fromkeys(kept, 3000)
    epoch = redis_cluster.get(COUNTER)
    assert epoch is not None
    # Whoever writes with the new epoch is not dropped by the next run; what it finds of the old ones is.
    redis_cluster.fill(f"v{int(epoch)}:page:", 10)
    redis_cluster.fill("v7:page:", 10)
    redis_cluster.fill("v99999999999:page:", 10)
    again = redis_site.redis("apply", "--yes")
    newer = redis_cluster.get(COUNTER)
    assert newer is not None
    assert int(newer) > int(epoch)
    assert again["redis"][0]["epochs"] == {"page:": int(newer)}
    assert namespaces(again)["page:"]["removed"] == 20
    assert counts(redis_cluster)["v99999999999:page:"] == 10


def test_after_ransomware_sessions_go_unless_they_are_named(
    redis_cluster: RedisCluster, redis_site: RedisSite
) -> None:
    filled(redis_cluster)
    declared(redis_site, redis_cluster)
    plan = namespaces(redis_site.redis("plan", "--after", "ransomware"))
    assert (plan["session:"]["policy"], plan["setting:"]["policy"]) == ("drop", "keep")
    redis_site.redis("apply", "--after", "ransomware", "--keep", "session:", "--yes")
    assert counts(redis_cluster)["session:"] == 60
    redis_site.redis("apply", "--after", "ransomware", "--yes")
    assert counts(redis_cluster).keys() == {"setting:", "queue:", "other:"}


def test_a_master_that_is_away_is_told_and_the_same_run_goes_on(
    redis_cluster: RedisCluster, redis_site: RedisSite
) -> None:
    filled(redis_cluster)
    redis_site.declare([redis_cluster.masters[0].address], NAMESPACES, 'deadline = "60s"')
    away = next(one for one in redis_cluster.masters[1:] if one is not redis_cluster.owner(COUNTER))
    away.pause()
    try:
        done = redis_site("redis", "apply", "--yes", "--json", exit_code=3)
        assert done.error["code"] == "PITR-3005"
        assert away.address in done.error["why"]
        assert not done.data["redis"][0]["whole"]
        # A snapshot of a part is none.
        assert redis_site("redis", "snapshot", "--json", exit_code=3).data == {}
    finally:
        away.go_on()
    assert not redis_site.regions[0].objects("derived/")
    redis_cluster.wait_ready()
    epoch = redis_cluster.get(COUNTER)
    assert epoch is not None
    assert counts(redis_cluster)["cache:"] < 60
    redis_site.redis("apply", "--yes")
    assert redis_cluster.get(COUNTER) == epoch, "the run that was interrupted raised it already"
    assert "cache:" not in counts(redis_cluster)


def test_a_killed_run_goes_on_and_raises_no_epoch_twice(
    redis_cluster: RedisCluster, redis_site: RedisSite
) -> None:
    redis_cluster.fill("cache:", 90_000)
    declared(redis_site, redis_cluster)
    log = redis_site.folder / "log"
    process = redis_site.program.begin("-c", redis_site.config, "redis", "apply", "--yes", log=log)

    def sizes() -> int:
        return sum(one.client().dbsize() for one in redis_cluster.masters)

    wait_until(lambda: sizes() < 85_000, "some keys are gone", every_s=0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    left, epoch = len(redis_cluster.keys("cache:*")), redis_cluster.get(COUNTER)
    assert 0 < left < 90_000
    assert epoch is not None
    data = redis_site.redis("apply", "--yes")
    assert redis_cluster.get(COUNTER) == epoch
    assert namespaces(data)["cache:"]["removed"] == left
    assert redis_cluster.keys("cache:*") == set()


def test_slots_that_move_are_told_and_nothing_is_claimed(
    redis_cluster: RedisCluster, redis_site: RedisSite
) -> None:
    filled(redis_cluster)
    declared(redis_site, redis_cluster)
    giver, taker = redis_cluster.masters[0], redis_cluster.masters[1]
    taker_id = taker.client().execute_command("CLUSTER", "MYID").decode()
    giver.client().execute_command("CLUSTER", "SETSLOT", 100, "MIGRATING", taker_id)
    try:
        done = redis_site("redis", "plan", "--json", exit_code=3)
        assert "slots are moving" in done.error["why"]
        redis_site("redis", "snapshot", exit_code=3)
    finally:
        giver.client().execute_command("CLUSTER", "SETSLOT", 100, "STABLE")
    assert redis_site.redis("plan")["redis"][0]["whole"]


def test_what_an_application_writes_back_is_told(make_redis: MakeRedis, redis_site: RedisSite) -> None:
    server = make_redis()
    server.client().set("cache:a", "old")
    # The server itself brings the key back, as an application would that was not stopped.
    redis_site.declare([server.address], '[[redis.namespace]]\nprefix = "cache:"\npolicy = "drop"\n')
    writer = subprocess.Popen(
        ["python3", "-c", WRITER, str(server.port)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: server.client().exists("cache:busy"), "the application writes")
        done = redis_site("redis", "apply", "--yes", "--json", exit_code=3)
        assert "an application writes" in done.error["why"]
        assert "other clients" in " ".join(done.data["redis"][0]["unknown"])
    finally:
        writer.kill()
        writer.wait(30)

    def all_is_written() -> bool:
        return not any(one["cmd"] == "set" for one in server.client().client_list())

    wait_until(all_is_written, "the server is through with what the application sent")
    redis_site.redis("apply", "--yes")
    assert server.client().keys("cache:*") == []


def test_a_replica_that_lacks_a_removal_is_told_until_it_has_it(
    make_redis: MakeRedis, redis_site: RedisSite
) -> None:
    server = make_redis()
    server.client().set("cache:a", "1")
    replica = make_redis(settings=(f"replicaof {HOST} {server.port}",))
    wait_until(lambda: replica.client().exists("cache:a"), "the replica has the key")
    redis_site.declare([server.address], NAMESPACES)
    replica.pause()
    try:
        for _ in range(2):
            done = redis_site("redis", "apply", "--yes", "--json", exit_code=3)
            assert "a replica" in done.error["why"]
            assert server.client().exists("cache:a") == 0
    finally:
        replica.go_on()
    redis_site.redis("apply", "--yes")
    assert not replica.client().exists("cache:a")
    redis_site.declare([replica.address], NAMESPACES)
    assert "is a replica" in redis_site("redis", "plan", exit_code=1).stderr


WRITER = """
import socket, sys
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
# So much always waits in the server's buffer that it is written between any two commands of others.
link.sendall(b"CLIENT REPLY OFF\\r\\n")
while True:
    link.sendall(b"SET cache:busy 1\\r\\n" * 5000)
"""


def test_every_numbered_database_of_a_single_server_is_walked(
    make_redis: MakeRedis, redis_site: RedisSite
) -> None:
    server = make_redis()
    for database in (0, 3, 15):
        server.client(database).set("cache:a", "1")
        server.client(database).set("setting:a", "1")
    redis_site.declare([server.address], NAMESPACES)
    found = namespaces(redis_site.redis("apply", "--yes"))
    assert (found["cache:"]["removed"], found["setting:"]["keys"]) == (3, 3)
    assert [server.client(database).keys("*a") for database in (0, 3, 15)] == [[b"setting:a"]] * 3


def test_a_password_comes_from_a_private_file_and_is_shown_nowhere(
    make_redis: MakeRedis, redis_site: RedisSite
) -> None:
    server = make_redis(password="correct-horse")
    server.client().set("cache:a", "1")
    credentials = redis_site.folder / "redis.toml"
    more = 'credentials_file = "redis.toml"'
    redis_site.declare([server.address], NAMESPACES, more)
    credentials.touch(0o644)
    credentials.write_text('password = "correct-horse"\n')
    assert "can be read by others" in redis_site("redis", "plan", exit_code=8).stderr
    credentials.chmod(0o600)
    assert namespaces(redis_site.redis("plan"))["cache:"]["keys"] == 1
    redis_site("redis", "snapshot")
    credentials.write_text('password = "wrong-battery"\n')
    refused = redis_site("-v", "redis", "plan", exit_code=1)
    assert "WRONGPASS" in refused.stderr or "invalid" in refused.stderr
    assert "battery" not in refused.stderr + refused.stdout
    assert "battery" not in redis_site("redis", "snapshot", exit_code=1).stderr
    credentials.write_text("password = wrong-battery\n")
    assert "battery" not in redis_site("-v", "redis", "plan", exit_code=8).stderr


@pytest.mark.parametrize("way", ["replication", "file"])
def test_the_documented_user_may_do_all_that_is_done_and_no_more(
    way: str, redis_cluster: RedisCluster, redis_site: RedisSite
) -> None:
    page = (CHECKOUT / "docs" / "redis.md").read_text()
    line = next(one for one in page.splitlines() if "ACL SETUSER pitr" in one)
    rules = line.replace("PASSWORD", "horse").split()[3:]
    if way == "file":
        assert '`+bgsave +config|get` instead of `+sync` for `snapshots = "file"`' in page
        rules = [rule for rule in rules if rule != "+sync"] + ["+bgsave", "+config|get"]
    filled(redis_cluster)
    credentials = redis_site.folder / "redis.toml"
    credentials.touch(0o600)
    credentials.write_text('username = "pitr"\npassword = "horse"\n')
    more = f'credentials_file = "redis.toml"\nsnapshots = "{way}"'
    for master in redis_cluster.masters:
        master.client().execute_command("ACL", "SETUSER", "pitr", "reset", *rules)
    try:
        redis_site.declare([redis_cluster.masters[0].address], NAMESPACES, more)
        redis_site("redis", "snapshot")
        redis_site("redis", "apply", "--yes")
        for master in redis_cluster.masters:
            master.client().execute_command("ACL", "SETUSER", "pitr", "-unlink")
        redis_cluster.fill("cache:", 60)
        assert "unlink" in redis_site("redis", "apply", "--yes", exit_code=3).stderr
    finally:
        for master in redis_cluster.masters:
            master.client().execute_command("ACL", "DELUSER", "pitr")


def test_tls_is_spoken_and_a_stranger_refused(
    make_redis: MakeRedis, redis_site: RedisSite, tmp_path: Path
) -> None:
    server = make_redis()
    server.client().set("cache:a", "1")
    front = TlsFront(server, *make_certificate(tmp_path, HOST))
    try:
        redis_site.declare([f"{HOST}:{front.port}"], NAMESPACES, 'tls = true\nca_file = "tls.pem"')
        assert namespaces(redis_site.redis("plan"))["cache:"]["keys"] == 1
        redis_site("redis", "snapshot")
        redis_site.declare([f"{HOST}:{front.port}"], NAMESPACES, "tls = true")
        assert "certificate verify failed" in redis_site("redis", "plan", exit_code=3).stderr
    finally:
        front.close()
