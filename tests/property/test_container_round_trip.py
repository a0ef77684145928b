"""Containers and records: what was sealed opens, at every boundary, and only in its own context."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId
from pitr.pipeline import compress, frames, headed, keys, seal, sign
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

MIB = 1 << 20
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
archives = st.builds(ArchiveId, st.integers(1, 2**64 - 1), st.integers(1, 99_999_999))
repositories = st.text("0123456789abcdef", min_size=32, max_size=32)
lsns = st.builds(LSN, st.integers(1, 2**64 - 1))
contexts = st.one_of(
    st.builds(seal.Context, repositories, archives, st.sampled_from(["pack", "index"]), names),
    st.builds(
        seal.Context,
        repositories,
        archives,
        st.sampled_from(["wal-piece", "wal-segment"]),
        names,
        st.builds(TimelineId, st.integers(1, 2**32 - 1)),
        lsns,
        lsns,
    ),
)
data_keys = st.builds(keys.DataKey, st.binary(min_size=32, max_size=32))
payload_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
SIGNER = sign.Signer(bytes(range(32)))


@given(st.binary(max_size=5000), data_keys, contexts)
def test_what_was_sealed_opens(content: bytes, key: keys.DataKey, context: seal.Context) -> None:
    body = seal.seal(content, key, context)
    assert seal.open_container(body, key, context, content_bytes_max=len(content)) == content
    assert seal.container_key_id(body[: seal.HEADER_BYTES]) == key.key_id


@pytest.mark.parametrize("size_bytes", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
@pytest.mark.parametrize("is_random", [True, False])
def test_content_of_exact_frame_sizes_opens(size_bytes: int, is_random: bool) -> None:
    content = random.Random(size_bytes).randbytes(size_bytes) if is_random else bytes(size_bytes)
    key, context = keys.DataKey(b"k" * 32), seal.Context("0" * 32, ArchiveId(1, 1), "pack", "b/1/1")
    body = seal.seal(content, key, context)
    parts = list(seal.iter_frames(body, key, context))
    assert [len(part) for part in parts] == [len(part) for part in frames.cut(content)]
    assert len(parts) == max(1, -(-size_bytes // MIB))
    assert b"".join(parts) == content
    assert seal.open_container(memoryview(body), key, context, content_bytes_max=size_bytes) == content


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), data_keys, contexts, st.randoms())
def test_each_frame_opens_alone_and_in_any_order(
    contents: list[bytes], key: keys.DataKey, context: seal.Context, order: random.Random
) -> None:
    sealer = seal.Sealer(key, context)
    last = len(contents) - 1
    sealed = [
        sealer.seal_frame(compress.compress_frame(content), last=number == last)
        for number, content in enumerate(contents)
    ]
    assert sealer.frames == len(contents)
    assert sealer.is_finished
    opener = seal.Opener(sealer.header, key, context)
    numbers = list(range(len(contents)))
    order.shuffle(numbers)
    for number in numbers:
        assert opener.open_frame(sealed[number][4:], number, last=number == last) == contents[number]
    assert list(seal.iter_frames(sealer.header + b"".join(sealed), key, context)) == contents


@given(data_keys, contexts, contexts)
def test_no_container_opens_in_another_context(
    key: keys.DataKey, context: seal.Context, other: seal.Context
) -> None:
    assume(context != other)
    with pytest.raises(NotAuthentic):
        seal.open_container(seal.seal(b"x", key, context), key, other, content_bytes_max=1)


@given(contexts, names)
def test_two_contexts_never_encode_alike(context: seal.Context, name: str) -> None:
    # Length prefixes: moving a byte from one field to the next is another encoding.
    other = dataclasses.replace(context, name=name)
    assert (context.encode() == other.encode()) == (context == other)


@given(st.dictionaries(st.text(), payload_values, max_size=6))
def test_a_record_reads_back_as_signed(fields: dict[str, object]) -> None:
    payload = {**fields, "kind": "head"}
    record = sign.sign_record(payload, SIGNER)
    assert sign.open_record(record, SIGNER.public, "head") == payload
    assert sign.sign_record(dict(reversed(payload.items())), SIGNER) == record
    assert sign.decode_payload(sign.payload_of(record)) == payload


@given(st.binary(max_size=300))
def test_no_bytes_are_taken_for_a_record_or_a_container_by_chance(body: bytes) -> None:
    key, context = keys.DataKey(b"k" * 32), seal.Context("0" * 32, ArchiveId(1, 1), "pack", "b/1/1")
    with pytest.raises(NotAuthentic):
        sign.open_record(body, SIGNER.public, "head")
    with pytest.raises(NotAuthentic):
        headed.open_header(body, SIGNER.public, "head")
    with pytest.raises(NotAuthentic):
        seal.open_container(body, key, context, content_bytes_max=10)
    with pytest.raises(MalformedValue):
        sign.decode_payload(b"[" + body)
    with pytest.raises(MalformedValue):
        compress.decompress_frame(body, content_bytes_max=10)


@settings(max_examples=20)
@given(st.binary(min_size=32, max_size=32), data_keys, archives, repositories, st.sampled_from([1, 2]))
def test_an_envelope_opens_for_its_recipient_and_nobody_else(
    secret: bytes, key: keys.DataKey, archive: ArchiveId, repository: str, suite: int
) -> None:
    identity = keys.Identity(secret)
    assert keys.Identity.parse(identity.text()) == identity
    recipient = identity.recipient(suite)
    assert keys.Recipient.parse(str(recipient)) == recipient
    created_at = sign.decode_time("2026-11-23T13:05:00.000001Z")
    record = keys.seal_envelope(
        key, [recipient], repository=repository, archive=archive, purpose="backup", created_at=created_at
    )
    opened = sign.open_record(sign.sign_record(record.to_payload(), SIGNER), SIGNER.public, "envelope")
    assert record == record.from_payload(opened)
    assert keys.open_envelope(record, identity) == key
