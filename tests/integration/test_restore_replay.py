"""``pitr restore --start --replay``: restored, replayed and reconciled by one command, whatever ends it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fix_cli import Done, MakeSite
from fix_event_shop import EventShop, numbers_in, one_partition, open_shop
from fix_kafka import KafkaNode

from pitr.postgres.processes import postmaster_pid


def _restore(shop: EventShop, target: str, into: Path, *more: object, exit_code: int | None = 0) -> Done:
    """Run the command with the site's configuration."""
    site = shop.site
    site.started.append(into)
    words = ["restore", "--identity", site.identity, "--to", target, "--into", into, "--start", "--replay"]
    return site.program(
        "-c", site.config, *words, "--yes", "--json", *more, exit_code=exit_code, timeout_s=300
    )


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
