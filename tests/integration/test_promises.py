"""What the doctor finds of a region's promises, on a real S3 server: above all that a host may not delete."""

from __future__ import annotations

import json

import pytest
from fix_s3 import S3Server
from fix_s3_script import Answer, ScriptedS3, error

from storage.memory import MemoryStore
from storage.regions import Region
from storage.s3 import S3Credentials, S3Store
from storage.s3_dialects import PROFILES
from verifiers.base import Severity
from verifiers.promise_probes import probe_promises
from verifiers.store_probes import probe_region

KEY = "probe/0123456789abcdef/host"
HOST, SECRET = "host", "not-a-secret-either"
# What docs/config-regions.md says that a host needs.
WRITE_ONLY = ("s3:PutObject", "s3:GetObject", "s3:ListBucket")
ASKS = ("s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration")


def allow(server: S3Server, bucket: str, *actions: str) -> None:
    """Let the host do this in the bucket, and nothing else."""
    both = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    rule = {"Effect": "Allow", "Principal": [HOST], "Action": list(actions), "Resource": both}
    client = server.client()
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))
    client.close()


def region_of(server: S3Server, bucket: str, access_key: str, secret: str) -> Region:
    store = S3Store(
        bucket,
        "prod",
        endpoint_url=server.endpoint,
        region_name=server.region_name,
        credentials=S3Credentials(access_key, secret),
        profile=PROFILES["versitygw"],
    )
    return Region("eu", store)


def found(region: Region, *, asks_lock: bool = False) -> dict[str, Severity]:
    """Return what each check of the promises says, by the last part of its name."""
    return {
        finding.id.removeprefix("region.eu."): finding.severity
        for finding in probe_promises(region, KEY, asks_lock=asks_lock)
    }


def kept(server: S3Server, bucket: str) -> tuple[list[str], list[str]]:
    """Return what the bucket has: objects with all their versions, and delete markers."""
    client = server.client()
    try:
        answer = client.list_object_versions(Bucket=bucket)
    finally:
        client.close()
    return (
        [one["Key"] for one in answer.get("Versions", [])],
        [one["Key"] for one in answer.get("DeleteMarkers", [])],
    )


def test_a_host_that_may_only_write_keeps_every_promise(s3_server_with_users: S3Server) -> None:
    server = s3_server_with_users
    bucket = server.make_bucket("guarded", object_lock=True, default_lock_days=2)
    server.make_user(HOST, SECRET)
    allow(server, bucket, *WRITE_ONLY, *ASKS)
    region = region_of(server, bucket, HOST, SECRET)
    for _ in range(2):
        assert [one.severity for one in probe_region(region, KEY)] == [Severity.OK] * 4
        assert found(region) == dict.fromkeys(
            ("digest", "versioning", "lock", "delete", "delete-version"), Severity.OK
        )
    assert kept(server, bucket) == ([f"prod/{KEY}"], [])
    # Without the right to ask, nothing is known of what the bucket is; what is denied still is.
    allow(server, bucket, *WRITE_ONLY)
    assert found(region) == {
        "digest": Severity.OK,
        "versioning": Severity.WARN,
        "lock": Severity.WARN,
        "delete": Severity.OK,
        "delete-version": Severity.OK,
    }
    # Each right is tried by itself.
    allow(server, bucket, *WRITE_ONLY, *ASKS, "s3:DeleteObject")
    assert (found(region)["delete"], found(region)["delete-version"]) == (Severity.WARN, Severity.OK)
    assert kept(server, bucket) == ([f"prod/{KEY}"], [])
    region.store.close()


@pytest.mark.parametrize("is_versioned", [False, True])
def test_one_that_may_do_all_is_warned_of_and_leaves_nothing(s3_server: S3Server, is_versioned: bool) -> None:
    bucket = s3_server.make_bucket(f"open-{is_versioned}".lower(), versioning=is_versioned)
    region = region_of(s3_server, bucket, s3_server.access_key, s3_server.secret_key)
    assert found(region) == {
        "digest": Severity.OK,
        "versioning": Severity.OK if is_versioned else Severity.WARN,
        "lock": Severity.WARN,
        "delete": Severity.WARN,
        "delete-version": Severity.WARN,
    }
    assert found(region, asks_lock=True)["lock"] is Severity.FAIL
    assert kept(s3_server, bucket) == ([], [])
    region.store.close()


def test_a_lock_that_holds_nothing_by_default_is_told(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket("lock-for-whom", object_lock=True)
    region = region_of(s3_server, bucket, s3_server.access_key, s3_server.secret_key)
    assert found(region, asks_lock=True)["lock"] is Severity.WARN
    region.store.close()


def test_a_server_that_verifies_no_digest_fails_and_what_it_took_is_deleted(scripted_s3: ScriptedS3) -> None:
    stored = Answer(headers=(("ETag", '"x"'),))
    for profile in ("versitygw", "ceph"):
        store = S3Store(
            "bucket",
            endpoint_url=scripted_s3.endpoint,
            region_name="us-east-1",
            credentials=S3Credentials("a", "b"),
            profile=PROFILES[profile],
        )
        scripted_s3.script(stored, Answer(204))
        assert store.promises().takes_wrong_digest(KEY)
        assert [method for method, _ in scripted_s3.requests] == ["PUT", "DELETE"]
        # One that could not be deleted then is in the way now.
        scripted_s3.script(error(412, "PreconditionFailed"), error(403, "AccessDenied"))
        assert store.promises().takes_wrong_digest(KEY)
        scripted_s3.script(error(400, "BadDigest"))
        assert not store.promises().takes_wrong_digest(KEY)
        assert len(scripted_s3.requests) == 1
        store.close()


def test_what_a_server_does_not_know_is_no_promise(scripted_s3: ScriptedS3) -> None:
    store = S3Store(
        "bucket",
        endpoint_url=scripted_s3.endpoint,
        region_name="us-east-1",
        credentials=S3Credentials("a", "b"),
        profile=PROFILES["versitygw"],
    )
    scripted_s3.script(error(501, "NotImplemented"))
    assert set(found(Region("eu", store)).values()) == {Severity.WARN}
    store.close()


class _Careless(MemoryStore):
    """A store that looks at no digest."""

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        super().put(key, body, after_all=after_all)


def test_a_store_without_rights_of_its_own_is_told_and_its_digests_are_tried() -> None:
    store = MemoryStore()
    assert found(Region("eu", store)) == {"digest": Severity.OK, "delete": Severity.WARN}
    assert list(store.list_objects("")) == []
    assert found(Region("eu", _Careless()))["digest"] is Severity.FAIL
