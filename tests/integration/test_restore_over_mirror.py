"""``pitr verify --mirror`` and ``pitr restore --replay --mirror``: the source is gone, its copy stands in.

One broker has both; the test is the mirror.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from fix_cli import MakeSite, Site
from fix_event_shop import EventShop, numbers_in, one_partition, open_shop
from fix_kafka import KafkaNode
from fix_ports import free_port
from fix_verify_site import check_of, verify

from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import Sync, SyncPair, encode_sync


def _copy(shop: EventShop, names: MirrorNames, first: int) -> int:
    """Copy what is new in the topic, with a pair for each record; return where to go on."""
    node, at = shop.node, TopicPartition(shop.topic, 0)
    broker, remote = KafkaBroker(KafkaSettings(node.bootstrap)), names.remote_partition(at)
    end = broker.ends([at])[at]
    for record in broker.read(at, first, end):
        downstream = broker.ends([remote])[remote]
        parts = {"key": record.key, "headers": list(record.headers), "timestamp": record.timestamp_ms}
        node.produce(remote.topic, [record.value or b""], **parts)
        key, value = encode_sync(Sync(at, SyncPair(record.offset, downstream)))
        node.produce(names.syncs, [value], key=key)
    broker.close()
    return end


def _with_verifier(site: Site) -> None:
    site.config.write_text(
        site.config.read_text()
        + f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
        + f'organisation = "St. Elsewhere"\nscratch_dir = "{site.folder}/scratch"\n'
        + '\n[verify.drills]\ncomponents = "never"\n'
    )
    site("verifier", "init")


def test_a_restore_is_verified_and_replayed_from_the_copy_alone(
    make_site: MakeSite, kafka_node: KafkaNode
) -> None:
    names = MirrorNames(f"eu{uuid.uuid4().hex[:6]}")
    kafka_node.create_topic(names.syncs)
    mirror = kafka_node.bootstrap.replace("127.0.0.1", "localhost")
    table = f'\n[events.mirror]\nbootstrap = "{mirror}"\nsource_alias = "{names.source_alias}"\n'
    shop = open_shop(make_site, kafka_node, table)
    kafka_node.create_topic(names.remote(shop.topic))
    _with_verifier(shop.site)
    kept = shop.place(3)
    copied = _copy(shop, names, 0)
    number = shop.fence()
    kept += shop.place(2)
    target = shop.now()
    lost = shop.place(4)
    _copy(shop, names, copied)
    shop.site.wait_durable()
    shop.site.set_option(f'bootstrap = "{kafka_node.bootstrap}"', f'bootstrap = "127.0.0.1:{free_port()}"')

    check = check_of(verify(shop.site, "--at", target), "C16")
    assert check["result"] == "SKIPPED", check
    check = check_of(verify(shop.site, "--at", target, "--mirror"), "C16")
    assert check["result"] == "PASSED", check
    assert f"the last fence is {number}, signed" in check["observed"]
    assert "4 to replay" in check["observed"]
    assert "read from the mirror" in check["observed"]

    into = shop.site.folder / "again"
    shop.site.started.append(into)
    words = ["restore", "--identity", shop.site.identity, "--to", target, "--into", into]
    words += ["--start", "--replay", "--yes", "--json"]
    done = shop.site.program("-c", shop.site.config, *words, "--mirror", timeout_s=300)
    assert numbers_in(done.data["replay"]["dsn"]) == sorted(kept + lost)
    said = json.loads(Path(f"{into}.replay-certificate.json").read_text())
    row = one_partition(said["partitions"])
    assert (said["state"], row["topic"], row["applied"], row["missing"]) == ("reconciled", shop.topic, 4, 0)
