"""Verifications from real S3: regions in turn, one of them cut off, one with Object Lock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from fix_cli import REGION_NAMES, MakeSite
from fix_s3 import S3Server
from fix_verify_site import audit, left_in_scratch, reports_dir, verified_site, verify


def lock_all(server: S3Server, bucket: str) -> None:
    """Lock every object for a day, as long as nobody is allowed to lift it."""
    client = server.client()
    retention = {"Mode": "GOVERNANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=1)}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="prod/"):
        for one in page.get("Contents", ()):
            if not one["Key"].startswith(("prod/log/", "prod/reports/")):
                client.put_object_retention(Bucket=bucket, Key=one["Key"], Retention=retention)
    client.close()


@pytest.mark.slow
def test_each_region_in_turn_is_restored_from_and_the_report_tells_of_its_lock(
    make_site: MakeSite, s3_server: S3Server
) -> None:
    site = verified_site(make_site(17, s3=s3_server, locked="ap"), 'every = "never"\n')
    first = verify(site, "--latest", "--reports", reports_dir(site))
    assert (first.data["region"], first.data["verdict"]) == (REGION_NAMES[0], "PASSED")
    # The next in turn is lost, so that the one after it is read.
    second = verify(site, "--random", "--without-region", REGION_NAMES[1], "--reports", reports_dir(site))
    assert (second.data["region"], second.data["verdict"]) == (REGION_NAMES[2], "PASSED")
    assert f"region {REGION_NAMES[1]} was cut off: nothing was read from it" in second.data["limits"]
    # As whoever may extend locks does it; this server keeps a bucket's default to itself.
    lock_all(s3_server, urlsplit(site.region_urls[REGION_NAMES.index("ap")]).netloc)
    third = verify(site, "--latest", "--reports", reports_dir(site))
    assert (third.data["region"], third.data["verdict"]) == (REGION_NAMES[1], "PASSED")
    assert left_in_scratch(site) == []
    exit_code, found = audit(site)
    assert exit_code == 0, [one for one in found if one["severity"] != "note"]

    said: dict[str, Any] = site("report", "show", "newest", "--json").data["predicate"]
    regions = {one["name"]: one for one in said["source"]["regions"]}
    assert regions["eu"]["object_lock_mode"] is None
    assert regions["us"]["min_lock_until"] is None
    assert regions["ap"]["object_lock_mode"] == "GOVERNANCE"
    assert regions["ap"]["min_lock_until"] > said["identity"]["created_at"]
    copy = said["log"]["object_lock_copy"]
    assert "/prod/log/" in copy["uri"]
    assert copy["version"]
    assert said["source"]["encryption"]["commitment_ok"] is True
    assert said["source"]["manifest_signature"]["is_valid"] is True
    assert len(said["ransomware"]["indicators"]) == 4
    assert said["source"]["backup_id"] in said["ransomware"]["last_clean_point"]
