"""S3Store: objects in a bucket of any server that speaks S3.  The home of boto3.

Bodies are not signed: the request's signature covers the header with the body's
digest, which the server verifies, so over plain HTTP too nobody on the way can
change a body unseen.  That saves hashing every byte twice (0.84 instead of 1.83
CPU seconds per GiB put; measured against versitygw).
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from storage.checks import check_body, check_digest, check_key, check_prefix, check_range
from storage.locks import ObjectLock
from storage.s3_answers import range_of
from storage.s3_dialects import CONFLICT_CODES, DIGEST_CODES, PROFILES, S3Profile
from storage.s3_errors import mapped
from storage.s3_lock import S3Lock, lock_from
from storage.s3_promises import S3Promises
from storage.store import (
    OBJECT_BYTES_MAX,
    CopyCheck,
    CopyDamaged,
    ObjectConflict,
    ObjectInfo,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
)

_READ_BYTES = 1024 * 1024
# Another writer of the same key is done within one request's time, or the key is contested for good.
_CONFLICT_TRIES_MAX = 5
_CONFLICT_PAUSE_S = 0.2
# Sent in a few milliseconds; a piece of WAL is seldom larger.
_SMALL_BODY_BYTES = 1024 * 1024
# Who wants the newest record reads the first keys only, and it takes 0.1 to 0.2 s to take 1,000 keys apart.
_FIRST_PAGE_KEYS = 32
# Servers may send empty pages that go on; one that sends only these is broken.
_EMPTY_PAGES_MAX = 100


# Clients are thread-safe, making one from a session is not.
_session_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """An access key.  The secrets never show in a representation."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class S3Timeouts:
    """How long one call may take: ``attempts`` times connecting and reading, with jittered back-off between.

    ``read_s`` bounds each wait for bytes, ``body_s`` the whole body of an answer.
    """

    connect_s: float = 5.0
    read_s: float = 20.0
    body_s: float = 120.0
    attempts: int = 3


