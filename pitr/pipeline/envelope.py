"""Envelopes: the records that carry a data key, sealed to every recipient.  No cryptography: the form only.

Reference: docs/format.md §5; ``pitr.pipeline.keys`` seals and opens.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.errors import MalformedValue
from pitr.layout import ArchiveId
from pitr.pipeline.sign import check_repository_id, decode_time, encode_time

SUITE_HYBRID: Final = 1
SUITE_X25519: Final = 2
KEY_ID_BYTES: Final = 16
# Ten would be many; the limit bounds what a hostile record can make a reader do.
RECIPIENTS_MAX: Final = 64
PURPOSES: Final = ("wal", "backup")
# HPKE's encapsulation ‖ ciphertext of a 32-byte key ‖ tag.
_SEALED_BYTES = {SUITE_HYBRID: 1168, SUITE_X25519: 80}


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A data key sealed to one recipient."""

    fingerprint: str
    suite: int
    sealed: bytes


@dataclass(frozen=True, slots=True)
class EnvelopeRecord:
    """A data key, sealed to every recipient; holds no secret."""

    repository: str
    archive: ArchiveId
    key_id: bytes
    purpose: str
    created_at: datetime
    recipients: tuple[SealedKey, ...]

    def __post_init__(self) -> None:
        check_repository_id(self.repository)
        if len(self.key_id) != KEY_ID_BYTES or self.purpose not in PURPOSES:
            raise MalformedValue(f"not an envelope: purpose {self.purpose!r}, key id {self.key_id.hex()}")
        if (
            not 0
            < len({key.fingerprint for key in self.recipients})
            == len(self.recipients)
            <= RECIPIENTS_MAX
        ):
            raise MalformedValue(f"envelope needs 1 to {RECIPIENTS_MAX} different recipients")

    def to_payload(self) -> dict[str, object]:
        """Return the payload of the record (docs/format.md §5)."""
        return {
            "kind": "envelope",
            "repository": self.repository,
            "system_identifier": str(self.archive.system_identifier),
            "epoch": self.archive.epoch,
            "key_id": self.key_id.hex(),
            "purpose": self.purpose,
            "created_at": encode_time(self.created_at),
            "recipients": [
                {
                    "fingerprint": key.fingerprint,
                    "suite": key.suite,
                    "sealed": base64.b64encode(key.sealed).decode("ascii"),
                }
                for key in self.recipients
            ],
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> EnvelopeRecord:
        """Read a verified payload; fields that it does not know are ignored.  Raises MalformedValue."""
        system, epoch, recipients = (payload.get(k) for k in ("system_identifier", "epoch", "recipients"))
        if not isinstance(system, str) or re.fullmatch(r"[1-9][0-9]{0,19}", system) is None:
            raise MalformedValue("envelope has no system identifier")
        if type(epoch) is not int or not isinstance(recipients, list):
            raise MalformedValue("envelope has no epoch or no recipients")
        return cls(
            check_repository_id(payload.get("repository")),
            ArchiveId(int(system), epoch),
            _key_id(payload.get("key_id")),
            str(payload.get("purpose")),
            decode_time(payload.get("created_at")),
            tuple(_sealed_key(item) for item in recipients),
        )


def _key_id(text: object) -> bytes:
    if not isinstance(text, str) or re.fullmatch(r"[0-9a-f]{32}", text) is None:
        raise MalformedValue("not a data key's id")
    return bytes.fromhex(text)


def _sealed_key(item: object) -> SealedKey:
    if not isinstance(item, Mapping):
        raise MalformedValue("envelope's recipient is not an object")
    fingerprint, suite, sealed = item.get("fingerprint"), item.get("suite"), item.get("sealed")
    if not isinstance(fingerprint, str) or re.fullmatch(r"[0-9a-f]{16}", fingerprint) is None:
        raise MalformedValue("envelope's recipient has no fingerprint")
    if type(suite) is not int or suite not in _SEALED_BYTES or not isinstance(sealed, str):
        raise MalformedValue(f"envelope's recipient {fingerprint} has an unknown suite or no key")
    try:
        raw = base64.b64decode(sealed, validate=True)
    except ValueError as cause:
        raise MalformedValue(f"envelope's recipient {fingerprint} has a damaged key") from cause
    if len(raw) != _SEALED_BYTES[suite]:
        raise MalformedValue(f"envelope's recipient {fingerprint} has a key of {len(raw)} bytes")
    return SealedKey(fingerprint, suite, raw)
