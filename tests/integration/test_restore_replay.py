"""``pitr restore --start --replay``: restored, replayed and reconciled by one command, whatever ends it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from fix_cli import Done, MakeSite, wait_until
from fix_event_shop import EventShop, numbers_in, one_partition, open_shop
from fix_kafka import KafkaNode

from pitr.postgres.processes import postmaster_pid


def _words(shop: EventShop, target: str, into: Path) -> list[object]:
    site = shop.site
    site.started.append(into)
    words = ["-c", site.config, "restore", "--identity", site.identity, "--to", target, "--into", into]
    return [*words, "--start", "--replay", "--yes", "--json"]


def _restore(shop: EventShop, target: str, into: Path, *more: object, exit_code: int | None = 0) -> Done:
    """Run the command with the site's configuration."""
    words = _words(shop, target, into)
    return shop.site.program(*words, *more, exit_code=exit_code, timeout_s=300)


def _certificate(into: Path) -> dict[str, Any]:
    found = json.loads(into.with_name(f"{into.name}.replay-certificate.json").read_text())
    assert isinstance(found, dict)
    return found


def test_a_restore_replays_what_it_took_back_once_and_certifies_it(
    make_site: MakeSite, kafka_node: KafkaNode
) -> None:
    shop = open_shop(make_site, kafka_node)
    kept = shop.place(3)
    shop.fence()
    kept += shop.place(2)
    target = shop.now()
    lost, stolen = shop.place(3), shop.place(1, principal="mallory")
    shop.site.server.execute("UPDATE orders SET amount = -1")
    shop.site.wait_durable()
    into = shop.site.folder / "again"

    # Events are gone: nothing is promoted, and what was reached is said.
    kafka_node.delete_records(shop.topic, 4)
    refused = _restore(shop, target, into, exit_code=4)
    assert "deleted" in refused.error["why"], refused
    assert "nothing was promoted" in refused.error["why"]
    assert f"--accept-gap '{shop.topic}[0]'" in refused.error["next"]
    assert _certificate(into)["state"] == "restoring"
    assert postmaster_pid(into) is None

    # The same command goes on, with the gap accepted by name: what it held is in the database.
    done = _restore(shop, target, into, "--accept-gap", f"{shop.topic}[0]")
    said = _certificate(into)
    assert said["state"] == "reconciled"
    row = one_partition(said["partitions"])
    assert (row["offset_at_target"], row["replayed_from"], row["replayed_to"]) == (3, 4, 9)
    assert (row["in_database"], row["applied"], row["held"], row["missing"]) == (1, 3, 1, 1)
    assert said["accepted_gaps"] == [f"{shop.topic}[0]"]
    recovery = Path(said["recovery_certificate"]["file"])
    assert said["recovery_certificate"]["sha256"] == hashlib.sha256(recovery.read_bytes()).hexdigest()
    assert json.loads(recovery.read_text())["replay"]["end"] == said["restored"]["end_lsn"]
    dsn = done.data["replay"]["dsn"]
    assert numbers_in(dsn) == sorted(kept + lost)
    assert not set(stolen) & set(numbers_in(dsn))

    # Once more: nothing is applied twice.
    again = _restore(shop, target, into, "--accept-gap", f"{shop.topic}[0]")
    assert numbers_in(again.data["replay"]["dsn"]) == sorted(kept + lost)
    assert one_partition(_certificate(into)["partitions"]) == row
    # It tells what a run that was not ended tells: where the server is, and what to do with it.
    assert numbers_in(again.data["dsn"]) == sorted(kept + lost)
    assert again.data["next"] == done.data["next"]


def _state(into: Path) -> object:
    try:
        return _certificate(into)["state"]
    except FileNotFoundError:
        return None


@pytest.mark.slow
def test_the_same_command_goes_on_after_kill_9_at_every_step(
    make_site: MakeSite, kafka_node: KafkaNode
) -> None:
    # So slowly that a run can be killed between two batches.
    shop = open_shop(make_site, kafka_node, "batch = 20\nrate_limit = 40\n")
    kept = shop.place(3)
    shop.fence()
    target = shop.now()
    lost = shop.place(240)
    shop.site.wait_durable()
    into = shop.site.folder / "again"
    for state, more in (("restoring", 0), ("planned", 0), ("replaying", 20), ("replaying", 60)):
        _kill_at(shop, target, into, state, len(kept) + more)
    assert 0 < len(numbers_in(_dsn(into))) < len(kept + lost)
    # As a host that was switched off: the server is gone, too.
    pid = postmaster_pid(into)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: postmaster_pid(into) is None, "the server is gone", timeout_s=30)
    done = _restore(shop, target, into)
    assert numbers_in(done.data["replay"]["dsn"]) == sorted(kept + lost)
    said = _certificate(into)
    row = one_partition(said["partitions"])
    assert (said["state"], row["applied"], row["duplicates"], row["missing"]) == ("reconciled", 240, 0, 0)


def _kill_at(shop: EventShop, target: str, into: Path, state: str, rows: int) -> None:
    """Run the command, and kill it once it is in a state and, in a replay, so many orders are there."""
    log = shop.site.folder / "killed.log"
    running = shop.site.program.begin(*_words(shop, target, into), log=log)

    def is_there() -> bool:
        assert running.poll() is None, log.read_text()[-4000:]
        if _state(into) != state:
            return False
        return state != "replaying" or len(numbers_in(_dsn(into))) >= rows

    wait_until(is_there, f"it is {state}\n{log.read_text()[-2000:]}", timeout_s=120)
    running.kill()
    running.wait(30)


def _dsn(into: Path) -> str:
    folder = (into / "postmaster.pid").read_text().splitlines()[4]
    return f"host='{folder}' port=5432 user=postgres dbname=postgres"
