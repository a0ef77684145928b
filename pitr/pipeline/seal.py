"""The container: compressed frames sealed so that nothing about them can be changed unseen.

Each container has its own key, derived from the data key, a random file id and the context, so a
container opens only as what it was written as.  A counter is the nonce and marks the last frame, so
frames cannot be cut off, added, swapped or repeated.  A commitment to the key is compared before
anything is decrypted, because AES-GCM alone lets one ciphertext open under two keys.

Never seal again what a retry can send again: sealed bytes are kept until they are stored.

Reference: docs/format.md §3; RFC 5869; NIST SP 800-38D.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pitr.errors import KeyNotCommitted, MalformedValue, NotAuthentic
from pitr.layout import ArchiveId
from pitr.pipeline.compress import LEVEL_DEFAULT, decompress_frame, frame_bytes_max
from pitr.pipeline.frames import FRAME_LOG2, LENGTH, TAG_BYTES, compress_frames, sealed_bytes_max, spans
from pitr.pipeline.keys import DataKey, hkdf_sha512
from pitr.pipeline.sign import check_repository_id
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

FRAME_CONTENT_BYTES: Final = 1 << FRAME_LOG2
SUITE_AES_256_GCM: Final = 1
# What may be sealed, and whether it is WAL and so has a timeline, a start and an end.
KINDS: Final = {
    "wal-piece": True,
    "wal-segment": True,
    "pack": False,
    "index": False,
    "fences": False,
    "derived": False,
    "syncs": False,
}
# Magic, suite, log2 of the frame size, file id, commitment, key id.
_HEADER = struct.Struct(">6sBB32s32s16s")
HEADER_BYTES: Final = 88
_MAGIC = b"PITR1\0"
_FILE_ID_BYTES = 32
# Smaller frames would be mostly tags; larger ones would break a reader's bound on memory.
_FRAME_LOG2_MIN, _FRAME_LOG2_MAX = 12, 26
FRAMES_MAX: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Context:
    """What a container is: it opens in no other context.

    ``name`` is the sequence of a piece or of an object of fences or of syncs, the name of a segment,
    ``BACKUP/PART/NUMBER`` of a pack or an index, ``SNAPSHOT/NODE/NUMBER`` of derived state.  WAL has all
    of timeline, start and end; the others have none.
    """

    repository: str
    archive: ArchiveId
    kind: str
    name: str
    timeline: TimelineId | None = None
    start: LSN | None = None
    end: LSN | None = None

    def __post_init__(self) -> None:
        check_repository_id(self.repository)
        is_wal = KINDS.get(self.kind)
        if is_wal is None or not self.name:
            raise MalformedValue(f"not a container's context: kind {self.kind!r}, name {self.name!r}")
        if any((field is None) == is_wal for field in (self.timeline, self.start, self.end)):
            raise MalformedValue(
                f"context of {self.kind} {'lacks' if is_wal else 'has'} timeline, start or end"
            )

    def encode(self) -> bytes:
        """Return the bytes that the key is bound to: each field with its length before it."""
        fields = (
            "pitr/v1/context",
            self.repository,
            str(self.archive.system_identifier),
            str(self.archive.epoch),
            self.kind,
            self.name,
            "" if self.timeline is None else str(self.timeline),
            "" if self.start is None else f"{self.start.offset:016X}",
            "" if self.end is None else f"{self.end.offset:016X}",
        )
        encoded = (field.encode("utf-8") for field in fields)
        return b"".join(LENGTH.pack(len(field)) + field for field in encoded)


class Sealer:
    """Writes one container, frame by frame.  Not thread-safe: the frames have an order.

    ``file_id`` is for test vectors only.  One used twice with one data key and context repeats nonces,
    which gives the content away; so it is drawn here, from the system, and not by the caller.
    """

    def __init__(self, data_key: DataKey, context: Context, *, file_id: bytes | None = None) -> None:
        file_id = secrets.token_bytes(_FILE_ID_BYTES) if file_id is None else file_id
        if len(file_id) != _FILE_ID_BYTES:
            raise ValueError(f"file id has {len(file_id)} bytes, not {_FILE_ID_BYTES}")
        key, commitment = _derive(data_key, file_id, context)
        self.header: Final = _HEADER.pack(
            _MAGIC, SUITE_AES_256_GCM, FRAME_LOG2, file_id, commitment, data_key.key_id
        )
        self._cipher = AESGCM(key)
        self._aad = hashlib.sha256(self.header).digest()
        self._frames = 0
        self._is_finished = False

    @property
    def frames(self) -> int:
        """How many frames have been sealed."""
        return self._frames

    @property
    def is_finished(self) -> bool:
        """Whether the last frame has been sealed."""
        return self._is_finished

    def seal_frame(self, compressed: bytes | memoryview, *, last: bool) -> bytes:
        """Return the next frame as it stands in the container: length, ciphertext, tag.

        ``compressed`` is one zstd frame of at most 1 MiB of content.  Raises ValueError for a frame
        that is too large, after the last or past the 2**32nd.
        """
        sealed = bytearray(LENGTH.size + len(compressed) + TAG_BYTES)
        self.seal_frame_into(compressed, memoryview(sealed), last=last)
        return bytes(sealed)

    def seal_frame_into(self, compressed: bytes | memoryview, buffer: memoryview, *, last: bool) -> int:
        """Write what ``seal_frame`` returns to ``buffer``'s start; return its length.  Releases the GIL."""
        size_bytes = len(compressed) + TAG_BYTES
        if self._is_finished or self._frames == FRAMES_MAX:
            raise ValueError(f"no frame may follow frame {self._frames - 1}")
        if not 0 < len(compressed) <= frame_bytes_max(FRAME_CONTENT_BYTES):
            raise ValueError(f"compressed frame has {len(compressed)} bytes")
        # Counted before it is sealed: a nonce is used up even if sealing fails half way.
        nonce = _nonce(self._frames, last)
        self._frames += 1
        self._is_finished = last
        LENGTH.pack_into(buffer, 0, size_bytes)
        end = LENGTH.size + size_bytes
        self._cipher.encrypt_into(nonce, compressed, self._aad, buffer[LENGTH.size : end])
        return end


