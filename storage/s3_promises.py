"""Asks an S3 server what its buckets promise: see ``storage.promises``.  boto3 stays in ``storage.s3``."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from typing import Any, Final

from storage.checks import check_key
from storage.promises import LockState
from storage.s3_dialects import DIGEST_CODES, S3Profile
from storage.s3_errors import mapped
from storage.store import StoreError

_BODY: Final = b"pitr probe: a store that keeps this one verifies no digests\n"
_OTHER_BODY: Final = b"pitr probe: what was said to be sent\n"
_DENIED: Final = frozenset({"AccessDenied", "403", "AllAccessDisabled"})
# There is nothing to be deleted, which is said only to whoever may.
_NOTHING_THERE: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404"})
_TAKEN: Final = frozenset({"PreconditionFailed"})
_NO_LOCK: Final = frozenset({"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration"})
# The id that S3 gives to what was put while the bucket kept no versions: it is valid everywhere.
_NULL_VERSION: Final = "null"


class S3Promises:
    """See ``storage.promises.Promises``."""

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str,
        profile: S3Profile,
    ) -> None:
        self._client: Final = client
        self._bucket: Final = bucket
        self._prefix: Final = prefix
        self._profile: Final = profile

    def takes_wrong_digest(self, key: str) -> bool:
        """See ``Promises.takes_wrong_digest``.  What was stored is deleted, where that is allowed."""
        check_key(key)
        if self._profile.checksum == "sha256":
            wrong = {"ChecksumSHA256": base64.b64encode(hashlib.sha256(_OTHER_BODY).digest()).decode()}
        else:
            md5 = hashlib.md5(_OTHER_BODY, usedforsecurity=False).digest()
            wrong = {"ContentMD5": base64.b64encode(md5).decode()}
        if self._profile.has_conditional_put:
            wrong["IfNoneMatch"] = "*"
        code, _ = self._ask(
            "a put with a wrong digest",
            DIGEST_CODES | _TAKEN,
            "put_object",
            Key=self._prefix + key,
            Body=_BODY,
            **wrong,
        )
        if code in DIGEST_CODES:
            return False
        # It was stored, now or by an earlier probe whose credentials could not delete it.
        with suppress(StoreError):
            self.may_delete(key)
        return True

    def keeps_versions(self) -> bool:
        """See ``Promises.keeps_versions``."""
        _, answer = self._ask("the bucket's versioning", frozenset(), "get_bucket_versioning")
        return bool(answer.get("Status") == "Enabled")

    def lock_state(self) -> LockState:
        """See ``Promises.lock_state``."""
        code, answer = self._ask("the bucket's Object Lock", _NO_LOCK, "get_object_lock_configuration")
        found = answer.get("ObjectLockConfiguration", {})
        if code is not None or found.get("ObjectLockEnabled") != "Enabled":
            return LockState(is_on=False)
        rule = found.get("Rule", {}).get("DefaultRetention", {})
        if not rule.get("Mode"):
            return LockState(is_on=True)
        amount, unit = (rule["Years"], "years") if rule.get("Years") else (rule.get("Days"), "days")
        return LockState(is_on=True, by_default=f"{rule['Mode']} for {amount} {unit}")

    def may_delete(self, key: str) -> bool:
        """See ``Promises.may_delete``.  Of the marker that a bucket with versions makes, nothing is left."""
        check_key(key)
        code, answer = self._ask(
            "a delete", _DENIED | _NOTHING_THERE, "delete_object", Key=self._prefix + key
        )
        if answer.get("VersionId"):
            with suppress(StoreError):
                self._ask(
                    "a delete of a marker",
                    _DENIED | _NOTHING_THERE,
                    "delete_object",
                    Key=self._prefix + key,
                    VersionId=answer["VersionId"],
                )
        return code not in _DENIED

    def may_delete_versions(self, key: str) -> bool:
        """See ``Promises.may_delete_versions``."""
        check_key(key)
        code, _ = self._ask(
            "a delete of a version",
            _DENIED | _NOTHING_THERE,
            "delete_object",
            Key=self._prefix + key,
            VersionId=_NULL_VERSION,
        )
        return code not in _DENIED

    def _ask(
        self, what: str, expected: frozenset[str], operation: str, **arguments: object
    ) -> tuple[str | None, dict[str, Any]]:
        """Return an expected error's code, or None and the answer.  Raises StoreError for other errors."""
        with mapped(f"{what}, bucket {self._bucket}"):
            try:
                answer = getattr(self._client, operation)(Bucket=self._bucket, **arguments)
            except self._client.exceptions.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                if code not in expected:
                    raise
                return code, {}
        return None, dict(answer)
