"""S3Store against answers that real servers, proxies and networks give on bad days."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from fix_s3_script import Answer, ScriptedS3, error

from storage.s3 import S3Credentials, S3Store, S3Timeouts
from storage.s3_dialects import PROFILES
from storage.store import (
    OBJECT_BYTES_MAX,
    CopyDamaged,
    ObjectConflict,
    ObjectMissing,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

STORED = Answer(200, b"", (("ETag", '"x"'),))
EXISTS = error(412, "PreconditionFailed")


def open_store(scripted: ScriptedS3, profile: str = "minio", attempts: int = 1) -> S3Store:
    return S3Store(
        "bucket",
        endpoint_url=scripted.endpoint,
        region_name="us-east-1",
        credentials=S3Credentials("key", "SECRET"),
        profile=PROFILES[profile],
        timeouts=S3Timeouts(connect_s=2, read_s=2, body_s=10, attempts=attempts),
    )


@pytest.fixture
def store(scripted_s3: ScriptedS3) -> Iterator[S3Store]:
    store = open_store(scripted_s3)
    yield store
    store.close()


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (error(404, "NoSuchKey"), ObjectMissing, "NoSuchKey"),
        (error(404, "NoSuchBucket"), StoreRefused, "create the bucket"),
        (error(404, "XAdminUserNotFound"), StoreRefused, "access key"),
        (Answer(404, b"<html>not here</html>"), StoreRefused, "404"),
        (error(403, "AccessDenied"), StoreRefused, "policy"),
        (error(403, "InvalidAccessKeyId"), StoreRefused, "access key"),
        (error(403, "SignatureDoesNotMatch"), StoreRefused, "secret"),
        (error(403, "RequestTimeTooSkewed"), StoreRefused, "clock"),
        (error(400, "ExpiredToken"), StoreRefused, "expired"),
        (error(400, "AuthorizationHeaderMalformed"), StoreRefused, "another region"),
        (error(501, "NotImplemented"), StoreRefused, "profile="),
        (error(400, "SomethingNew"), StoreRefused, "SomethingNew"),
        (error(503, "SlowDown"), StoreUnavailable, "SlowDown"),
        (error(500, "InternalError"), StoreUnavailable, "InternalError"),
        (error(429, "TooManyRequests"), StoreUnavailable, "429"),
        (error(400, "RequestTimeout"), StoreUnavailable, "RequestTimeout"),
        (Answer(502, b"<html>bad gateway</html>"), StoreUnavailable, "502"),
        (Answer(503, b""), StoreUnavailable, "503"),
    ],
)
def test_an_error_answer_says_what_to_do(
    scripted_s3: ScriptedS3, store: S3Store, answer: Answer, expected: type[StoreError], words: str
) -> None:
    scripted_s3.script(answer)
    with pytest.raises(expected, match=words) as caught:
        store.get("k")
    assert type(caught.value) is expected
    assert "SECRET" not in str(caught.value)
    if expected is not ObjectMissing:
        for call in (lambda: store.put("k", b"x"), lambda: list(store.list_objects(""))):
            with pytest.raises(expected):
                call()


def test_a_storm_is_waited_out_and_the_put_is_repeated(scripted_s3: ScriptedS3) -> None:
    store = open_store(scripted_s3, attempts=3)
    scripted_s3.script(error(503, "SlowDown"), error(500, "InternalError"), STORED)
    store.put("k", b"x")
    assert [method for method, _ in scripted_s3.requests] == ["PUT"] * 3
    store.close()


def test_a_small_put_is_one_way_there_and_back_and_a_large_one_asks_first(
    scripted_s3: ScriptedS3, store: S3Store
) -> None:
    scripted_s3.script(STORED)
    store.put("small", b"x" * (1 << 20))
    assert scripted_s3.asked_first == 0
    store.put("large", b"x" * ((1 << 20) + 1))
    assert scripted_s3.asked_first == 1


def test_a_put_whose_answer_was_lost_finds_its_own_bytes(scripted_s3: ScriptedS3, store: S3Store) -> None:
    scripted_s3.script(EXISTS, Answer(200, b"body"))
    store.put("k", b"body")
    scripted_s3.script(EXISTS, error(404, "NoSuchKey"), STORED)
    store.put("k", b"body")
    scripted_s3.script(EXISTS, error(403, "AccessDenied"))
    with pytest.raises(StoreRefused):
        store.put("k", b"body")


def test_a_put_in_conflict_with_another_is_repeated_a_few_times(
    scripted_s3: ScriptedS3, store: S3Store
) -> None:
    scripted_s3.script(error(409, "ConditionalRequestConflict"), error(409, "OperationAborted"), STORED)
    store.put("k", b"x")
    assert len(scripted_s3.requests) == 3
    scripted_s3.script(error(409, "ConditionalRequestConflict"))
    with pytest.raises(StoreUnavailable, match="5 times"):
        store.put("k", b"x")
    assert len(scripted_s3.requests) == 5


def test_ok_from_something_that_is_not_s3_is_not_success(scripted_s3: ScriptedS3, store: S3Store) -> None:
    scripted_s3.script(Answer(200, b"<html>please log in</html>", (("Content-Type", "text/html"),)))
    with pytest.raises(StoreUnavailable):
        store.put("k", b"x")
    with pytest.raises(StoreUnavailable):
        list(store.list_objects(""))
    scripted_s3.script(Answer(200, b""))
    with pytest.raises(StoreUnavailable):
        list(store.list_objects(""))


def test_a_digest_that_the_server_finds_wrong_is_the_networks_or_the_callers_fault(
    scripted_s3: ScriptedS3, store: S3Store
) -> None:
    scripted_s3.script(error(400, "BadDigest"))
    with pytest.raises(StoreUnavailable):
        store.put("k", b"x", sha256=hashlib.sha256(b"x").digest())
    with pytest.raises(StoreRefused):
        store.put("k", b"x", sha256=hashlib.sha256(b"y").digest())


def test_a_cut_body_is_never_returned(scripted_s3: ScriptedS3, store: S3Store) -> None:
    scripted_s3.script(Answer(200, b"0123456789", cut_after=5))
    with pytest.raises(StoreUnavailable):
        store.get("k")
    scripted_s3.script(
        Answer(206, b"0123456789", (("Content-Range", "bytes 0-9/100"),), cut_after=5),
    )
    with pytest.raises(StoreUnavailable):
        store.get_range("k", 0, 10)


def test_a_range_that_is_not_the_one_asked_for_is_not_returned(
    scripted_s3: ScriptedS3, store: S3Store
) -> None:
    scripted_s3.script(Answer(206, b"01234", (("Content-Range", "bytes 0-4/100"),)))
    with pytest.raises(StoreUnavailable, match="asked for 0-9"):
        store.get_range("k", 0, 10)
    scripted_s3.script(Answer(206, b"01234", (("Content-Range", "bytes 7-11/100"),)))
    with pytest.raises(StoreUnavailable):
        store.get_range("k", 0, 5)
    # Without Content-Range the server has sent the whole object, as HTTP allows.
    scripted_s3.script(Answer(200, b"0123456789"))
    assert store.get_range("k", 2, 3) == b"234"


def test_no_more_than_an_objects_bytes_are_read(scripted_s3: ScriptedS3, store: S3Store) -> None:
    scripted_s3.script(
        Answer(200, b"", (("Content-Length", str(OBJECT_BYTES_MAX + 1)),), cut_after=0),
    )
    with pytest.raises(CopyDamaged, match="more than"):
        store.get("k")
    scripted_s3.script(Answer(206, bytes(100), (("Content-Range", "bytes 0-99/100"),)))
    with pytest.raises(CopyDamaged, match="more than 10 bytes"):
        store.get_range("k", 0, 10)


def test_of_other_bytes_no_more_is_read_than_ours_have(scripted_s3: ScriptedS3, store: S3Store) -> None:
    # A read of more would meet the cut, and be an outage.
    huge = Answer(200, b"b", (("Content-Length", str(OBJECT_BYTES_MAX)),), cut_after=1)
    scripted_s3.script(EXISTS, huge)
    with pytest.raises(ObjectConflict):
        store.put("k", b"body")
    assert len(scripted_s3.requests) == 2


def test_a_server_that_says_nothing_is_not_waited_for(scripted_s3: ScriptedS3, store: S3Store) -> None:
    said = threading.Event()
    scripted_s3.script(Answer(200, b"late", until=said))
    with pytest.raises(StoreUnavailable):
        store.get("k")
    said.set()


def listing(keys: list[str], *, truncated: bool = False, token: str | None = None) -> Answer:
    contents = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    text = (
        f"<ListBucketResult><IsTruncated>{str(truncated).lower()}</IsTruncated>{more}{contents}"
        "</ListBucketResult>"
    )
    return Answer(200, text.encode(), (("Content-Type", "application/xml"),))


def test_a_listing_follows_pages_even_empty_ones(scripted_s3: ScriptedS3, store: S3Store) -> None:
    scripted_s3.script(
        listing(["a"], truncated=True, token="1"), listing([], truncated=True, token="2"), listing(["b"])
    )
    assert [found.key for found in store.list_objects("")] == ["a", "b"]


def test_a_listing_asks_for_few_keys_first_and_for_many_after_that(
    scripted_s3: ScriptedS3, store: S3Store
) -> None:
    scripted_s3.script(
        listing(["a"], truncated=True, token="1"), listing(["b"], truncated=True, token="2"), listing(["c"])
    )
    assert [found.key for found in store.list_objects("")] == ["a", "b", "c"]
    asked = [parse_qs(urlsplit(path).query)["max-keys"] for _, path in scripted_s3.requests]
    assert asked == [["32"], ["1000"], ["1000"]]


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([listing(["b", "a"])], StoreRefused),
        ([listing(["a"], truncated=True, token="1"), listing(["a"])], StoreRefused),
        ([listing(["a"], truncated=True)], StoreUnavailable),
        ([listing([], truncated=True, token="1")], StoreUnavailable),
        ([listing(["a"], truncated=True, token="1"), error(500, "InternalError")], StoreUnavailable),
    ],
    ids=["order", "repeated", "no-token", "endless", "breaks-off"],
)
def test_a_listing_that_cannot_be_trusted_ends_in_an_error(
    scripted_s3: ScriptedS3, store: S3Store, pages: list[Answer], expected: type[StoreError]
) -> None:
    scripted_s3.script(*pages)
    with pytest.raises(expected):
        list(store.list_objects(""))


def test_without_a_conditional_put_the_store_asks_first(scripted_s3: ScriptedS3) -> None:
    store = open_store(scripted_s3, profile="b2")
    scripted_s3.script(Answer(404), STORED)
    store.put("k", b"body")
    assert [method for method, _ in scripted_s3.requests] == ["HEAD", "PUT"]
    scripted_s3.script(Answer(200, b"", (("Content-Length", "4"),)), Answer(200, b"body"))
    store.put("k", b"body")
    assert [method for method, _ in scripted_s3.requests] == ["HEAD", "GET"]
    scripted_s3.script(Answer(403))
    with pytest.raises(StoreRefused):
        store.put("k", b"body")
    store.close()
