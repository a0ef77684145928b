"""Fences in a running daemon, and what they are worth after a restore: one server, one broker, one story."""

from __future__ import annotations

from typing import Any

import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_kafka import KafkaNode
from fix_ports import free_port

from cli.config_template import without_schedule
from cli.key_files import read_identity
from cli.regions import open_reading, open_regions
from cli.settings import RegionSettings
from pitr.datakeys import DataKeys
from pitr.events.fence import Fence
from pitr.events.fence_choice import RowState, judge_row
from pitr.events.fence_store import FenceReader
from pitr.postgres.fence_mark import newest_rows
from pitr.repository import Repository


def configure(site: Site, bootstrap: str, topic: str) -> None:
    """Add [events], and take out the timetable."""
    text = without_schedule(site.config.read_text())
    events = f'\n[events]\nbootstrap = "{bootstrap}"\nfence_every = "1h"\nstore_every = "1h"\n'
    flow = f'\n[[events.topic]]\nname = "{topic}"\nflow = "sink-group"\ngroup = "{topic}-sink"\n'
    site.config.write_text(text + events + flow)


def stored(site: Site) -> list[Fence]:
    """Return all fences of the regions, oldest first, as a reader with the identity alone sees them."""
    identity = read_identity(site.identity)
    store = open_reading(open_regions([RegionSettings(url, url) for url in site.region_urls]), site.quorum)
    try:
        repository = Repository(store, identity.repository, identity.root)
        (archive,) = repository.archives()
        reader, keys = FenceReader(repository), DataKeys(repository, identity.identity)
        numbers = reversed(reader.sequences(archive))
        return [fence for number in numbers for fence in reader.read(archive, number, keys)]
    finally:
        store.close()


def partition(fence: dict[str, Any]) -> dict[str, Any]:
    found = fence["topics"][0]["partitions"][0]
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_a_restore_knows_the_offsets_of_its_moment(make_site: MakeSite, kafka_node: KafkaNode) -> None:
    site = make_site()
    topic = kafka_node.new_topic(1, retention_ms="3600000")
    configure(site, kafka_node.bootstrap, topic)
    site.daemon.start()
    wait_until(lambda: site.flush_lsn() is not None, f"it streams\n{site.daemon.tail()}")
    kafka_node.produce(topic, [b"a", b"b", b"c"])
    first = site("events", "fence", "--json").data
    assert (partition(first)["before"], first["unknown"], first["missing_topics"]) == (3, None, [])
    site("backup", "--type", "full", "--json")
    kafka_node.produce(topic, [b"d", b"e"])
    second = site("events", "fence", "--json").data
    site.server.execute("CREATE TABLE kept AS SELECT 1 AS n")
    target = site.server.value("SELECT pg_current_wal_lsn()")
    site.server.execute("CREATE TABLE lost AS SELECT 1 AS n")
    kafka_node.produce(topic, [b"f"])
    third = site("events", "fence").stdout
    assert topic in third
    site.wait_durable()
    seen = site("status", "--json").data["fences"]
    assert (seen["unknown"], seen["trouble"], seen["partitions"]) == (None, None, 1)
    assert "fences   the last one is" in site("status").stdout
    wait_until(lambda: len(stored(site)) >= 5, "the signed copies are in the regions")
    # A backup takes one before it begins.
    numbers = [fence.mark.number for fence in stored(site)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert first["number"] + 1 < second["number"]

    mapped = site("events", "map", "--at", f"lsn:{target}", "--identity", site.identity, "--json").data
    assert mapped["fence"]["number"] == second["number"]
    assert mapped["fence"]["topics"][0]["partitions"][0][2] == 5
    told = site("events", "map", "--at", f"lsn:{target}", "--identity", site.identity)
    assert topic in told.stdout
    around = site("events", "map", "--offset", f"{topic}[0]:3", "--identity", site.identity, "--json").data
    assert around["before"]["number"] == second["number"]
    assert around["after"]["topics"][0]["partitions"][0][2] == 3
    assert "not an offset" in site("events", "map", "--offset", "orders:1", exit_code=2).stderr
    assert "fences are sealed" in site("events", "map", "--at", "latest", exit_code=8).stderr

    into = site.folder / "into"
    site.restore(f"lsn:{target}", into, "--start")
    lines = (into / "postmaster.pid").read_text().splitlines()
    dsn = f"host={lines[4]} port={lines[3]} user=postgres dbname=postgres"
    rows = newest_rows(dsn, 100)
    assert rows[0].number == second["number"], "the newest row is the last fence before the target"
    signed = {fence.mark.number: fence for fence in stored(site)}
    assert {judge_row(row.number, row.payload, signed).state for row in rows} == {RowState.SIGNED}
    # Whoever takes over the database edits the row; the signed copy counts.
    site.server.execute(
        "UPDATE pitr.fence SET payload = replace(payload, '[0,0,5,', '[0,0,1,') WHERE id = %s",
        second["number"],
    )
    (edited,) = [row for row in newest_rows(site.server.dsn, 100) if row.number == second["number"]]
    judged = judge_row(edited.number, edited.payload, signed)
    assert judged.state is RowState.TAMPERED
    assert judged.fence is not None
    assert judged.fence.topics[0].partitions[0].before == 5

    # The topic forgets within the window: said before a replay needs what is gone.
    found = {one["id"]: one for one in site("doctor", "--json", exit_code=None).object["data"]["findings"]}
    assert found["events.cluster"]["severity"] == "ok"
    assert found["events.mark"]["severity"] == "ok"
    assert found["events.retention"]["severity"] == "warn"
    assert found["events.acl"]["severity"] == "ok"
    # The regions' copies are compared as all others are.
    check = site("catalogue", "check", "--json", exit_code=None)
    assert check.exit_code == 0, str(check)
    assert site.daemon.stop() == 0


@pytest.mark.slow
def test_a_daemon_archives_whatever_is_wrong_with_kafka(make_site: MakeSite) -> None:
    site = make_site()
    configure(site, f"127.0.0.1:{free_port()}", "orders")
    secret = site.config.parent / "kafka.properties"
    secret.write_text("sasl.password=hunter2\n")
    secret.chmod(0o644)
    text = site.config.read_text().replace("\n[events]\n", '\n[events]\nclient_file = "kafka.properties"\n')
    site.config.write_text(text)
    site.daemon.start()
    wait_until(lambda: site.flush_lsn() is not None, f"it streams\n{site.daemon.tail()}")
    taken = site("events", "fence", "--json").data
    assert "others may read" in taken["unknown"]
    secret.chmod(0o600)
    again = site("events", "fence", "--json").data
    assert "no answer from Kafka" in again["unknown"]
    assert "the last fence knows nothing of Kafka" in site("status").stderr
    found = {one["id"]: one for one in site("doctor", "--json", exit_code=None).object["data"]["findings"]}
    assert found["events.cluster"]["severity"] == "fail"
    # No table may be written: no fence, and archiving goes on.
    site.server.execute("ALTER TABLE pitr.fence RENAME TO other")
    site.server.execute("CREATE VIEW pitr.fence AS SELECT * FROM pitr.other WHERE false")
    assert site("events", "fence", exit_code=1).stderr
    site.wait_durable()
    assert "hunter2" not in site.daemon.tail()
    assert site.daemon.stop() == 0
