"""Compression of one frame, to zstd and back.  The only home of ``zstandard``.

Not a stream: each frame stands alone, so that one can be read without its neighbours, and each
declares its content's size, so that a reader knows what it will cost before it pays.

Reference: docs/format.md §2; RFC 8878.
"""

from __future__ import annotations

import threading

import zstandard

from pitr.errors import MalformedValue

# Level 1 gives 80 % of level 3's saving at half its CPU (ratio 4.8 and 5.2 on a mixed cluster).
LEVEL_DEFAULT = 1
# Records of WAL repeat in short runs.  Level 1 looks for matches of 6 or 7 bytes; with 5 the WAL of small
# transactions is a sixth smaller (8.3- to 10-fold) for 4 % more CPU, and that of large rows the same.
WAL_MATCH_BYTES_MIN = 5
_MAGIC = zstandard.FRAME_HEADER
# Only what streams could need a window; a frame is decompressed in one piece.  512 KiB is plenty
# for the empty frame, the one case that goes through the streaming interface.
_EMPTY_WINDOW_BYTES_MAX = 512 * 1024


class _Contexts(threading.local):
    """The zstd contexts of one thread: making one anew for each frame costs more than a small frame."""

    def __init__(self) -> None:
        self.compressors: dict[tuple[int, int], zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_EMPTY_WINDOW_BYTES_MAX)


_contexts = _Contexts()


def compress_frame(
    content: bytes | memoryview, *, level: int = LEVEL_DEFAULT, match_bytes_min: int = 0
) -> bytes:
    """Compress ``content`` into one zstd frame that declares its size.  Releases the GIL.

    ``match_bytes_min`` 0 is the level's own.
    """
    compressor = _contexts.compressors.get((level, match_bytes_min))
    if compressor is None:
        # No zstd checksum: the seal's tag covers every byte already.
        parameters = zstandard.ZstdCompressionParameters(
            compression_level=level, min_match=match_bytes_min, write_content_size=True, write_checksum=False
        )
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        _contexts.compressors[level, match_bytes_min] = compressor
    return compressor.compress(content)


def frame_bytes_max(content_bytes: int) -> int:
    """Return the most bytes that a frame of ``content_bytes`` or less may have (ZSTD_COMPRESSBOUND)."""
    return content_bytes + (content_bytes >> 8) + 64


def decompress_frame(frame: bytes | bytearray | memoryview, *, content_bytes_max: int) -> bytes:
    """Return the content of one zstd frame; at most ``content_bytes_max`` bytes.  Releases the GIL.

    Raises MalformedValue, before anything is allocated, if the frame declares no size or a larger
    one, and if it is not exactly one frame of the size that it declares.
    """
    # zstd takes a skippable frame for one of no content, so that bytes could hide in it.
    if bytes(frame[:4]) != _MAGIC:
        raise MalformedValue("not a compressed frame")
    try:
        size_bytes = zstandard.frame_content_size(frame)
        if size_bytes < 0:
            raise MalformedValue("compressed frame does not declare its size")
        if size_bytes > content_bytes_max:
            raise MalformedValue(
                "compressed frame is larger than allowed",
                detail=f"It declares {size_bytes} bytes; the limit is {content_bytes_max}.",
            )
        if size_bytes == 0:
            _check_empty(frame)
            return b""
        return _contexts.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as cause:
        raise MalformedValue("compressed frame is damaged", detail=str(cause)) from cause


def _check_empty(frame: bytes | bytearray | memoryview) -> None:
    """Raise MalformedValue unless ``frame`` is one whole frame of nothing.

    ZstdDecompressor.decompress looks no further than a declared size of 0.
    """
    stream = _contexts.decompressor.decompressobj()
    content = stream.decompress(frame)
    if content or not stream.eof or stream.unused_data:
        raise MalformedValue("compressed frame is damaged", detail="It declares no content and is not empty.")
