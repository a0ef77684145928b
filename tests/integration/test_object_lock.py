"""Object Lock on a real S3 server: what verifiers put cannot be deleted, and everything else as before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError
from fix_s3 import S3Server

from cli.regions import LOCKED_PREFIXES
from storage.locks import lock_of
from storage.s3 import S3Credentials, S3Store
from storage.store import ObjectMissing, StoreRefused
from storage.url import open_store, parse_region_url

KEY = "log/0123456789abcdef/entry/7ffffffffffffffe"


def store_of(server: S3Server, bucket: str, options: str = "") -> S3Store:
    url = f"s3://{bucket}/prod?endpoint={server.endpoint}&region={server.region_name}&profile=versitygw{options}"
    credentials = S3Credentials(server.access_key, server.secret_key)
    store = open_store(parse_region_url(url), credentials, LOCKED_PREFIXES)
    assert isinstance(store, S3Store)
    return store


@pytest.mark.parametrize("mode", ["governance", "compliance"])
def test_a_locked_version_cannot_be_deleted_and_its_lock_is_told(s3_server: S3Server, mode: str) -> None:
    bucket = s3_server.make_bucket(f"locked-{mode}", object_lock=True)
    store = store_of(s3_server, bucket, f"&lock={mode}&lock_days=2")
    before = datetime.now(UTC)
    store.put(KEY, b"an entry")
    store.put(KEY, b"an entry")
    store.put("wal/1/piece", b"WAL")
    lock = lock_of(store, KEY)
    assert lock is not None
    assert lock.mode == mode.upper()
    assert abs(lock.until - before - timedelta(days=2)) < timedelta(minutes=5)
    assert lock.uri == f"s3://{bucket}/prod/{KEY}"
    assert lock.version is not None
    assert lock_of(store, "wal/1/piece") is None
    with pytest.raises(ObjectMissing):
        lock_of(store, "log/nothing")
    client = s3_server.client()
    with pytest.raises(ClientError, match=r"AccessDenied|[Ll]ock"):
        client.delete_object(Bucket=bucket, Key=f"prod/{KEY}", VersionId=lock.version)
    found = client.get_object(Bucket=bucket, Key=f"prod/{KEY}", VersionId=lock.version)
    assert found["Body"].read() == b"an entry"
    client.close()
    store.close()


def test_a_bucket_without_object_lock_is_left_alone_or_refuses_what_it_cannot(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket("never-locked")
    plain = store_of(s3_server, bucket)
    plain.put(KEY, b"an entry")
    assert lock_of(plain, KEY) is None
    plain.close()
    wanted = store_of(s3_server, bucket, "&lock=governance&lock_days=1")
    with pytest.raises(StoreRefused):
        wanted.put("reports/1", b"a report")
    wanted.put("wal/1", b"WAL")
    wanted.close()
