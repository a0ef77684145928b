"""The published vectors: our code still gives them, and so does an independent reading of the document."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from golden import make_vectors

from pitr.errors import NotAuthentic
from pitr.pipeline import envelope, keys, seal, sign

VECTORS: dict[str, Any] = json.loads(make_vectors.VECTORS.read_text("ascii"))
COMPUTED: dict[str, Any] = VECTORS["computed"]


def hkdf_sha512(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 §2 by the standard library, so that a mistake in ours is not repeated here."""
    extracted = hmac.digest(salt or bytes(64), secret, "sha512")
    block, okm, counter = b"", b"", 1
    while len(okm) < length:
        block = hmac.digest(extracted, block + info + bytes([counter]), "sha512")
        okm, counter = okm + block, counter + 1
    return okm[:length]


def test_our_code_gives_the_published_vectors() -> None:
    computed = make_vectors.computed()
    assert computed.keys() == COMPUTED.keys()
    for name, value in computed.items():
        assert value == COMPUTED[name], name


@pytest.mark.parametrize("kind", sorted(make_vectors.CONTEXTS))
def test_a_container_opens_by_the_document_alone(kind: str) -> None:
    body, data_key = (
        bytes.fromhex(COMPUTED["containers"][kind]),
        bytes.fromhex(COMPUTED["data_key"]["secret"]),
    )
    assert body[:8] == b"PITR1\0\x01\x14"
    file_id, commitment, key_id = body[8:40], body[40:72], body[72:88]
    context = bytes.fromhex(COMPUTED["contexts"][kind])
    okm = hkdf_sha512(data_key, file_id, b"pitr/v1/container\0" + hashlib.sha256(context).digest(), 64)
    assert commitment == okm[32:]
    assert key_id == hkdf_sha512(data_key, b"", b"pitr/v1/key-id", 16)
    offset, opened = 88, []
    while offset < len(body):
        length = int.from_bytes(body[offset : offset + 4], "big")
        sealed = body[offset + 4 : offset + 4 + length]
        offset += 4 + length
        nonce = bytes(3) + len(opened).to_bytes(8, "big") + bytes([offset == len(body)])
        opened.append(AESGCM(okm[:32]).decrypt(nonce, sealed, hashlib.sha256(body[:88]).digest()))
    assert [frame.hex() for frame in opened] == COMPUTED["frames"]


@pytest.mark.parametrize("kind", sorted(make_vectors.CONTEXTS))
def test_a_published_container_opens_to_its_content(kind: str) -> None:
    body = bytes.fromhex(COMPUTED["containers"][kind])
    context = make_vectors.CONTEXTS[kind]
    content = seal.open_container(body, make_vectors.DATA_KEY, context, content_bytes_max=1000)
    assert content == make_vectors.CONTENT + b"the end"


def test_a_context_reads_as_the_document_says() -> None:
    encoded, fields = bytes.fromhex(COMPUTED["contexts"]["wal-piece"]), []
    while encoded:
        length = int.from_bytes(encoded[:4], "big")
        fields.append(encoded[4 : 4 + length].decode("utf-8"))
        encoded = encoded[4 + length :]
    assert fields == [
        "pitr/v1/context",
        "000102030405060708090a0b0c0d0e0f",
        "7431589122340811337",
        "3",
        "wal-piece",
        "17",
        "0000000A",
        "00000016B374D848",
        "00000016B3800000",
    ]


def test_an_identity_follows_from_its_secret_by_the_document_alone() -> None:
    published = COMPUTED["identity"]
    secret = bytes.fromhex(published["secret"])
    okm = hkdf_sha512(secret, b"", b"pitr/v1/identity", 128)
    root = ed25519.Ed25519PrivateKey.from_private_bytes(okm[96:]).public_key().public_bytes_raw()
    assert published["root"] == "ed25519:" + base64.urlsafe_b64encode(root).decode().rstrip("=")
    check = hashlib.sha256(b"pitr/v1/identity-check" + secret).digest()[:4]
    text = base64.b32encode(secret + check).decode().rstrip("=")
    assert published["text"].replace("-", "") == "PITRIDENTITY1" + text
    for recipient, fingerprint in zip(published["recipients"], published["fingerprints"], strict=True):
        assert hashlib.sha256(recipient.encode()).hexdigest()[:16] == fingerprint


def test_a_record_verifies_by_dsse_alone() -> None:
    record = json.loads(COMPUTED["record"])
    payload, kind = base64.b64decode(record["payload"]), record["payloadType"].encode()
    message = b" ".join((b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload))
    public = COMPUTED["signer"]["public"].removeprefix("ed25519:")
    raw = base64.urlsafe_b64decode(public + "=")
    (signature,) = record["signatures"]
    ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(signature["sig"]), message)
    assert signature["keyid"] == hashlib.sha256(raw).hexdigest()[:16]
    assert json.loads(payload) == make_vectors.RECORD
    assert hashlib.sha256(payload).hexdigest() == COMPUTED["record_payload_sha256"]


def test_dsse_encodes_as_its_own_specification_says() -> None:
    # github.com/secure-systems-lab/dsse, protocol.md, "Test Vectors".
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert sign._pae("http://example.com/HelloWorld", b"hello world") == expected


def test_a_content_key_follows_by_the_document_alone() -> None:
    seed = make_vectors.HOST.seed
    info = b"pitr/v1/content-digest\0" + make_vectors.REPOSITORY.encode()
    key = hkdf_sha512(seed, b"", info, 32)
    assert key.hex() == COMPUTED["content_key"]
    assert hmac.digest(key, make_vectors.CONTENT, "sha256").hex() == COMPUTED["content_hmac"]


@pytest.mark.parametrize("suite", [1, 2])
def test_a_published_envelope_opens_by_each_suite(suite: int) -> None:
    payload = sign.open_record(VECTORS["envelope"].encode(), make_vectors.HOST.public, "envelope")
    record = envelope.EnvelopeRecord.from_payload(payload)
    (entry,) = [key for key in record.recipients if key.suite == suite]
    info = b"pitr/v1/envelope\0" + b"\0".join(
        (make_vectors.REPOSITORY.encode(), b"7431589122340811337", b"00000003", record.key_id.hex().encode())
    )
    assert make_vectors.IDENTITY.open(suite, entry.sealed, info) == make_vectors.DATA_KEY.secret
    with pytest.raises(NotAuthentic):
        make_vectors.IDENTITY.open(suite, entry.sealed, info + b"x")
    assert keys.open_envelope(record, make_vectors.IDENTITY) == make_vectors.DATA_KEY


# RFC 8032 §7.1, tests 1 and 2.
@pytest.mark.parametrize(
    ("secret", "public", "message", "r", "s"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155",
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da",
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_signatures_are_those_of_the_rfc(secret: str, public: str, message: str, r: str, s: str) -> None:
    signer = sign.Signer(bytes.fromhex(secret))
    assert signer.public.public_key.hex() == public
    assert signer.sign(bytes.fromhex(message)).hex() == r + s


def test_key_derivation_agrees_with_the_rfc() -> None:
    # RFC 5869 has no vectors for SHA-512; its test case 1's inputs, checked against RFC 5869 §2 itself.
    secret, salt, info = b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA))
    assert keys.hkdf_sha512(secret, salt=salt, info=info, length=42) == hkdf_sha512(secret, salt, info, 42)
    assert keys.hkdf_sha512(secret, salt=b"", info=b"", length=128) == hkdf_sha512(secret, b"", b"", 128)