def seal(
    content: bytes | memoryview, data_key: DataKey, context: Context, *, level: int = LEVEL_DEFAULT
) -> bytes:
    """Return the container of ``content``; never the same bytes twice."""
    return seal_frames(compress_frames(content, level=level), data_key, context)


def seal_frames(frames: Iterable[bytes], data_key: DataKey, context: Context) -> bytes:
    """Return the container of ``frames``, compressed before; never the same bytes twice.

    Raises ValueError if there is none, or as ``Sealer.seal_frame``.
    """
    held = list(frames)
    container = bytearray(container_bytes(held))
    seal_frames_into(held, data_key, context, memoryview(container))
    return bytes(container)


def container_bytes(frames: Sequence[bytes]) -> int:
    """Return the length of the container of ``frames``."""
    return HEADER_BYTES + sum(LENGTH.size + len(frame) + TAG_BYTES for frame in frames)


def seal_frames_into(
    frames: Sequence[bytes], data_key: DataKey, context: Context, buffer: memoryview
) -> None:
    """Write what ``seal_frames`` returns into ``buffer``, of ``container_bytes``.  Raises as that does."""
    if not frames:
        raise ValueError("a container has at least one frame")
    if len(buffer) != container_bytes(frames):
        raise ValueError(f"the container has {container_bytes(frames)} bytes, its place {len(buffer)}")
    sealer = Sealer(data_key, context)
    buffer[:HEADER_BYTES] = sealer.header
    at, last = HEADER_BYTES, len(frames) - 1
    for number, frame in enumerate(frames):
        at += sealer.seal_frame_into(frame, buffer[at:], last=number == last)


