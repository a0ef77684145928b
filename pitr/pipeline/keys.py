"""Keys: data keys, who can open them, and the envelopes that carry them.

A host has recipients' public keys only.  It makes data keys, seals each to every recipient, uses and
forgets them; so it can write what it cannot read tomorrow.  HPKE authenticates nobody: an envelope
is trusted for the signature over its record, never for opening.

Reference: docs/format.md §5; RFC 9180 (HPKE), RFC 5869 (HKDF), FIPS 203 (ML-KEM).
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pitr.errors import KeyMissing, MalformedValue, NotAuthentic
from pitr.layout import ArchiveId
from pitr.pipeline.envelope import KEY_ID_BYTES, SUITE_HYBRID, SUITE_X25519, EnvelopeRecord, SealedKey
from pitr.pipeline.sign import Signer, Verifier, check_repository_id, decode_base64url, encode_base64url

_SECRET_BYTES = 32
_MLKEM_PUBLIC_BYTES = 1184
_PUBLIC_BYTES = {SUITE_HYBRID: _MLKEM_PUBLIC_BYTES + 32, SUITE_X25519: 32}
_IDENTITY_PREFIX = "PITR-IDENTITY-1-"
_IDENTITY_FILE_BYTES_MAX = 64 * 1024
_DOTS_MAX = 64


def hkdf_sha512(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """Derive ``length`` bytes by HKDF-SHA512; an empty salt is the RFC's default."""
    return HKDF(algorithm=hashes.SHA512(), length=length, salt=salt, info=info).derive(secret)


@functools.cache
def best_suite() -> int:
    """Return 1 if the linked library has ML-KEM, else 2.  Probes once."""
    try:
        mlkem.MLKEM768PrivateKey.from_seed_bytes(bytes(64))
    except UnsupportedAlgorithm:
        return SUITE_X25519
    return SUITE_HYBRID


@dataclass(frozen=True, slots=True)
class DataKey:
    """The secret of one backup or one hour of WAL.  Its ``repr`` shows its id only."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != _SECRET_BYTES:
            raise MalformedValue(f"data key has {len(self.secret)} bytes, not {_SECRET_BYTES}")

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> DataKey:
        """Make a new key from ``random``, a source fit for keys such as os.urandom."""
        return cls(random(_SECRET_BYTES))

    @property
    def key_id(self) -> bytes:
        """The 16 public bytes by which containers and envelopes name this key."""
        return hkdf_sha512(self.secret, salt=b"", info=b"pitr/v1/key-id", length=KEY_ID_BYTES)

    def __repr__(self) -> str:
        return f"DataKey(key_id={self.key_id.hex()})"


@dataclass(frozen=True, slots=True)
class Recipient:
    """Public keys to which data keys are sealed; ML-KEM's first, then X25519's."""

    suite: int
    public_key: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != _PUBLIC_BYTES.get(self.suite):
            raise MalformedValue(f"not a recipient of suite {self.suite}: {len(self.public_key)} bytes")

    @classmethod
    def parse(cls, text: str) -> Recipient:
        """Read ``pitr-recipient-1:`` or ``-2:`` and base64url of the keys.  Raises MalformedValue."""
        match = re.fullmatch(r"pitr-recipient-([12]):([A-Za-z0-9_-]+)", text)
        if match is None:
            raise MalformedValue(f"not a recipient: {text[:80]!r}")
        return cls(int(match[1]), decode_base64url(match[2]))

    def __str__(self) -> str:
        return f"pitr-recipient-{self.suite}:{encode_base64url(self.public_key)}"

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the text's SHA-256."""
        return hashlib.sha256(str(self).encode("ascii")).hexdigest()[:16]

    def seal(self, secret: bytes, info: bytes) -> bytes:
        """Return ``secret`` sealed by HPKE, whose own random source this uses.

        Raises MalformedValue if the public key is no point or vector that can be sealed to;
        KeyMissing if the linked library lacks the suite.
        """
        classic = x25519.X25519PublicKey.from_public_bytes(self.public_key[-32:])
        try:
            if self.suite == SUITE_X25519:
                return _hpke(self.suite).encrypt(secret, classic, info=info)
            quantum = mlkem.MLKEM768PublicKey.from_public_bytes(self.public_key[:_MLKEM_PUBLIC_BYTES])
            return _hpke(self.suite).encrypt(
                secret, hpke.MLKEM768X25519PublicKey(quantum, classic), info=info
            )
        except UnsupportedAlgorithm as cause:
            raise _lacks_mlkem() from cause
        except ValueError as cause:
            raise MalformedValue(f"recipient {self.fingerprint} is not a usable public key") from cause


