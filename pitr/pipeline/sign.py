"""Signed records: small JSON documents that say who wrote them, in DSSE envelopes, and Ed25519 keys.

A reader learns nothing from a record before its signature holds: the envelope is matched byte by byte
against the one form it may have, and the payload is parsed only afterwards.

Reference: docs/format.md §4; DSSE v1 (github.com/secure-systems-lab/dsse); RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pitr.errors import KeyMissing, MalformedValue, NotAuthentic
from storage.store import OBJECT_BYTES_MAX

# A record is one object of the store.
RECORD_BYTES_MAX = OBJECT_BYTES_MAX
# Ours are four levels deep; far below Python's own limit on recursion.
DEPTH_MAX = 32
_KEY_BYTES = 32
_SIGNING_KEY_PREFIX = "pitr-signing-key-1:"
_VERIFIER_PREFIX = "ed25519:"
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_ENVELOPE = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/]*={0,2})","payloadType":"([!#-\[\]-~]{1,100})",'
    rb'"signatures":\[\{"keyid":"([0-9a-f]{16})","sig":"([A-Za-z0-9+/]{86}==)"\}\]\}'
)
_REPOSITORY_ID = re.compile(r"[0-9a-f]{32}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


@dataclass(frozen=True, slots=True)
class Verifier:
    """An Ed25519 public key: checks what its signer signed."""

    public_key: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != _KEY_BYTES:
            raise MalformedValue(f"public key has {len(self.public_key)} bytes, not {_KEY_BYTES}")

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read ``ed25519:`` and base64url of the raw key.  Raises MalformedValue."""
        if not text.startswith(_VERIFIER_PREFIX):
            raise MalformedValue(f"not a signer's public key: {text[:80]!r}")
        return cls(decode_base64url(text.removeprefix(_VERIFIER_PREFIX)))

    def __str__(self) -> str:
        return _VERIFIER_PREFIX + encode_base64url(self.public_key)

    @property
    def key_id(self) -> str:
        """The first 16 hexadecimal digits of the raw key's SHA-256."""
        return hashlib.sha256(self.public_key).hexdigest()[:16]

    def verify(self, signature: bytes, message: bytes) -> None:
        """Raise NotAuthentic unless ``signature`` is this key's over ``message``."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, message)
        except (InvalidSignature, ValueError) as cause:
            raise NotAuthentic("signature is wrong", detail=f"Expected that of {self}.") from cause


@dataclass(frozen=True, slots=True)
class Signer:
    """An Ed25519 private key, by its 32-byte seed.  Its text is a secret; its ``repr`` is not."""

    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != _KEY_BYTES:
            raise KeyMissing(f"signing key has {len(self.seed)} bytes, not {_KEY_BYTES}")

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> Signer:
        """Make a new key from ``random``, a source fit for keys such as os.urandom."""
        return cls(random(_KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> Signer:
        """Read a key file's text.  Raises KeyMissing, which never shows the text."""
        line = text.strip()
        if not line.startswith(_SIGNING_KEY_PREFIX):
            raise KeyMissing(
                "not a signing key", hint=f"The key file's text begins with {_SIGNING_KEY_PREFIX}"
            )
        try:
            return cls(decode_base64url(line.removeprefix(_SIGNING_KEY_PREFIX)))
        except MalformedValue:
            raise KeyMissing("signing key cannot be read", detail="It is not base64url.") from None

    def text(self) -> str:
        """Return the text of the key file, a secret, without a line end."""
        return _SIGNING_KEY_PREFIX + encode_base64url(self.seed)

    @property
    def public(self) -> Verifier:
        """The public half."""
        return Verifier(Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature; the same for the same message."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)


def sign_record(payload: Mapping[str, object], signer: Signer) -> bytes:
    """Return the signed record of ``payload``; its kind is ``payload["kind"]``.

    The same payload gives the same bytes.  Raises MalformedValue for what a record cannot hold.
    """
    kind = payload.get("kind")
    if not isinstance(kind, str) or _KIND.fullmatch(kind) is None:
        raise MalformedValue(f"not a record's kind: {kind!r}")
    return sign_typed(encode_payload(payload), record_type(kind), signer)


def sign_typed(content: bytes, payload_type: str, signer: Signer) -> bytes:
    """Return the envelope of a payload of any DSSE type, in the one form that a record's has.

    The same content gives the same bytes.  Raises MalformedValue if it is too long.
    """
    signature = signer.sign(_pae(payload_type, content))
    record = _record(content, payload_type, signer.public.key_id, signature)
    if len(record) > RECORD_BYTES_MAX:
        raise MalformedValue(f"record has {len(record)} bytes; the limit is {RECORD_BYTES_MAX}")
    return record


def record_bytes(payload: Mapping[str, object]) -> int:
    """Return the length that ``sign_record`` gives ``payload``: that of its values' texts decides it alone.

    Raises MalformedValue as that does.
    """
    content = len(encode_payload(payload))
    payload_type = record_type(str(payload.get("kind")))
    return (content + 2) // 3 * 4 + len(_record(b"", payload_type, "0" * 16, bytes(64)))


def _record(content: bytes, payload_type: str, key_id: str, signature: bytes) -> bytes:
    return b'{"payload":"%b","payloadType":"%b","signatures":[{"keyid":"%b","sig":"%b"}]}' % (
        base64.b64encode(content),
        payload_type.encode("ascii"),
        key_id.encode("ascii"),
        base64.b64encode(signature),
    )


def open_record(body: bytes | memoryview, verifier: Verifier, kind: str) -> dict[str, object]:
    """Return the payload of a record of ``kind`` that ``verifier``'s signer signed.

    Raises NotAuthentic if it is no record, is by another signer, is altered or is of another kind;
    MalformedValue if the signer signed what a record cannot hold, or another version.
    """
    content, payload_type = _verified(body, verifier)
    if payload_type != record_type(kind):
        if re.fullmatch(rf"application/vnd\.pitr\.{re.escape(kind)}\.v[0-9]+\+json", payload_type):
            raise MalformedValue(
                f"record's version is unknown: {payload_type}", hint="Use a newer version of this program."
            )
        raise NotAuthentic("record is of another kind", detail=f"It is {payload_type}, expected {kind}.")
    payload = decode_payload(content)
    if payload.get("kind") != kind:
        raise NotAuthentic("record's payload is of another kind", detail=f"It says {payload.get('kind')!r}.")
    return payload


def open_typed(body: bytes | memoryview, verifier: Verifier, payload_type: str) -> bytes:
    """Return the payload of an envelope of ``sign_typed``.  Raises NotAuthentic as ``open_record`` does."""
    content, said = _verified(body, verifier)
    if said != payload_type:
        raise NotAuthentic("envelope is of another type", detail=f"It is {said}, expected {payload_type}.")
    return content


def _verified(body: bytes | memoryview, verifier: Verifier) -> tuple[bytes, str]:
    """Return an envelope's payload and its type, once its signature is ``verifier``'s."""
    match = _match(body)
    payload_type = match[2].decode("ascii")
    if match[3].decode("ascii") != verifier.key_id:
        raise NotAuthentic(
            "record is by another signer",
            detail=f"Its key is {match[3].decode()}, expected {verifier.key_id}.",
        )
    content = _decode_base64(match[1])
    verifier.verify(_decode_base64(match[4]), _pae(payload_type, content))
    return content, payload_type


def record_key_id(body: bytes | memoryview) -> str:
    """Return the id of the key that a record says it is signed with, *not verified*.  As ``payload_of``."""
    return _match(body)[3].decode("ascii")


def payload_of(body: bytes | memoryview) -> bytes:
    """Return the raw payload, *not verified*: for digests only.  Raises NotAuthentic if it is no record."""
    return _decode_base64(_match(body)[1])


def payload_sha256(body: bytes | memoryview) -> bytes:
    """Return the SHA-256 of the raw payload, which the next record of a chain names.  As ``payload_of``."""
    return hashlib.sha256(payload_of(body)).digest()


def record_type(kind: str) -> str:
    """Return DSSE's payloadType of records of ``kind``."""
    return f"application/vnd.pitr.{kind}.v1+json"


def encode_payload(payload: Mapping[str, object]) -> bytes:
    """Return ``payload`` as the one JSON text that it has: sorted, no white space, ASCII.

    Raises MalformedValue for floats (their text is not unique), keys that are no strings, integers
    beyond 64 bits, nesting deeper than DEPTH_MAX and whatever JSON lacks.
    """
    _check_value(payload, 1)
    return json.dumps(
        payload, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"), default=dict
    ).encode("ascii")


def decode_payload(content: bytes) -> dict[str, object]:
    """Read a payload, strictly: only the text that ``encode_payload`` gives is accepted.

    So double keys, floats, white space and other spellings are refused.  Raises MalformedValue.
    """
    try:
        payload = json.loads(content.decode("ascii"))
    except (ValueError, RecursionError) as cause:
        raise MalformedValue("record's payload is not JSON") from cause
    if not isinstance(payload, dict):
        raise MalformedValue("record's payload is not a JSON object")
    if encode_payload(payload) != content:
        raise MalformedValue("record's payload is not in the form that it must have")
    return payload


def encode_time(at: datetime) -> str:
    """Return ``at``, which must be aware, as records hold times: RFC 3339, UTC, microseconds."""
    if at.utcoffset() is None:
        raise MalformedValue(f"time without a zone: {at.isoformat()}")
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def decode_time(text: object) -> datetime:
    """Read a record's time.  Raises MalformedValue."""
    if not isinstance(text, str) or _TIME.fullmatch(text) is None:
        raise MalformedValue(f"not a record's time: {str(text)[:80]!r}")
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise MalformedValue(f"not a record's time: {text!r}") from None


def check_repository_id(text: object) -> str:
    """Return ``text`` if it is a repository id: 32 lower-case hexadecimal digits.  Raises MalformedValue."""
    if not isinstance(text, str) or _REPOSITORY_ID.fullmatch(text) is None:
        raise MalformedValue(f"not a repository id: {str(text)[:80]!r}")
    return text


def encode_base64url(content: bytes) -> str:
    """Return base64url (RFC 4648 §5) without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def decode_base64url(text: str) -> bytes:
    """Read base64url without padding, in its one spelling.  Raises MalformedValue, which shows no text."""
    if re.fullmatch(r"[A-Za-z0-9_-]*", text) is None or len(text) % 4 == 1:
        raise MalformedValue("not base64url")
    content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode_base64url(content) != text:
        raise MalformedValue("not base64url in its one spelling")
    return content


def _match(body: bytes | memoryview) -> re.Match[bytes]:
    """Match the one form that an envelope has: no JSON parser on bytes that anyone may have written."""
    if len(body) > RECORD_BYTES_MAX:
        raise NotAuthentic(f"record has {len(body)} bytes; the limit is {RECORD_BYTES_MAX}")
    match = _ENVELOPE.fullmatch(bytes(body))
    if match is None:
        raise NotAuthentic("not a signed record")
    return match


def _decode_base64(text: bytes) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as cause:
        raise NotAuthentic("not a signed record", detail="Its base64 is damaged.") from cause
    # The bits that base64 leaves over would let one record have two spellings, and so two digests.
    if base64.b64encode(content) != text:
        raise NotAuthentic("not a signed record", detail="Its base64 is not in its one spelling.")
    return content


def _pae(payload_type: str, content: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = payload_type.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(content), content)


def _check_value(value: object, depth: int) -> None:
    """Raise MalformedValue unless ``value`` may stand in a payload."""
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise MalformedValue("record cannot hold an integer beyond 64 bits")
        return
    if depth > DEPTH_MAX:
        raise MalformedValue(f"record is nested deeper than {DEPTH_MAX}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise MalformedValue(f"record cannot hold a key of type {type(key).__name__}")
            _check_value(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            # What large records are made of, for a call of each costs more than writing them.
            if item is None or type(item) is str or (type(item) is int and 0 <= item < 1 << 63):
                continue
            _check_value(item, depth + 1)
    else:
        raise MalformedValue(f"record cannot hold a value of type {type(value).__name__}")
