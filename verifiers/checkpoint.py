"""Checkpoints: what a verifier signs about its log, as a C2SP signed note.  Pure.

The text says how many entries there are, and the root of their tree, and when the last one was made; so
the same log has the same checkpoint, whoever makes it again.
Reference: c2sp.org/signed-note, c2sp.org/tlog-checkpoint; docs/audit.md.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

from pitr.errors import MalformedValue, NotAuthentic
from pitr.pipeline.sign import Signer, Verifier, decode_time, encode_time

NOTE_CHARS_MAX = 2000
_NOTE = re.compile(
    r"((pitr/[0-9a-f]{32}/[0-9a-f]{16})\n(0|[1-9][0-9]{0,17})\n([A-Za-z0-9+/]{43}=)\n([0-9TZ:.-]{27})\n)"
    r"\n— ([!-*,-~]{1,100}) ([A-Za-z0-9+/]{91}=)\n"
)
_ED25519 = b"\x01"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's size and root; ``at`` is when its last entry was made."""

    origin: str
    size: int
    root: bytes
    at: datetime

    def text(self) -> str:
        """Return the text that is signed."""
        root = base64.b64encode(self.root).decode("ascii")
        return f"{self.origin}\n{self.size}\n{root}\n{encode_time(self.at)}\n"


def log_origin(repository_id: str, verifier: Verifier) -> str:
    """Return the name of the log that ``verifier`` keeps in a repository."""
    return f"pitr/{repository_id}/{verifier.key_id}"


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> str:
    """Return the signed note; always the same for the same checkpoint."""
    text = checkpoint.text()
    signature = _key_hash(checkpoint.origin, signer.public) + signer.sign(text.encode("ascii"))
    return f"{text}\n— {checkpoint.origin} {base64.b64encode(signature).decode('ascii')}\n"


def open_checkpoint(note: str, verifier: Verifier, origin: str) -> Checkpoint:
    """Return the checkpoint that ``verifier`` signed for the log ``origin``.  Raises NotAuthentic."""
    match = _NOTE.fullmatch(note) if len(note) <= NOTE_CHARS_MAX else None
    if match is None:
        raise NotAuthentic("not a checkpoint")
    if match[2] != origin or match[6] != origin:
        raise NotAuthentic("checkpoint is of another log", detail=f"It is of {match[2]}, expected {origin}.")
    signature, root = base64.b64decode(match[7]), base64.b64decode(match[4])
    if base64.b64encode(root).decode("ascii") != match[4]:
        raise NotAuthentic("not a checkpoint", detail="Its base64 is not in its one spelling.")
    if base64.b64encode(signature).decode("ascii") != match[7]:
        raise NotAuthentic("not a checkpoint", detail="Its base64 is not in its one spelling.")
    if signature[:4] != _key_hash(origin, verifier):
        raise NotAuthentic("checkpoint is by another signer")
    verifier.verify(signature[4:], match[1].encode("ascii"))
    try:
        return Checkpoint(origin, int(match[3]), root, decode_time(match[5]))
    except MalformedValue as cause:
        raise NotAuthentic("not a checkpoint", detail=cause.message) from cause


def _key_hash(name: str, verifier: Verifier) -> bytes:
    return hashlib.sha256(name.encode("ascii") + b"\n" + _ED25519 + verifier.public_key).digest()[:4]