class Opener:
    """Opens the frames of one container, in any order.  Thread-safe.

    Raises NotAuthentic at once if the header is not one, or was not made with this data key in
    this context; nothing has been decrypted then.
    """

    def __init__(self, header: bytes | memoryview, data_key: DataKey, context: Context) -> None:
        parsed = _parse_header(header)
        key, commitment = _derive(data_key, parsed.file_id, context)
        # The key id is only a name, but a header that names another key is not the one that was written.
        if not hmac.compare_digest(commitment, parsed.commitment) or parsed.key_id != data_key.key_id:
            raise KeyNotCommitted(
                "container does not open with this key in this context",
                detail=f"Tried {data_key.key_id.hex()} for {context.kind} {context.name}; "
                f"it names key {parsed.key_id.hex()}.",
            )
        self.frame_log2: Final = parsed.frame_log2
        self._cipher = AESGCM(key)
        self._aad = hashlib.sha256(header).digest()

    def open_frame(
        self,
        sealed: bytes | memoryview,
        number: int,
        *,
        last: bool,
        content_bytes_max: int | None = None,
    ) -> bytes:
        """Return the content of frame ``number``; ``sealed`` is without its length.  Releases the GIL.

        Raises NotAuthentic if it is not that frame of this container, or not ``last`` as said;
        MalformedValue if the writer sealed what is no frame of an allowed size.
        """
        if not TAG_BYTES < len(sealed) <= sealed_bytes_max(self.frame_log2) or not 0 <= number < FRAMES_MAX:
            raise NotAuthentic(
                "container's frame has an impossible length or number", detail=f"Frame {number}."
            )
        compressed = bytearray(len(sealed) - TAG_BYTES)
        try:
            self._cipher.decrypt_into(_nonce(number, last), sealed, self._aad, compressed)
        except InvalidTag as cause:
            raise NotAuthentic("container's frame is not authentic", detail=f"Frame {number}.") from cause
        limit = 1 << self.frame_log2
        return decompress_frame(
            compressed,
            content_bytes_max=limit if content_bytes_max is None else min(limit, content_bytes_max),
        )

    def seal_again(self, compressed: bytes, number: int, *, last: bool) -> bytes:
        """Return frame ``number``, without its length, as it stands here if ``compressed`` is what it holds.

        Only to be compared with what is stored, and then forgotten: two contents sealed under one nonce give
        both away to whoever sees them.
        """
        return self._cipher.encrypt(_nonce(number, last), compressed, self._aad)


def open_container(
    body: bytes | memoryview, data_key: DataKey, context: Context, *, content_bytes_max: int
) -> bytes:
    """Return the whole content: all of it is authentic, or nothing is returned.

    Raises NotAuthentic for whatever was done to the bytes, the name or the key; MalformedValue if
    the content has more than ``content_bytes_max`` bytes, before the excess is allocated.
    """
    opener = Opener(bytes(body[:HEADER_BYTES]), data_key, context)
    view, contents, room_bytes = memoryview(body), [], content_bytes_max
    for span in spans(view, start=HEADER_BYTES, frame_log2=opener.frame_log2):
        sealed = view[span.offset : span.offset + span.size_bytes]
        content = opener.open_frame(sealed, span.number, last=span.is_last, content_bytes_max=room_bytes)
        room_bytes -= len(content)
        contents.append(content)
    return contents[0] if len(contents) == 1 else b"".join(contents)


def iter_frames(body: bytes | memoryview, data_key: DataKey, context: Context) -> Iterator[bytes]:
    """Yield the frames' contents in order.

    Each is authentic; that none is missing is known only when the iteration has ended without an
    error.  Raises as ``open_container``.
    """
    opener = Opener(bytes(body[:HEADER_BYTES]), data_key, context)
    view = memoryview(body)
    for span in spans(view, start=HEADER_BYTES, frame_log2=opener.frame_log2):
        yield opener.open_frame(
            view[span.offset : span.offset + span.size_bytes], span.number, last=span.is_last
        )


def container_key_id(header: bytes | memoryview) -> bytes:
    """Return the id of the data key that a container's header names; not verified.  Raises NotAuthentic."""
    return _parse_header(header).key_id


@dataclass(frozen=True, slots=True)
class _Header:
    frame_log2: int
    file_id: bytes
    commitment: bytes
    key_id: bytes


def _parse_header(header: bytes | memoryview) -> _Header:
    if len(header) != HEADER_BYTES:
        raise NotAuthentic("container has no whole header", detail=f"{len(header)} of {HEADER_BYTES} bytes.")
    magic, suite, frame_log2, file_id, commitment, key_id = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise NotAuthentic("not a container")
    # A flipped bit and a later version look the same here; both must not be opened.
    if suite != SUITE_AES_256_GCM or not _FRAME_LOG2_MIN <= frame_log2 <= _FRAME_LOG2_MAX:
        raise NotAuthentic(
            "container's suite or frame size is unknown", detail=f"Suite {suite}, frame size 2**{frame_log2}."
        )
    return _Header(frame_log2, file_id, commitment, key_id)


def _derive(data_key: DataKey, file_id: bytes, context: Context) -> tuple[bytes, bytes]:
    """Return the container's key and the commitment to it."""
    info = b"pitr/v1/container\0" + hashlib.sha256(context.encode()).digest()
    okm = hkdf_sha512(data_key.secret, salt=file_id, info=info, length=64)
    return okm[:32], okm[32:]


def _nonce(number: int, last: bool) -> bytes:
    return b"\0\0\0" + number.to_bytes(8, "big") + (b"\1" if last else b"\0")