@dataclass(frozen=True, slots=True)
class Identity:
    """The reader's secret, from which its private keys and the root key follow.  ``repr`` shows nothing."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != _SECRET_BYTES:
            raise MalformedValue(f"identity has {len(self.secret)} bytes, not {_SECRET_BYTES}")

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> Identity:
        """Make a new identity from ``random``, a source fit for keys such as os.urandom."""
        return cls(random(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Read an identity's text, as typed from a recovery sheet.  Raises KeyMissing, without it."""
        head, body = text.strip()[: len(_IDENTITY_PREFIX)], text.strip()[len(_IDENTITY_PREFIX) :]
        if head.upper() != _IDENTITY_PREFIX:
            raise KeyMissing("not an identity", hint=f"An identity begins with {_IDENTITY_PREFIX}")
        compact = "".join(body.replace("-", "").split()).upper()
        try:
            raw = base64.b32decode(compact + "=" * (-len(compact) % 8))
        except (binascii.Error, ValueError):
            raise KeyMissing(
                "identity cannot be read", hint="It holds letters and the digits 2 to 7."
            ) from None
        secret, check = raw[:_SECRET_BYTES], raw[_SECRET_BYTES:]
        if len(secret) != _SECRET_BYTES or check != _identity_check(secret) or _base32(raw) != compact:
            raise KeyMissing(
                "identity cannot be read",
                detail="Its check digits are wrong.",
                hint="Compare it with the recovery sheet, group by group.",
            )
        return cls(secret)

    def text(self) -> str:
        """Return the identity's text, a secret, in groups of five for the recovery sheet."""
        digits = _base32(self.secret + _identity_check(self.secret))
        return _IDENTITY_PREFIX + "-".join(digits[i : i + 5] for i in range(0, len(digits), 5))

    def recipient(self, suite: int = SUITE_HYBRID) -> Recipient:
        """Return the public half.  Raises KeyMissing if the linked library lacks ML-KEM: ask for suite 2."""
        classic = self._x25519_key().public_key().public_bytes_raw()
        if suite == SUITE_HYBRID:
            return Recipient(suite, self._mlkem_key().public_key().public_bytes_raw() + classic)
        return Recipient(suite, classic)

    def root_signer(self) -> Signer:
        """Return the root key, which signs the repository's record and its epochs'."""
        return Signer(self._derived()[96:128])

    def open(self, suite: int, sealed: bytes, info: bytes) -> bytes:
        """Return the secret that was sealed to this identity.

        Raises NotAuthentic if it was not, or not with this ``info``; KeyMissing as ``recipient``.
        """
        try:
            if suite == SUITE_X25519:
                return _hpke(suite).decrypt(sealed, self._x25519_key(), info=info)
            private = hpke.MLKEM768X25519PrivateKey(self._mlkem_key(), self._x25519_key())
            return _hpke(suite).decrypt(sealed, private, info=info)
        except (InvalidTag, ValueError) as cause:
            raise NotAuthentic("sealed data key is not authentic") from cause

    def _derived(self) -> bytes:
        return hkdf_sha512(self.secret, salt=b"", info=b"pitr/v1/identity", length=128)

    def _mlkem_key(self) -> mlkem.MLKEM768PrivateKey:
        try:
            return mlkem.MLKEM768PrivateKey.from_seed_bytes(self._derived()[:64])
        except UnsupportedAlgorithm as cause:
            raise _lacks_mlkem() from cause

    def _x25519_key(self) -> x25519.X25519PrivateKey:
        return x25519.X25519PrivateKey.from_private_bytes(self._derived()[64:96])


@dataclass(frozen=True, slots=True)
class IdentityFile:
    """What a bare machine needs beside the regions: the identity, and whom to trust."""

    identity: Identity
    repository: str
    root: Verifier

    @classmethod
    def parse(cls, text: str) -> IdentityFile:
        """Read an identity file's TOML.  Raises KeyMissing, which never shows the identity."""
        if len(text) > _IDENTITY_FILE_BYTES_MAX:
            raise KeyMissing(
                "identity file is too large", detail=f"The limit is {_IDENTITY_FILE_BYTES_MAX} bytes."
            )
        # A key of thousands of dotted parts takes a parser minutes; none of ours has a dot.
        if any(line.count(".") > _DOTS_MAX for line in text.splitlines()):
            raise KeyMissing("identity file is not TOML")
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError):  # also a number of more digits than Python reads
            raise KeyMissing("identity file is not TOML") from None
        values = [table.get(name) for name in ("identity", "repository", "root")]
        identity, repository, root = values
        if not isinstance(identity, str) or not isinstance(repository, str) or not isinstance(root, str):
            raise KeyMissing("identity file lacks identity, repository or root")
        try:
            return cls(Identity.parse(identity), check_repository_id(repository), Verifier.parse(root))
        except MalformedValue as cause:
            raise KeyMissing("identity file cannot be read", detail=cause.message) from None

    def render(self) -> str:
        """Return the file's text, which holds a secret."""
        return (
            "# A reader's identity for this repository: with it and one region everything can be restored.\n"
            "# Keep it away from database hosts, and keep a second copy.  Whoever has it reads all backups.\n"
            f'identity = "{self.identity.text()}"\n'
            "# Whom to trust: the repository's id, and the key that says who may write.  Not secret.\n"
            f'repository = "{self.repository}"\n'
            f'root = "{self.root}"\n'
        )


