"""S3 dialects: how the servers that speak S3 differ, and what their errors mean.  Pure.

``pitr doctor`` probes what a server really does; this table is where it starts.
Measured here: versitygw.  The others follow their documentation and users' reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage.store import ObjectMissing, StoreError, StoreRefused, StoreUnavailable


@dataclass(frozen=True, slots=True)
class S3Profile:
    """One dialect.

    ``has_conditional_put``: the server enforces ``If-None-Match: *``.  Without it the store asks
    whether the object exists and then puts: two writers at the same instant can both succeed, and
    the later one wins, which Object Lock or versioning must then make good.
    ``checksum``: which digest of a put's body the server verifies.
    """

    name: str
    has_conditional_put: bool
    checksum: Literal["sha256", "md5"]
    addressing_style: Literal["virtual", "path"]


PROFILES = {
    profile.name: profile
    for profile in (
        S3Profile("aws", True, "sha256", "virtual"),
        S3Profile("minio", True, "sha256", "path"),
        S3Profile("versitygw", True, "sha256", "path"),
        # RGW has had If-None-Match for long, SHA-256 checksums only since Squid; all verify Content-MD5.
        S3Profile("ceph", True, "md5", "path"),
        # Google conditions on generations only, and its signatures break on x-amz-checksum-*.
        S3Profile("gcs", False, "md5", "path"),
        # Backblaze answers NotImplemented to If-None-Match and refuses x-amz-checksum-sha256.
        S3Profile("b2", False, "md5", "path"),
    )
}

# Asked again at once by the store itself: another writer of the same key was in the way.
CONFLICT_CODES = frozenset({"ConditionalRequestConflict", "OperationAborted"})
DIGEST_CODES = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest"})

_PASSING_CODES = (
    CONFLICT_CODES
    | DIGEST_CODES
    | {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "IncompleteBody"}
)
_REGION_HINT = "the bucket is in another region: set region= in the region's URL"
_CREDENTIALS_HINT = "check the access key and the secret"
_HINTS = {
    "AccessDenied": "the credentials do not allow this: check the bucket's policy",
    # An answer to HEAD has no body, so no code of its own.
    "403": f"{_CREDENTIALS_HINT}, and the bucket's policy",
    "InvalidAccessKeyId": _CREDENTIALS_HINT,
    "SignatureDoesNotMatch": _CREDENTIALS_HINT,
    "XAdminUserNotFound": _CREDENTIALS_HINT,
    "ExpiredToken": "the session's credentials have expired",
    "NoSuchBucket": "create the bucket, or correct its name in the region's URL",
    "PermanentRedirect": _REGION_HINT,
    "AuthorizationHeaderMalformed": _REGION_HINT,
    "IllegalLocationConstraintException": _REGION_HINT,
    "RequestTimeTooSkewed": "this host's clock differs from the server's by more than 15 minutes: correct it",
    "NotImplemented": "the server lacks this: set profile= in the region's URL",
    "ObjectParentIsFile": "the object above it in the key exists",
    "ExistingObjectIsDirectory": "other objects are below that key",
}


def error_from(what: str, code: str, status: int, message: str) -> StoreError:
    """Return the store's error for an S3 error answer.

    Only ``NoSuchKey`` means missing.  Other 404s do not: versitygw answers so to an unknown access
    key, and all servers to an unknown bucket.  Unknown 4xx are refusals, everything else may pass.
    """
    text = f"{what}: {code} ({status}): {message[:300]}"
    if code == "NoSuchKey":
        return ObjectMissing(text)
    if code in _PASSING_CODES or status in (408, 429) or (status >= 500 and code != "NotImplemented"):
        return StoreUnavailable(text)
    hint = _HINTS.get(code)
    return StoreRefused(text if hint is None else f"{text}; {hint}")
