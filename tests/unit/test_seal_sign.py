"""Signed records: one spelling, one signer, one kind; and nothing is parsed before it is verified."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pitr.errors import KeyMissing, MalformedValue, NotAuthentic
from pitr.pipeline import headed, sign

SIGNER = sign.Signer(bytes(range(32)))
OTHER = sign.Signer(bytes(range(1, 33)))
PAYLOAD: dict[str, object] = {"kind": "head", "sequence": 5, "previous": None}


def signed(
    content: bytes, payload_type: str = sign.record_type("head"), signer: sign.Signer = SIGNER
) -> bytes:
    """A record with any payload, as a signer who does not use our code could write it."""
    signature = signer.sign(sign._pae(payload_type, content))
    record = {
        "payload": base64.b64encode(content).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": signer.public.key_id, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(record, separators=(",", ":")).encode()


def test_a_record_is_dsse_json_in_one_spelling() -> None:
    record = sign.sign_record(PAYLOAD, SIGNER)
    assert record == signed(b'{"kind":"head","previous":null,"sequence":5}')
    assert sign.payload_of(record) == b'{"kind":"head","previous":null,"sequence":5}'


def test_every_flipped_bit_of_a_record_is_refused() -> None:
    record = sign.sign_record(PAYLOAD, SIGNER)
    for position in range(len(record)):
        for bit in range(8):
            damaged = bytearray(record)
            damaged[position] ^= 1 << bit
            with pytest.raises(NotAuthentic):
                sign.open_record(bytes(damaged), SIGNER.public, "head")


def test_every_cut_and_every_appended_byte_is_refused() -> None:
    record = sign.sign_record(PAYLOAD, SIGNER)
    for damaged in [record[:length] for length in range(len(record))] + [record + b"\n", b" " + record]:
        with pytest.raises(NotAuthentic):
            sign.open_record(damaged, SIGNER.public, "head")


def test_another_signer_is_refused_even_under_the_expected_key_id() -> None:
    with pytest.raises(NotAuthentic, match="another signer"):
        sign.open_record(sign.sign_record(PAYLOAD, OTHER), SIGNER.public, "head")
    forged = sign.sign_record(PAYLOAD, OTHER).replace(
        OTHER.public.key_id.encode(), SIGNER.public.key_id.encode()
    )
    with pytest.raises(NotAuthentic, match="signature is wrong"):
        sign.open_record(forged, SIGNER.public, "head")


def test_a_record_of_another_kind_or_version_is_refused() -> None:
    record = sign.sign_record(PAYLOAD, SIGNER)
    with pytest.raises(NotAuthentic, match="another kind"):
        sign.open_record(record, SIGNER.public, "epoch")
    with pytest.raises(NotAuthentic, match="payload is of another kind"):
        sign.open_record(signed(b'{"kind":"epoch"}'), SIGNER.public, "head")
    later = signed(b"anything", "application/vnd.pitr.head.v2+json")
    with pytest.raises(MalformedValue, match="version is unknown"):
        sign.open_record(later, SIGNER.public, "head")


def test_a_second_spelling_of_the_same_base64_is_refused() -> None:
    record = sign.sign_record({"kind": "head", "x": "1"}, SIGNER)
    head, separator, rest = record.partition(b'","payloadType')
    payload = head.removeprefix(b'{"payload":"')
    assert payload.endswith(b"=")
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    digit = payload.rstrip(b"=")[-1:]
    twin = alphabet[alphabet.index(digit) + 1 :][:1]
    other = b'{"payload":"' + payload.replace(digit + b"=", twin + b"=") + separator + rest
    assert base64.b64decode(payload) == base64.b64decode(payload.replace(digit + b"=", twin + b"="))
    with pytest.raises(NotAuthentic, match="not a signed record"):
        sign.open_record(other, SIGNER.public, "head")
    with pytest.raises(NotAuthentic):
        sign.payload_sha256(other)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'{"kind":"head"',
        b'{"kind": "head"}',
        b'{"kind":"head","kind":"head"}',
        b'{"kind":"head","a":1}',
        b'{"kind":"head","x":1.5}',
        b'{"kind":"head","x":1.0}',
        b'{"kind":"head","x":1e3}',
        b'{"kind":"head","x":NaN}',
        b'{"kind":"head","x":-Infinity}',
        b'{"kind":"head","x":-0}',
        b'{"kind":"head","x":18446744073709551616}',
        b'{"kind":"head","x":' + b"9" * 5000 + b"}",
        b'{"kind":"head","x":"\xc3\xa4"}',
        b'{"kind":"head","x":"\\u0041"}',
        b'{"kind":"head","x":"\\/"}',
        b'{"kind":"head","x":' + b"[" * 40 + b"]" * 40 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_payload_in_any_other_form_is_refused_though_its_signature_holds(content: bytes) -> None:
    with pytest.raises(MalformedValue):
        sign.open_record(signed(content), SIGNER.public, "head")


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"kind": None},
        {"kind": "He ad"},
        {"kind": "head", "x": 1.0},
        {"kind": "head", "x": [{"y": float("nan")}]},
        {"kind": "head", "x": b"bytes"},
        {"kind": "head", "x": {1: "one"}},
        {"kind": "head", "x": 2**64},
        {"kind": "head", "x": -(2**63) - 1},
        {"kind": "head", "x": {"set"}},
        {"kind": "head", "x": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
    ids=str,
)
def test_what_a_record_cannot_hold_is_not_signed(payload: dict[str, object]) -> None:
    with pytest.raises(MalformedValue):
        sign.sign_record(payload, SIGNER)


def test_key_texts_read_back() -> None:
    assert sign.Verifier.parse(str(SIGNER.public)) == SIGNER.public
    assert sign.Signer.parse(f"  {SIGNER.text()}\n") == SIGNER


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "ed25519:" + "A" * 42 + "B", "rsa:AAAA"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        sign.Verifier.parse(text)


@pytest.mark.parametrize("cut", [0, 10, 19, 30, 61])
def test_a_damaged_signing_key_is_refused_and_never_shown(cut: int) -> None:
    text = SIGNER.text()[:cut]
    with pytest.raises(KeyMissing) as caught:
        sign.Signer.parse(text)
    assert SIGNER.text()[19:29] not in f"{caught.value} {caught.value.detail} {caught.value.hint}"


def test_times_have_one_text() -> None:
    at = datetime(2026, 11, 23, 18, 35, 0, 7, timezone(timedelta(hours=5, minutes=30)))
    assert sign.encode_time(at) == "2026-11-23T13:05:00.000007Z"
    assert sign.decode_time(sign.encode_time(at)) == at
    assert sign.decode_time(sign.encode_time(at)).utcoffset() == timedelta(0)
    with pytest.raises(MalformedValue, match="without a zone"):
        sign.encode_time(at.replace(tzinfo=None))
    for bad in ("2026-11-23T13:05:00Z", "2026-11-23T13:05:00.000007+00:00", "2026-02-30T00:00:00.000000Z", 7):
        with pytest.raises(MalformedValue):
            sign.decode_time(bad)


HEADED = headed.encode_headed({"kind": "wal-piece", "sequence": 1}, b"the body", SIGNER)


def test_a_header_opens_from_the_objects_first_bytes() -> None:
    needed = headed.header_bytes(HEADED[: headed.PREFIX_BYTES])
    header = headed.open_header(HEADED[:needed], SIGNER.public, "wal-piece")
    assert header["body_bytes"] == 8
    envelope, body = headed.split_headed(HEADED)
    assert sign.open_record(envelope, SIGNER.public, "wal-piece") == header
    assert body == b"the body"
    headed.verify_body(header, body)
    for length in range(needed):
        with pytest.raises(NotAuthentic):
            headed.open_header(HEADED[:length], SIGNER.public, "wal-piece")


@pytest.mark.parametrize("body", [b"the body", b"", bytes(range(256)) * 5000])
def test_a_body_written_into_its_place_gives_the_same_object(body: bytes) -> None:
    payload = {"kind": "wal-piece", "sequence": 1}

    def write(place: memoryview) -> None:
        for at in range(len(body)):
            place[at] = body[at]

    written = headed.write_headed(payload, len(body), write, SIGNER)
    assert written.object_bytes == headed.encode_headed(payload, body, SIGNER)
    assert headed.split_headed(written.object_bytes) == (written.envelope, body)
    assert type(written.object_bytes) is bytes


def test_a_body_that_cannot_be_written_gives_no_object() -> None:
    def write(place: memoryview) -> None:
        raise ValueError(f"no place of {len(place)} bytes")

    with pytest.raises(ValueError, match="no place of 7"):
        headed.write_headed({"kind": "wal-piece"}, 7, write, SIGNER)


def open_whole(body: bytes) -> None:
    """What a reader of the whole object does."""
    header = headed.open_header(body, SIGNER.public, "wal-piece")
    headed.verify_body(header, headed.split_headed(body).body)


def test_every_flipped_bit_of_a_headed_object_is_refused() -> None:
    for position in range(len(HEADED)):
        damaged = bytearray(HEADED)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(NotAuthentic):
            open_whole(bytes(damaged))


@pytest.mark.parametrize("body", [b"", b"the bod", b"the body ", b"The body"])
def test_another_body_is_refused(body: bytes) -> None:
    header = headed.open_header(HEADED, SIGNER.public, "wal-piece")
    with pytest.raises(NotAuthentic):
        headed.verify_body(header, body)


def test_a_header_that_is_wrong_about_its_bodys_length_is_refused() -> None:
    header = headed.open_header(HEADED, SIGNER.public, "wal-piece")
    with pytest.raises(NotAuthentic):
        headed.verify_body({**header, "body_bytes": 9}, b"the body")


def test_a_header_beyond_its_limit_is_neither_written_nor_read() -> None:
    huge = {"kind": "wal-piece", "x": "x" * headed.ENVELOPE_BYTES_MAX}
    with pytest.raises(MalformedValue, match="limit"):
        headed.encode_headed(huge, b"", SIGNER)
    for length in (0, headed.ENVELOPE_BYTES_MAX + 1, 2**32 - 1):
        with pytest.raises(NotAuthentic):
            headed.header_bytes(HEADED[:8] + length.to_bytes(4, "big") + HEADED[12:])


def test_a_header_names_its_body_once_and_always() -> None:
    with pytest.raises(MalformedValue, match="already"):
        headed.encode_headed({"kind": "wal-piece", "body_bytes": 1}, b"x", SIGNER)
    for fields in ({}, {"body_bytes": True, "body_sha256": ""}, {"body_bytes": 1}, {"body_bytes": -1}):
        envelope = sign.sign_record({"kind": "wal-piece", **fields}, SIGNER)
        with pytest.raises(MalformedValue):
            headed.open_header(
                HEADED[:8] + len(envelope).to_bytes(4, "big") + envelope, SIGNER.public, "wal-piece"
            )