def seal_envelope(
    data_key: DataKey,
    recipients: Sequence[Recipient],
    *,
    repository: str,
    archive: ArchiveId,
    purpose: str,
    created_at: datetime,
) -> EnvelopeRecord:
    """Seal ``data_key`` to every recipient.  Sealing twice gives different bytes.

    Raises MalformedValue if there is no recipient, one stands twice or one cannot be sealed to.
    """
    key_id = data_key.key_id
    info = _envelope_info(repository, archive, key_id)
    sealed = tuple(SealedKey(r.fingerprint, r.suite, r.seal(data_key.secret, info)) for r in recipients)
    return EnvelopeRecord(repository, archive, key_id, purpose, created_at, sealed)


def open_envelope(envelope: EnvelopeRecord, identity: Identity) -> DataKey:
    """Return the data key of an envelope whose signature holds.

    Raises KeyMissing if no recipient is this identity; NotAuthentic if what is sealed to it is not
    the key that the record names.
    """
    # Suite 2 first, so that a library without ML-KEM is asked for it only where nothing else is there.
    for suite in (SUITE_X25519, SUITE_HYBRID):
        entries = [key for key in envelope.recipients if key.suite == suite]
        own = identity.recipient(suite).fingerprint if entries else None
        for entry in entries:
            if entry.fingerprint == own:
                info = _envelope_info(envelope.repository, envelope.archive, envelope.key_id)
                secret = identity.open(suite, entry.sealed, info)
                if len(secret) != _SECRET_BYTES or DataKey(secret).key_id != envelope.key_id:
                    raise NotAuthentic("envelope holds another data key than it names")
                return DataKey(secret)
    fingerprints = ", ".join(key.fingerprint for key in envelope.recipients)
    raise KeyMissing(
        "identity is no recipient of this data key",
        detail=f"Key {envelope.key_id.hex()} is sealed to {fingerprints}.",
        hint="Use the identity of one of these recipients.",
    )


def content_key(signing_key: Signer, repository: str) -> bytes:
    """Return the host's key for content digests, which lets it compare what it cannot read."""
    info = b"pitr/v1/content-digest\0" + check_repository_id(repository).encode("ascii")
    return hkdf_sha512(signing_key.seed, salt=b"", info=info, length=32)


class ContentHmac:
    """A content digest, fed piece by piece: HMAC-SHA256 under the host's content key."""

    __slots__ = ("_state",)

    def __init__(self, key: bytes) -> None:
        self._state = hmac.new(key, digestmod="sha256")

    def update(self, content: bytes | memoryview) -> None:
        """Add ``content`` to what was fed before."""
        self._state.update(content)

    def copy(self) -> ContentHmac:
        """Return a second digest that goes on from here."""
        # Without __init__, which would need the key that nobody should keep.
        other = ContentHmac.__new__(ContentHmac)
        other._state = self._state.copy()
        return other

    def digest(self) -> bytes:
        """Return the digest of all so far; feeding may go on."""
        return self._state.digest()


def content_hmac(key: bytes, content: bytes | memoryview) -> bytes:
    """Return the content digest of ``content``."""
    return hmac.digest(key, content, "sha256")


def _hpke(suite: int) -> hpke.Suite:
    kem = hpke.KEM.MLKEM768_X25519 if suite == SUITE_HYBRID else hpke.KEM.X25519
    return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _lacks_mlkem() -> KeyMissing:
    return KeyMissing(
        "this machine's cryptographic library has no ML-KEM",
        hint="Use a recipient of suite 2, or a build of cryptography with OpenSSL 3.5 or later.",
    )


def _envelope_info(repository: str, archive: ArchiveId, key_id: bytes) -> bytes:
    fields = (
        check_repository_id(repository),
        str(archive.system_identifier),
        f"{archive.epoch:08d}",
        key_id.hex(),
    )
    return b"pitr/v1/envelope\0" + "\0".join(fields).encode("ascii")


def _identity_check(secret: bytes) -> bytes:
    return hashlib.sha256(b"pitr/v1/identity-check" + secret).digest()[:4]


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).rstrip(b"=").decode("ascii")
