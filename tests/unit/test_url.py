"""Region URLs: what is read, what is refused, and that no secret is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.local import DirectoryStore
from storage.s3 import S3Credentials, S3Store
from storage.s3_dialects import PROFILES
from storage.store import StoreError, StoreUnavailable
from storage.url import (
    DirectoryLocation,
    MalformedURL,
    MemoryLocation,
    S3Location,
    create_store,
    open_store,
    parse_region_url,
    shown_url,
)


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("s3://bucket", S3Location("bucket")),
        ("s3://bucket/", S3Location("bucket")),
        ("s3://my.bucket-1/team/pg/", S3Location("my.bucket-1", "team/pg")),
        (
            "s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=eu-central-1&profile=minio",
            S3Location("bucket", "prefix", "http://127.0.0.1:9000", "eu-central-1", "minio"),
        ),
        (
            "s3://bucket?endpoint=https%3A%2F%2Fs3.example&ca=/etc/ca.pem",
            S3Location("bucket", "", "https://s3.example", None, "aws", "/etc/ca.pem"),
        ),
        (
            "s3://bucket?lock=compliance&lock_days=2190",
            S3Location("bucket", lock="COMPLIANCE", lock_days=2190),
        ),
        ("file:///srv/backup", DirectoryLocation(Path("/srv/backup"))),
        ("file://localhost/srv/a%20b", DirectoryLocation(Path("/srv/a b"))),
        ("memory:one", MemoryLocation("one")),
    ],
)
def test_a_url_is_read(text: str, location: object) -> None:
    assert parse_region_url(text) == location
    assert parse_region_url(str(parse_region_url(text))) == location


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with"),
        ("/srv/backup", "begins with"),
        ("http://bucket", "begins with"),
        ("s3://", "bucket's name"),
        ("s3://ab", "bucket's name"),
        ("s3://Bucket", "bucket's name"),
        ("s3://bucket:9000/x", "bucket's name"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/../b", "prefix"),
        ("s3://bucket/a%20b", "prefix"),
        ("s3://key:SECRET@bucket/x", "credentials"),
        ("s3://key@bucket/x", "credentials"),
        ("s3://bucket?endpoint=http://key:SECRET@host", "credentials"),
        ("s3://bucket?secret_key=SECRET", "unknown option 'secret_key'"),
        ("s3://bucket?region=", "needs one value"),
        ("s3://bucket?region=a&region=b", "needs one value"),
        ("s3://bucket?region", "name=value"),
        ("s3://bucket?region=EU WEST", "blanks"),
        ("s3://bucket?region=EU_1", "region's name"),
        ("s3://bucket?profile=mine", "unknown profile 'mine'; known: aws"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "endpoint"),
        ("s3://bucket?endpoint=ftp://host", "http:// or https://"),
        ("s3://bucket?endpoint=http://host/path", "no path"),
        ("s3://bucket?endpoint=http://host:99999", "not an endpoint"),
        ("s3://bucket?lock=forever&lock_days=1", "lock is one of governance, compliance"),
        ("s3://bucket?lock_days=1", "lock is one of"),
        ("s3://bucket?lock=governance", "lock needs lock_days"),
        ("s3://bucket?lock=governance&lock_days=0", "from 1 to 36500"),
        ("s3://bucket?lock=governance&lock_days=36501", "from 1 to 36500"),
        ("s3://bucket#x", "fragment"),
        ("s3://[bucket", "not a region URL"),
        ("file://host/srv", "absolute path"),
        ("file:srv", "absolute path"),
        ("file:///srv/../etc", "absolute path"),
        ("file:///", "root directory"),
        ("file:///srv?x=1", "no options"),
        ("memory:", "memory URL"),
        ("memory:a/b", "memory URL"),
        ("file:///srv\n", "blanks"),
    ],
)
def test_a_wrong_url_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(MalformedURL, match=reason) as caught:
        parse_region_url(text)
    assert "SECRET" not in f"{caught.value} {shown_url(text)}"


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda text: f"s3://bucket{text}"))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        location = parse_region_url(text)
    except MalformedURL:
        return
    assert parse_region_url(str(location)) == location


@pytest.mark.parametrize("profile", list(PROFILES))
def test_each_profile_opens_without_asking_a_server(profile: str) -> None:
    store = open_store(
        S3Location("bucket", endpoint_url="http://127.0.0.1:1", region_name="us-east-1", profile=profile),
        S3Credentials("key", "SECRET"),
    )
    assert isinstance(store, S3Store)
    store.close()


def test_secrets_do_not_show_in_a_representation() -> None:
    assert "SECRET" not in repr(S3Credentials("key", "SECRET", "SECRET"))


def test_a_directory_is_made_a_region_only_when_asked(tmp_path: Path) -> None:
    location = DirectoryLocation(tmp_path / "region")
    store = open_store(location)
    assert isinstance(store, DirectoryStore)
    with pytest.raises(StoreUnavailable):
        store.put("k", b"x")
    create_store(location)
    store.put("k", b"x")


def test_a_memory_store_is_one_for_each_name() -> None:
    open_store(MemoryLocation("test-url-a")).put("k", b"x")
    assert create_store(MemoryLocation("test-url-a")).get("k") == b"x"
    with pytest.raises(StoreError):
        open_store(MemoryLocation("test-url-b")).get("k")
