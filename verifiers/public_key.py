"""Public keys as other programs read them: SubjectPublicKeyInfo in PEM, which openssl takes.  Pure.

Reference: RFC 8410 §4; RFC 7468.
"""

from __future__ import annotations

import base64
import re

from pitr.errors import MalformedValue
from pitr.pipeline.sign import Verifier

# SEQUENCE { SEQUENCE { OID 1.3.101.112 (Ed25519) } BIT STRING of 32 bytes }
_SPKI_HEAD = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(r"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]{1,200})-----END PUBLIC KEY-----\s*")


def to_pem(key: Verifier) -> str:
    """Return the key's PEM text."""
    body = base64.b64encode(_SPKI_HEAD + key.public_key).decode("ascii")
    return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"


def from_pem(text: str) -> Verifier:
    """Read an Ed25519 public key's PEM text, or the text that ``str`` gives.  Raises MalformedValue."""
    if text.strip().startswith("ed25519:"):
        return Verifier.parse(text.strip())
    match = _PEM.fullmatch(text[:10_000])
    if match is None:
        raise MalformedValue("not the PEM text of a public key")
    try:
        content = base64.b64decode("".join(match[1].split()), validate=True)
    except ValueError as cause:
        raise MalformedValue("not the PEM text of a public key") from cause
    if len(content) != len(_SPKI_HEAD) + 32 or not content.startswith(_SPKI_HEAD):
        raise MalformedValue("not an Ed25519 public key")
    return Verifier(content[len(_SPKI_HEAD) :])
