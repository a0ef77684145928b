"""Check C16 in real verifications: what Kafka and the fences say of the restored moment."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fix_cli import CHECKOUT, MakeSite, Site
from fix_event_shop import EventShop, one_partition, open_shop
from fix_kafka import KafkaNode
from fix_ports import free_port
from fix_schema import schema_errors
from fix_verify_site import audit, check_of, reports_dir, verify

from pitr.pipeline.sign import payload_of

REPORT_SCHEMA = CHECKOUT / "docs/schema/restore-verification-v2.schema.json"


def _with_verifier(site: Site) -> None:
    site.config.write_text(
        site.config.read_text()
        + f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
        + f'organisation = "St. Elsewhere"\nscratch_dir = "{site.folder}/scratch"\n'
        + '\n[verify.drills]\ncomponents = "never"\n'
    )
    site("verifier", "init")


def _report(shop: EventShop, *words: object, exit_code: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Verify; return C16 and the signed predicate."""
    site = shop.site
    done = verify(site, *words, "--reports", reports_dir(site), exit_code=exit_code)
    stem = f"{done.data['number']:08d}-{done.data['report']}" if exit_code == 0 else None
    paths = sorted(reports_dir(site).glob("0*[0-9a-f].json"))
    path = reports_dir(site) / f"{stem}.json" if stem else paths[-1]
    statement = json.loads(payload_of(path.read_bytes()))
    assert schema_errors(REPORT_SCHEMA, statement) == []
    return check_of(done, "C16"), statement["predicate"]


def test_a_verification_says_what_kafka_has_for_the_target(
    make_site: MakeSite, kafka_node: KafkaNode
) -> None:
    shop = open_shop(make_site, kafka_node)
    _with_verifier(shop.site)
    shop.place(3)
    number = shop.fence()
    shop.place(2)
    target = shop.now()
    shop.place(4)
    shop.site.wait_durable()
    check, predicate = _report(shop, "--at", target)
    assert check["result"] == "PASSED", check
    assert f"the last fence is {number}, signed" in check["observed"]
    assert "6 events: 2 in the database, 4 to replay" in check["observed"]
    row = one_partition(predicate["kafka"]["partitions"])
    assert (row["topic"], row["offset_at_target"], row["high_watermark"]) == (shop.topic, 3, 9)
    assert (row["duplicates"], row["missing"], row["replayed_from"]) == (2, 0, None)
    assert audit(shop.site)[0] == 0


@pytest.mark.slow
def test_what_disagrees_fails_and_a_cluster_that_is_away_is_skipped(
    make_site: MakeSite, kafka_node: KafkaNode
) -> None:
    shop = open_shop(make_site, kafka_node)
    _with_verifier(shop.site)
    shop.place(3)
    number = shop.fence()
    shop.place(6)
    # Whoever has the database edits its fences, and retention takes events away: each is told.
    shop.site.server.execute(f"UPDATE pitr.fence SET payload = '{{}}' WHERE id = {number}")
    kafka_node.delete_records(shop.topic, 5)
    shop.site.wait_durable()
    check, predicate = _report(shop, "--latest", exit_code=7)
    assert check["result"] == "FAILED", check
    assert f"row {number} of pitr.fence is not what was signed" in check["reason"]
    assert f"{shop.topic}[0] missing: deleted from 3 to 5" in check["reason"]
    assert one_partition(predicate["kafka"]["partitions"])["missing"] == 2

    shop.site.set_option(f'bootstrap = "{kafka_node.bootstrap}"', f'bootstrap = "127.0.0.1:{free_port()}"')
    check, predicate = _report(shop, "--latest")
    assert (check["result"], predicate["kafka"]) == ("SKIPPED", None)
    assert "Kafka" in check["reason"]
