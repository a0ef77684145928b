"""S3Store and ReplicatedStore on a real S3 server: keys, signatures, kills and returns."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fix_s3 import S3Server

from storage.local import DirectoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.s3 import S3Credentials, S3Store, S3Timeouts
from storage.s3_dialects import PROFILES
from storage.store import ObjectMissing, ObjectStore, StoreRefused, StoreUnavailable

QUICK = S3Timeouts(connect_s=2, read_s=5, body_s=20, attempts=2)
IDLE_S = 60.0
_numbers = itertools.count(1)


def open_store(server: S3Server, bucket: str, **options: Any) -> S3Store:
    given: dict[str, Any] = {
        "endpoint_url": server.endpoint,
        "region_name": server.region_name,
        "credentials": S3Credentials(server.access_key, server.secret_key),
        "profile": PROFILES["versitygw"],
        "timeouts": QUICK,
    }
    return S3Store(bucket, **(given | options))


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket(f"store-{next(_numbers)}")


@pytest.fixture
def store(s3_server: S3Server, bucket: str) -> Iterator[S3Store]:
    store = open_store(s3_server, bucket)
    yield store
    store.close()


def calls(store: ObjectStore) -> list[Callable[[], object]]:
    return [
        lambda: store.put("k", b"x"),
        lambda: store.get("k"),
        lambda: store.get_range("k", 0, 1),
        lambda: store.get_range("k", 0, 0),
        lambda: list(store.list_objects("")),
    ]


def test_a_wrong_key_is_a_refusal_and_never_a_missing_object(s3_server: S3Server, bucket: str) -> None:
    for credentials in (
        S3Credentials("nobody", "wrong"),
        S3Credentials(s3_server.access_key, "wrong"),
    ):
        for profile in ("versitygw", "b2"):
            store = open_store(s3_server, bucket, credentials=credentials, profile=PROFILES[profile])
            for call in calls(store):
                with pytest.raises(StoreRefused, match="access key"):
                    call()
            store.close()


def test_a_missing_bucket_is_a_refusal(s3_server: S3Server) -> None:
    store = open_store(s3_server, "no-such-bucket")
    for call in calls(store):
        with pytest.raises(StoreRefused, match="create the bucket"):
            call()
    store.close()


def test_the_body_is_not_signed_but_its_signed_digest_is(store: S3Store) -> None:
    seen: list[dict[str, str]] = []

    def note(request: Any, **_: object) -> None:
        seen.append({name: str(value) for name, value in request.headers.items()})

    store._client.meta.events.register("before-send.s3.PutObject", note)
    store.put("k", b"body")
    assert "UNSIGNED-PAYLOAD" in seen[0]["X-Amz-Content-SHA256"]
    signed = seen[0]["Authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"x-amz-checksum-sha256", "if-none-match"} <= set(signed)


@pytest.mark.parametrize("profile", ["versitygw", "b2"])
def test_a_body_changed_on_the_way_is_not_stored(s3_server: S3Server, bucket: str, profile: str) -> None:
    store = open_store(s3_server, bucket, profile=PROFILES[profile])

    def change(request: Any, **_: object) -> None:
        request.body = b"Body"

    store._client.meta.events.register("before-send.s3.PutObject", change)
    with pytest.raises(StoreUnavailable, match="BadDigest"):
        store.put("k", b"body", sha256=hashlib.sha256(b"body").digest())
    assert list(store.list_objects("")) == []
    store.close()


def test_a_listing_goes_beyond_the_thousand_keys_of_one_page(store: S3Store) -> None:
    names = sorted(f"many/{number:05}" for number in range(1_050))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    assert [found.key for found in store.list_objects("many/")] == names


def test_prefixes_keep_two_repositories_of_one_bucket_apart(s3_server: S3Server, bucket: str) -> None:
    one, two = open_store(s3_server, bucket, prefix="a/one"), open_store(s3_server, bucket, prefix="a/one2")
    one.put("k", b"1")
    two.put("k", b"2")
    assert (one.get("k"), two.get("k")) == (b"1", b"2")
    assert [found.key for found in one.list_objects("")] == ["k"]
    one.delete("k")
    assert two.get("k") == b"2"
    one.close()
    two.close()


def test_a_deleted_object_of_a_versioned_bucket_is_missing_and_its_name_is_not_given_again(
    s3_server: S3Server,
) -> None:
    bucket = s3_server.make_bucket(f"store-{next(_numbers)}", versioning=True)
    store = open_store(s3_server, bucket)
    store.put("k", b"1")
    store.delete("k")
    with pytest.raises(ObjectMissing):
        store.get("k")
    assert list(store.list_objects("")) == []
    # AWS would take it; what matters is that no caller repeats this for ever.
    with pytest.raises(StoreRefused, match="does not take it again"):
        store.put("k", b"2")
    store.delete("k")
    store.close()


def test_a_server_that_is_killed_and_returns_keeps_what_it_acknowledged(own_s3_server: S3Server) -> None:
    store = open_store(own_s3_server, own_s3_server.make_bucket("killed"))
    store.put("k", b"body")
    own_s3_server.kill()
    for call in calls(store):
        with pytest.raises(StoreUnavailable):
            call()
    own_s3_server.start()
    store.put("k", b"body")
    assert store.get("k") == b"body"
    store.close()


def test_a_region_killed_under_load_is_caught_up_without_a_gap(
    own_s3_server: S3Server, tmp_path: Path
) -> None:
    far = open_store(own_s3_server, own_s3_server.make_bucket("far-region"))
    near: list[ObjectStore] = [DirectoryStore.create(tmp_path / name) for name in "ab"]
    queue = RepairQueue(tmp_path / "repair")
    store = ReplicatedStore(
        [Region("a", near[0]), Region("b", near[1]), Region("far", far)], quorum=2, queue=queue
    )
    names = [f"wal/{number:03}" for number in range(60)]
    with ThreadPoolExecutor(4) as pool:
        for number, _ in enumerate(pool.map(lambda name: store.put(name, name.encode() * 1000), names)):
            if number == 20:
                own_s3_server.kill()
    store.put("heads/1", b"head", after_all=True)
    status = store.status()[2]
    assert status.pending_repairs > 0
    own_s3_server.start()
    assert "heads/1" not in [found.key for found in far.list_objects("heads/")]
    store.retry_now()
    assert store.wait_idle(IDLE_S), store.status()
    assert [found.key for found in far.list_objects("")] == ["heads/1", *names]
    assert all(far.get(name) == near[0].get(name) for name in names)
    store.close()
    queue.close()
    far.close()


def test_nothing_loads_boto3_before_an_s3_region_is_opened() -> None:
    code = (
        "import sys, storage.url, storage.replicated; storage.url.parse_region_url('s3://bucket');"
        "sys.exit(any(name.startswith('boto') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
