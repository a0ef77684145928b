"""Snapshots of Redis by the daemon: taken when due, told by status and metrics, and told when they fail."""

from __future__ import annotations

from fix_cli import MakeSite, wait_until
from fix_redis import MakeRedis


def test_the_daemon_takes_snapshots_and_says_how_old_they_are(
    make_site: MakeSite, make_redis: MakeRedis
) -> None:
    site, server = make_site(), make_redis()
    server.client().set("queue:a", "1")
    site.config.write_text(
        site.config.read_text()
        + f'\n[[redis]]\nname = "wards"\naddresses = ["{server.address}"]\nsnapshot_every = "1h"\n'
        + '[[redis.namespace]]\nprefix = "queue:"\npolicy = "restore"\n'
    )
    site.start_daemon()

    def age() -> object:
        (told,) = site("status", "--json").data["redis"]
        assert told["name"] == "wards"
        return told["age_s"]

    wait_until(lambda: age() is not None, f"the first one is taken\n{site.daemon.tail()}", timeout_s=120)
    (taken,) = site("redis", "restore", "--json").data["snapshots"]
    assert (taken["name"], [node["keys"] for node in taken["nodes"]]) == ("wards", [1])
    assert "redis    wards: the newest snapshot is" in site("status").stdout
    findings = {one["id"]: one for one in site("doctor", "--only", "redis", "--json").data["findings"]}
    assert {name: one["severity"] for name, one in findings.items()} == {
        "redis.site": "ok",
        "redis.snapshots": "ok",
    }
