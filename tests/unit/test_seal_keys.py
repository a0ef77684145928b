"""Keys: their texts, what never shows, and envelopes that only a recipient opens."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from pitr.errors import KeyMissing, MalformedValue, NotAuthentic
from pitr.layout import ArchiveId
from pitr.pipeline import keys, sign
from pitr.pipeline.envelope import EnvelopeRecord, SealedKey

REPOSITORY = "ab" * 16
ARCHIVE = ArchiveId(7, 1)
KEY = keys.DataKey(bytes(range(32)))
IDENTITY = keys.Identity(bytes(range(32, 64)))
STRANGER = keys.Identity(bytes(range(64, 96)))
AT = datetime(2026, 11, 23, 13, 5, tzinfo=UTC)


def envelope(*recipients: keys.Recipient) -> EnvelopeRecord:
    return keys.seal_envelope(
        KEY, recipients, repository=REPOSITORY, archive=ARCHIVE, purpose="wal", created_at=AT
    )


def test_generated_keys_are_what_the_random_source_gave() -> None:
    given = hashlib.sha256(b"random").digest()
    asked: list[int] = []

    def source(size_bytes: int) -> bytes:
        asked.append(size_bytes)
        return given

    assert keys.DataKey.generate(source).secret == given
    assert keys.Identity.generate(source).secret == given
    assert sign.Signer.generate(source).seed == given
    assert asked == [32, 32, 32]


@pytest.mark.parametrize("make", [keys.DataKey, keys.Identity, sign.Signer])
def test_no_secret_shows_in_a_repr(make: Callable[[bytes], object]) -> None:
    secret = bytes(range(200, 232))
    shown = repr(make(secret)) + str(make(secret)) + f"{make(secret)!r}"
    assert repr(secret)[2:20] not in shown
    assert secret.hex()[:8] not in shown
    for size_bytes in (0, 31, 33):
        with pytest.raises((MalformedValue, KeyMissing)) as caught:
            make(b"\xc8" * size_bytes)
        assert "c8" not in str(caught.value)


def test_an_identity_is_read_as_a_person_types_it() -> None:
    text = IDENTITY.text()
    prefix, body = text[:16], text[16:]
    assert prefix == "PITR-IDENTITY-1-"
    assert all(len(group) == 5 for group in body.split("-")[:-1])
    for typed in (
        text.lower(),
        f"  {text}\n",
        prefix + body.replace("-", ""),
        prefix + body.replace("-", " - "),
        prefix + body.replace("-", "\n"),
    ):
        assert keys.Identity.parse(typed) == IDENTITY


def test_a_mistyped_identity_is_refused_and_never_shown() -> None:
    text = IDENTITY.text()
    body = text[16:].replace("-", "")
    wrong = [body[:i] + ("A" if body[i] != "A" else "B") + body[i + 1 :] for i in range(len(body))]
    swapped = [body[:i] + body[i + 1] + body[i] + body[i + 2 :] for i in range(57) if body[i] != body[i + 1]]
    # The last digit has two unused bits: with others there the secret would be the same.
    wrong += [body[:-1] + digit for digit in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" if digit != body[-1]]
    for typed in [*wrong, *swapped, body[:-1], body + "A", body[1:], "", "0" + body[1:], "é" + body[1:]]:
        with pytest.raises(KeyMissing) as caught:
            keys.Identity.parse("PITR-IDENTITY-1-" + typed)
        shown = f"{caught.value} {caught.value.detail} {caught.value.hint} {caught.value.__cause__}"
        assert body[20:30] not in shown
    for other in ("", "PITR-IDENTITY-2-" + body, body, "AGE-SECRET-KEY-1" + body):
        with pytest.raises(KeyMissing, match="not an identity"):
            keys.Identity.parse(other)


@pytest.mark.parametrize("suite", [1, 2])
def test_recipients_of_both_suites_read_back(suite: int) -> None:
    recipient = IDENTITY.recipient(suite)
    assert str(recipient).startswith(f"pitr-recipient-{suite}:")
    assert keys.Recipient.parse(str(recipient)) == recipient
    assert len(recipient.fingerprint) == 16


def test_the_best_suite_is_one_that_works_here() -> None:
    recipient = IDENTITY.recipient(keys.best_suite())
    assert keys.open_envelope(envelope(recipient), IDENTITY) == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pitr-recipient-1:",
        "pitr-recipient-3:" + "A" * 43,
        "pitr-recipient-2:" + "A" * 42,
        "pitr-recipient-2:" + "A" * 44,
        "pitr-recipient-1:" + "A" * 43,
        "pitr-recipient-2:" + "A" * 42 + "B",
        "pitr-recipient-2:" + "A" * 43 + "=",
        "pitr-recipient-2:" + "A" * 43 + "\n",
        "pitr-recipient-2:" + "A" * 42 + "+",
    ],
)
def test_what_is_no_recipient_is_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        keys.Recipient.parse(text)


@pytest.mark.parametrize(
    "recipient",
    [keys.Recipient(2, bytes(32)), keys.Recipient(1, b"\xff" * 1184 + b"\x09" + bytes(31))],
    ids=["a point of low order", "coefficients beyond the modulus"],
)
def test_a_public_key_that_cannot_be_sealed_to_is_refused(recipient: keys.Recipient) -> None:
    with pytest.raises(MalformedValue, match="not a usable public key"):
        envelope(recipient)


def test_each_of_several_recipients_opens_the_envelope() -> None:
    record = envelope(IDENTITY.recipient(1), STRANGER.recipient(2))
    assert keys.open_envelope(record, IDENTITY) == KEY
    assert keys.open_envelope(record, STRANGER) == KEY
    with pytest.raises(KeyMissing, match="no recipient") as caught:
        keys.open_envelope(record, keys.Identity(b"n" * 32))
    assert IDENTITY.recipient(1).fingerprint in str(caught.value.detail)


def test_an_envelope_without_recipients_or_with_one_twice_is_refused() -> None:
    with pytest.raises(MalformedValue, match="recipients"):
        envelope()
    with pytest.raises(MalformedValue, match="recipients"):
        envelope(IDENTITY.recipient(1), IDENTITY.recipient(1))


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        {"repository": "ac" * 16},
        {"archive": ArchiveId(8, 1)},
        {"archive": ArchiveId(7, 2)},
        {"key_id": b"x" * 16},
    ],
    ids=str,
)
def test_an_envelope_moved_to_another_place_does_not_open(suite: int, change: dict[str, object]) -> None:
    moved = dataclasses.replace(envelope(IDENTITY.recipient(suite)), **change)  # type: ignore[arg-type]
    with pytest.raises(NotAuthentic):
        keys.open_envelope(moved, IDENTITY)


@pytest.mark.parametrize("suite", [1, 2])
def test_a_flipped_bit_in_the_sealed_key_is_refused(suite: int) -> None:
    record = envelope(IDENTITY.recipient(suite))
    (entry,) = record.recipients
    for position in range(0, len(entry.sealed), 7):
        sealed = bytearray(entry.sealed)
        sealed[position] ^= 1
        damaged = dataclasses.replace(
            record, recipients=(SealedKey(entry.fingerprint, suite, bytes(sealed)),)
        )
        with pytest.raises(NotAuthentic):
            keys.open_envelope(damaged, IDENTITY)


def test_a_key_that_is_not_the_one_named_is_refused() -> None:
    record = envelope(IDENTITY.recipient(2))
    # Sealed with the info of KEY's envelope, but another key: a host that lies about its own keys.
    info = keys._envelope_info(REPOSITORY, ARCHIVE, KEY.key_id)
    sealed = IDENTITY.recipient(2).seal(b"o" * 32, info)
    entry = SealedKey(IDENTITY.recipient(2).fingerprint, 2, sealed)
    with pytest.raises(NotAuthentic, match="another data key"):
        keys.open_envelope(dataclasses.replace(record, recipients=(entry,)), IDENTITY)


GOOD = envelope(IDENTITY.recipient(2)).to_payload()
(GOOD_RECIPIENT,) = GOOD["recipients"]  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        {"repository": None},
        {"system_identifier": 7},
        {"system_identifier": "07"},
        {"system_identifier": "0"},
        {"epoch": True},
        {"epoch": "1"},
        {"epoch": 0},
        {"key_id": "AB" * 16},
        {"key_id": "ab"},
        {"purpose": "other"},
        {"purpose": None},
        {"created_at": "2026-11-23"},
        {"created_at": "2026-13-23T13:05:00.000000Z"},
        {"recipients": {}},
        {"recipients": []},
        {"recipients": [1]},
        {"recipients": [GOOD_RECIPIENT, GOOD_RECIPIENT]},
        {"recipients": [{**GOOD_RECIPIENT, "suite": 3}]},
        {"recipients": [{**GOOD_RECIPIENT, "suite": 1}]},
        {"recipients": [{**GOOD_RECIPIENT, "suite": True}]},
        {"recipients": [{**GOOD_RECIPIENT, "sealed": "*"}]},
        {"recipients": [{**GOOD_RECIPIENT, "sealed": 1}]},
        {"recipients": [{**GOOD_RECIPIENT, "fingerprint": "A" * 16}]},
    ],
    ids=lambda change: str(change)[:60],
)
def test_what_is_no_envelope_record_is_refused(change: dict[str, object]) -> None:
    assert EnvelopeRecord.from_payload({**GOOD, "later": "ignored"}) == EnvelopeRecord.from_payload(GOOD)
    with pytest.raises(MalformedValue):
        EnvelopeRecord.from_payload({**GOOD, **change})


def test_an_identity_file_reads_back_and_refuses_what_is_none() -> None:
    file = keys.IdentityFile(IDENTITY, REPOSITORY, IDENTITY.root_signer().public)
    text = file.render()
    assert keys.IdentityFile.parse(text) == file
    body = IDENTITY.text()[20:40]
    for bad in (
        "",
        "=",
        text + "x" * 70_000,
        text.replace("identity =", "identitx ="),
        text.replace(REPOSITORY, "short"),
        text.replace("ed25519:", "rsa:"),
        text.replace(IDENTITY.text(), IDENTITY.text()[:-1]),
        "[" * 5000,
        "x = " + "9" * 5000,
        "a." * 20_000 + "b = 1",
    ):
        with pytest.raises(KeyMissing) as caught:
            keys.IdentityFile.parse(bad)
        assert body not in f"{caught.value} {caught.value.detail} {caught.value.hint}"


def test_a_content_digest_is_the_same_in_pieces_and_differs_by_repository_and_host() -> None:
    host = sign.Signer(b"h" * 32)
    key = keys.content_key(host, REPOSITORY)
    stream = keys.ContentHmac(key)
    stream.update(b"con")
    fork = stream.copy()
    stream.update(memoryview(b"tent"))
    fork.update(b"trast")
    assert stream.digest() == keys.content_hmac(key, b"content")
    assert fork.digest() == keys.content_hmac(key, b"contrast")
    assert key != keys.content_key(host, "ac" * 16)
    assert key != keys.content_key(sign.Signer(b"i" * 32), REPOSITORY)
