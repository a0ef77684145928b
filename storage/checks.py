"""Checks: what every store refuses before it touches a byte.  Pure.

They stand here once, so that no backend is more lenient than another, and a
hostile name from a manifest cannot leave a directory or a prefix.
"""

from __future__ import annotations

import re

from storage.digest import BodyDigest
from storage.store import OBJECT_BYTES_MAX, StoreRefused

_KEY = re.compile(r"[A-Za-z0-9._/-]{1,512}")
_PREFIX = re.compile(r"[A-Za-z0-9._/-]{0,512}")


class RequestRefused(StoreRefused):
    """The request itself is wrong: its key, size, range or digest.  It tells nothing about the store."""


def check_key(key: str) -> None:
    """Raise RequestRefused unless ``key`` has the form that ``ObjectStore`` promises."""
    if _KEY.fullmatch(key) is None or any(part in ("", ".", "..") for part in key.split("/")):
        raise RequestRefused(f"not an object key: {key[:600]!r}")


def check_prefix(prefix: str) -> None:
    """Raise RequestRefused unless some key may start with ``prefix``; "" stands for all."""
    # The last part may be cut anywhere ("wal/1." is the start of "wal/1.x"); the parts before it may not.
    whole = prefix.split("/")[:-1]
    if _PREFIX.fullmatch(prefix) is None or any(part in ("", ".", "..") for part in whole):
        raise RequestRefused(f"not the start of an object key: {prefix[:600]!r}")


def check_body(key: str, body: bytes, sha256: bytes | None) -> None:
    """Raise RequestRefused if ``body`` is too large, or ``sha256`` cannot be a digest."""
    if len(body) > OBJECT_BYTES_MAX:
        raise RequestRefused(f"object {key} has {len(body)} bytes; the limit is {OBJECT_BYTES_MAX}")
    if sha256 is not None and len(sha256) != 32:
        raise RequestRefused(f"object {key}: a SHA-256 has 32 bytes, not {len(sha256)}")


def check_digest(key: str, body: bytes, sha256: bytes | None) -> None:
    """Raise RequestRefused if ``body`` does not have the digest that the caller gave."""
    if sha256 is not None:
        prove_digest(key, body, sha256)


def prove_digest(key: str, body: bytes, sha256: bytes | None) -> BodyDigest:
    """Return the digest of ``body``, hashed here unless ``sha256`` proves itself.

    Raises RequestRefused if the digest that the caller gave is another one.
    """
    if isinstance(sha256, BodyDigest) and sha256.is_proof_for(body):
        return sha256
    digest = BodyDigest.of(body)
    if sha256 is not None and digest != sha256:
        raise RequestRefused(
            f"object {key} does not have the SHA-256 that was given with it; nothing is stored"
        )
    return digest


def check_range(key: str, start: int, length: int) -> None:
    """Raise RequestRefused unless 0 ≤ start and 0 ≤ length ≤ OBJECT_BYTES_MAX."""
    if start < 0 or not 0 <= length <= OBJECT_BYTES_MAX:
        raise RequestRefused(f"object {key}: cannot read {length} bytes from offset {start}")