class S3Store:
    """An ``ObjectStore`` in ``bucket``, its keys below ``prefix``.

    Without ``credentials`` boto3 finds them (environment, profile files, instance role) and renews
    them.  ``ca_bundle`` is a file with the authorities to trust.  The constructor asks no server.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region_name: str | None = None,
        credentials: S3Credentials | None = None,
        profile: S3Profile = PROFILES["aws"],
        ca_bundle: str | None = None,
        timeouts: S3Timeouts = S3Timeouts(),
        connections_max: int = 16,
        list_page_keys: int = 1000,
        clock: Callable[[], float] = time.monotonic,
        lock: S3Lock | None = None,
    ) -> None:
        # Half a second and 20 MB, which `wal fetch` from a directory need not pay.
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        check_prefix(prefix)
        self._bucket = bucket
        self._prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        self._profile = profile
        self._timeouts = timeouts
        self._list_page_keys = list_page_keys
        self._clock = clock
        self._lock = lock
        config = Config(
            s3={"payload_signing_enabled": False, "addressing_style": profile.addressing_style},
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": timeouts.attempts},
            connect_timeout=timeouts.connect_s,
            read_timeout=timeouts.read_s,
            max_pool_connections=connections_max,
        )
        try:
            with _session_lock:
                self._client = _session().client(
                    "s3",
                    endpoint_url=endpoint_url,
                    region_name=region_name,
                    aws_access_key_id=None if credentials is None else credentials.access_key,
                    aws_secret_access_key=None if credentials is None else credentials.secret_key,
                    aws_session_token=None if credentials is None else credentials.session_token,
                    verify=ca_bundle,
                    config=config,
                )
            self._client.meta.events.register_last("before-call.s3", _ask_first_only_if_large)
        except (BotoCoreError, ValueError) as error:
            raise StoreRefused(f"bucket {bucket}: {error}") from error

    def put(
        self,
        key: str,
        body: bytes,
        *,
        sha256: bytes | None = None,
        after_all: bool = False,  # noqa: ARG002
    ) -> None:
        """See ``ObjectStore.put``.  One copy, so ``after_all`` holds by itself."""
        check_key(key)
        check_body(key, body, sha256)
        arguments: dict[str, object] = {"ContentType": "application/octet-stream"}
        if self._profile.checksum == "sha256":
            digest = hashlib.sha256(body).digest() if sha256 is None else sha256
            arguments["ChecksumSHA256"] = base64.b64encode(digest).decode()
        else:
            check_digest(key, body, sha256)
            md5 = hashlib.md5(body, usedforsecurity=False).digest()
            arguments["ContentMD5"] = base64.b64encode(md5).decode()
        if self._profile.has_conditional_put:
            arguments["IfNoneMatch"] = "*"
        elif self._head(key) is not None and self._is_same(key, body):
            return
        if self._lock is not None:
            arguments |= self._lock.arguments(key)
        is_hidden = False
        for attempt in range(_CONFLICT_TRIES_MAX):
            code = self._put_once(key, body, sha256, arguments)
            if code is None:
                return
            is_hidden = code == "PreconditionFailed"
            if is_hidden and self._is_same(key, body):
                return
            time.sleep(_CONFLICT_PAUSE_S * (attempt + 1) * random.random())
        if is_hidden:
            # Deleted in a bucket with versions: to AWS the name is free again, to versitygw it is taken.
            raise StoreRefused(f"{self._name(key)} was deleted, and the server does not take it again")
        raise StoreUnavailable(
            f"{self._name(key)}: another writer was in the way {_CONFLICT_TRIES_MAX} times"
        )

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get``."""
        check_key(key)
        body = self._get_whole(key, OBJECT_BYTES_MAX)
        if check is not None:
            check(body)
        return body

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get_range``."""
        check_key(key)
        check_range(key, start, length)
        part = self._get_part(key, start, length)
        if check is not None:
            check(part)
        return part

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list_objects``.  One page of keys is in memory at a time."""
        check_prefix(prefix)
        return self._listing(prefix, start_after)

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``.  In a bucket with versioning this adds a delete marker."""
        check_key(key)
        with mapped(self._name(key)):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def lock_of(self, key: str) -> ObjectLock | None:
        """See ``Locking.lock_of``.  None too where the credentials may not ask."""
        check_key(key)
        answer = self._head(key)
        if answer is None:
            raise ObjectMissing(f"{self._name(key)} is not there")
        return lock_from(answer, f"s3://{self._bucket}/{self._prefix}{key}")

    def promises(self) -> S3Promises:
        """See ``Promising.promises``."""
        return S3Promises(self._client, self._bucket, self._prefix, self._profile)

    def close(self) -> None:
        """Close the connections.  May be repeated."""
        self._client.close()

    def _put_once(
        self, key: str, body: bytes, sha256: bytes | None, arguments: dict[str, object]
    ) -> str | None:
        """Put; return None when stored, or the code of the conflict that the caller must look at."""
        from botocore.exceptions import ClientError

        with mapped(self._name(key)):
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=body, **arguments
                )
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                if code in CONFLICT_CODES or code == "PreconditionFailed":
                    return code
                if code in DIGEST_CODES:
                    # Either it was changed on the way, which may be repeated, or the caller erred.
                    check_digest(key, body, sha256)
                raise
        # A proxy's "200 OK" with a page about a login is not a stored object.
        if not answer.get("ETag"):
            raise StoreUnavailable(f"{self._name(key)}: the answer to the put is not S3's")
        return None

    def _head(self, key: str) -> Any:
        """Return what S3 tells about an object; None if it is not there."""
        from botocore.exceptions import ClientError

        with mapped(self._name(key)):
            try:
                return self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            except ClientError as error:
                # Also a missing bucket, for an answer to HEAD has no body to tell; the put then does.
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    return None
                raise

    def _is_same(self, key: str, body: bytes) -> bool:
        """Return True if the object has the same bytes, False if it is gone.  Raises ObjectConflict."""
        try:
            # No more of it than could be the same: what is there may be as large as its writer liked.
            found = self._get_whole(key, len(body))
        except CopyDamaged:
            found = None
        except ObjectMissing:
            return False
        if found != body:
            raise ObjectConflict(f"{self._name(key)} already holds other bytes")
        return True

    def _get_whole(self, key: str, bytes_max: int) -> bytes:
        with mapped(self._name(key)):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            return self._read(key, answer, bytes_max)

    def _get_part(self, key: str, start: int, length: int) -> bytes:
        from botocore.exceptions import ClientError

        # An empty range cannot be asked for; one byte tells as well whether the object is there.
        last = start + max(length, 1) - 1
        with mapped(self._name(key)):
            try:
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes={start}-{last}"
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "InvalidRange":
                    return b""
                raise
            found = range_of(answer.get("ContentRange", ""))
            if found is None:
                # The server ignored the range: allowed by HTTP, and it costs the whole object.
                return self._read(key, answer, OBJECT_BYTES_MAX)[start : start + length]
            part = self._read(key, answer, max(length, 1))
            # Shorter than asked only at the end: a cut answer must not pass for the object's end.
            if found.start != start or len(part) != min(max(length, 1), found.object_bytes - start):
                raise StoreUnavailable(f"{self._name(key)}: asked for {start}-{last}, got {found}")
        return part[:length]

    def _read(self, key: str, answer: Any, bytes_max: int) -> bytes:
        deadline = self._clock() + self._timeouts.body_s
        stream = answer["Body"]
        # Grows in place and gives its bytes away; pieces kept for a join would be fresh memory each.
        body = io.BytesIO()
        try:
            if answer.get("ContentLength", 0) > bytes_max:
                raise CopyDamaged(f"{self._name(key)} has more than {bytes_max} bytes")
            while part := stream.read(_READ_BYTES):
                body.write(part)
                if body.tell() > bytes_max:
                    raise CopyDamaged(f"{self._name(key)} has more than {bytes_max} bytes")
                if self._clock() > deadline:
                    raise StoreUnavailable(f"{self._name(key)}: not read in {self._timeouts.body_s:g} s")
        finally:
            stream.close()
        return body.getvalue()

    def _listing(self, prefix: str, start_after: str | None) -> Iterator[ObjectInfo]:
        what = f"listing of {prefix!r} in bucket {self._bucket}"
        arguments: dict[str, Any] = {"Bucket": self._bucket}
        arguments["MaxKeys"] = min(_FIRST_PAGE_KEYS, self._list_page_keys)
        arguments["Prefix"] = self._prefix + prefix
        last = self._prefix + (start_after or "")
        if start_after:
            arguments["StartAfter"] = last
        empty_pages = 0
        while True:
            with mapped(what):
                page = self._client.list_objects_v2(**arguments)
            if "IsTruncated" not in page:
                raise StoreUnavailable(f"{what}: the answer is not a listing")
            for found in page.get("Contents", ()):
                # Merging copies rests on the order; some servers (S3 Express) have none.
                if found["Key"] <= last:
                    raise StoreRefused(
                        f"{what}: the server does not list in key order; it cannot be a region"
                    )
                last = found["Key"]
                yield ObjectInfo(last[len(self._prefix) :], found["Size"])
            if not page["IsTruncated"]:
                return
            empty_pages = 0 if page.get("Contents") else empty_pages + 1
            if empty_pages > _EMPTY_PAGES_MAX or not page.get("NextContinuationToken"):
                raise StoreUnavailable(f"{what}: the server does not come to an end")
            arguments["ContinuationToken"] = page["NextContinuationToken"]
            arguments["MaxKeys"] = self._list_page_keys

    def _name(self, key: str) -> str:
        return f"object {key} in bucket {self._bucket}"


@cache
def _session() -> Any:
    """Return the process's session: it holds S3's description, which takes 0.1 s to read, once."""
    import boto3.session

    return boto3.session.Session()


def _ask_first_only_if_large(params: dict[str, Any], **_: object) -> None:
    """Send a small body at once: ``Expect: 100-continue`` costs each put a second way there and back.

    A large one is better refused before it is sent, also since a server may close without reading it.
    """
    body = params.get("body")
    if isinstance(body, io.BytesIO) and body.getbuffer().nbytes <= _SMALL_BODY_BYTES:
        params["headers"].pop("Expect", None)
