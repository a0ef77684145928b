"""Objects with a signed header: a signed record, then the container that it speaks for.

The header can be read by a range read without the body, so the chain of WAL pieces is checked for the
price of their headers; and its digest of the body lets a scrubber check the body without any key.

Reference: docs/format.md §4.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from pitr.errors import MalformedValue, NotAuthentic
from pitr.pipeline.sign import Signer, Verifier, open_record, record_bytes, sign_record

_PREFIX = struct.Struct(">8sI")
PREFIX_BYTES: Final = 12
_MAGIC = b"PITRH1\0\0"
ENVELOPE_BYTES_MAX: Final = 1024 * 1024
# Stands for the body's digest while the header is measured.
_SHA256_UNKNOWN: Final = "0" * 64
# A header with 64 points has about 5 KiB; one range read of this size nearly always holds it all.
HEADER_READ_BYTES: Final = 16 * 1024


def encode_headed(payload: Mapping[str, object], body: bytes | memoryview, signer: Signer) -> bytes:
    """Return the object: ``payload`` with body_bytes and body_sha256 added and signed, then ``body``.

    Raises MalformedValue if the payload cannot be a record's, has these fields already or is too large.
    """

    def write(place: memoryview) -> None:
        place[:] = body

    return write_headed(payload, len(body), write, signer).object_bytes


class HeadedObject(NamedTuple):
    """An object, and the signed envelope that is in it."""

    object_bytes: bytes
    envelope: bytes


def write_headed(
    payload: Mapping[str, object], body_bytes: int, write: Callable[[memoryview], None], signer: Signer
) -> HeadedObject:
    """Return the object of the ``body_bytes`` that ``write`` puts into the memory that it is given.

    So they are written once, where they stay: an object is megabytes, and to join it of parts costs as
    much as to encrypt it, with the interpreter held meanwhile.  Raises as ``encode_headed``.
    """
    if "body_bytes" in payload or "body_sha256" in payload:
        raise MalformedValue("header names its body already")
    named = {**payload, "body_bytes": body_bytes, "body_sha256": _SHA256_UNKNOWN}
    envelope_bytes = record_bytes(named)
    if envelope_bytes > ENVELOPE_BYTES_MAX:
        raise MalformedValue(f"header has {envelope_bytes} bytes; the limit is {ENVELOPE_BYTES_MAX}")
    start = PREFIX_BYTES + envelope_bytes
    whole = io.BytesIO()
    # One byte too long, for the last one's writing; the cut gives it back in place.
    whole.seek(start + body_bytes)
    whole.write(b"\0")
    whole.truncate(start + body_bytes)
    with whole.getbuffer() as view, view[start:] as body:
        write(body)
        named["body_sha256"] = hashlib.sha256(body).hexdigest()
        envelope = sign_record(named, signer)
        assert len(envelope) == envelope_bytes, "the digest is as long as what stood for it"
        _PREFIX.pack_into(view, 0, _MAGIC, envelope_bytes)
        view[PREFIX_BYTES:start] = envelope
    return HeadedObject(whole.getvalue(), envelope)


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
