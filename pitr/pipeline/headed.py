"""Objects with a signed header: a signed record, then the container that it speaks for.

The header can be read by a range read without the body, so the chain of WAL pieces is checked for the
price of their headers; and its digest of the body lets a scrubber check the body without any key.

Reference: docs/format.md §4.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pitr.errors import MalformedValue, NotAuthentic
from pitr.pipeline.sign import Signer, Verifier, open_record, sign_record

_PREFIX = struct.Struct(">8sI")
PREFIX_BYTES: Final = 12
_MAGIC = b"PITRH1\0\0"
ENVELOPE_BYTES_MAX: Final = 1024 * 1024
# A header with 64 points has about 5 KiB; one range read of this size nearly always holds it all.
HEADER_READ_BYTES: Final = 16 * 1024


def encode_headed(payload: Mapping[str, object], body: bytes | memoryview, signer: Signer) -> bytes:
    """Return the object: ``payload`` with body_bytes and body_sha256 added and signed, then ``body``.

    Raises MalformedValue if the payload cannot be a record's, has these fields already or is too large.
    """
    return encode_headed_parts(payload, (body,), signer)


def encode_headed_parts(
    payload: Mapping[str, object], body: Sequence[bytes | bytearray | memoryview], signer: Signer
) -> bytes:
    """Return the object of a body that comes in parts.  Raises as ``encode_headed``."""
    if "body_bytes" in payload or "body_sha256" in payload:
        raise MalformedValue("header names its body already")
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    named = {"body_bytes": sum(len(part) for part in body), "body_sha256": digest.hexdigest()}
    envelope = sign_record({**payload, **named}, signer)
    if len(envelope) > ENVELOPE_BYTES_MAX:
        raise MalformedValue(f"header has {len(envelope)} bytes; the limit is {ENVELOPE_BYTES_MAX}")
    return b"".join((_PREFIX.pack(_MAGIC, len(envelope)), envelope, *body))


def header_bytes(object_prefix: bytes | memoryview) -> int:
    """Return how many bytes from the object's start hold the header; ``object_prefix`` has at least 12.

    A reader that has fewer reads again with this length.  Raises NotAuthentic if it is no such object.
    """
    if len(object_prefix) < PREFIX_BYTES:
        raise NotAuthentic("object is cut short", detail=f"{len(object_prefix)} of {PREFIX_BYTES} bytes.")
    magic, length = _PREFIX.unpack_from(object_prefix)
    if magic != _MAGIC or not 0 < length <= ENVELOPE_BYTES_MAX:
        raise NotAuthentic("not an object with a signed header")
    return PREFIX_BYTES + int(length)


class HeadedParts(NamedTuple):
    """The two parts of an object with a signed header; nothing of them is verified."""

    envelope: bytes
    body: memoryview


def split_headed(object_bytes: bytes | memoryview) -> HeadedParts:
    """Return the envelope and the body (a view, no copy), not verified.  Raises NotAuthentic."""
    end = header_bytes(object_bytes)
    if end > len(object_bytes):
        raise NotAuthentic(
            "object is cut short", detail=f"Its header has {len(object_bytes)} of {end} bytes."
        )
    view = memoryview(object_bytes)
    return HeadedParts(bytes(view[PREFIX_BYTES:end]), view[end:])


def open_header(object_prefix: bytes | memoryview, verifier: Verifier, kind: str) -> dict[str, object]:
    """Return the verified header of an object, of which the first ``header_bytes`` are enough.

    Raises as ``pitr.pipeline.sign.open_record``, and NotAuthentic if it is cut short.
    """
    payload = open_record(split_headed(object_prefix).envelope, verifier, kind)
    _body_bytes(payload)
    _body_sha256(payload)
    return payload


def verify_body(payload: Mapping[str, object], body: bytes | memoryview) -> None:
    """Raise NotAuthentic unless ``body`` is the one that the verified header names."""
    if len(body) != _body_bytes(payload) or hashlib.sha256(body).hexdigest() != _body_sha256(payload):
        raise NotAuthentic("object's body is not the one that its header names")


def _body_bytes(payload: Mapping[str, object]) -> int:
    value = payload.get("body_bytes")
    if type(value) is not int or value < 0:
        raise MalformedValue("header has no body_bytes")
    return value


def _body_sha256(payload: Mapping[str, object]) -> str:
    value = payload.get("body_sha256")
    if not isinstance(value, str):
        raise MalformedValue("header has no body_sha256")
    return value
