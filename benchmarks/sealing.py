"""MB per CPU second of sealing and opening, alone on one core: ``python -m benchmarks.sealing [MiB]``.

Not a peer comparison and no part of ``make bench``: it finds what a change of the pipeline costs.
The content is rows of text with numbers, which zstd 1 compresses about as a real cluster (ratio 3 to 5).
MB are of content; CPU seconds are user and system of this process, best of REPEATS.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from collections.abc import Callable

from pitr.layout import ArchiveId
from pitr.pipeline import compress, frames, headed, keys, seal, sign

REPEATS = 5
SEED = 20261123


def sample(size_bytes: int) -> bytes:
    """Return rows like a hospital's: names repeat, numbers and digests do not."""
    draw = random.Random(SEED)
    words = [draw.randbytes(4).hex() for _ in range(400)]
    rows: list[bytes] = []
    total = 0
    while total < size_bytes:
        text = " ".join(draw.choices(words, k=9))
        row = f"{len(rows)}\t{draw.randrange(10**9)}\t{text}\t{draw.randbytes(6).hex()}\n".encode()
        rows.append(row)
        total += len(row)
    return b"".join(rows)[:size_bytes]


def measure(name: str, size_bytes: int, run: Callable[[], object]) -> None:
    """Print the best rate of REPEATS runs."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    print(f"{name:<34}{size_bytes / 1e6 / best:>10.0f} MB/CPU s")


def main() -> None:
    """Measure each step and the whole."""
    content = sample((int(sys.argv[1]) if len(sys.argv) > 1 else 48) << 20)
    context = seal.Context("00" * 16, ArchiveId(1, 1), "pack", "20261123T000000Z-full-00000000/0001/000001")
    key = keys.DataKey.generate(os.urandom)
    compressed = list(frames.compress_frames(content))
    packed_bytes = sum(map(len, compressed))
    body = seal.seal_frames(compressed, key, context)
    print(f"{len(content) >> 20} MiB, ratio {len(content) / packed_bytes:.2f}, {len(compressed)} frames")
    hmac_key = keys.content_key(sign.Signer.generate(os.urandom), "00" * 16)
    measure("compress", len(content), lambda: list(frames.compress_frames(content)))
    measure("seal_frames (of sealed bytes)", packed_bytes, lambda: seal.seal_frames(compressed, key, context))
    measure("seal: compress and encrypt", len(content), lambda: seal.seal(content, key, context))
    measure("iter_frames: decrypt, decompress", len(content), lambda: _drain(body, key, context))
    measure(
        "open_container",
        len(content),
        lambda: seal.open_container(body, key, context, content_bytes_max=len(content)),
    )
    measure("decompress", len(content), lambda: [_decompress(frame) for frame in compressed])
    measure("content_hmac", len(content), lambda: keys.content_hmac(hmac_key, content))
    signer = sign.Signer.generate(os.urandom)
    measure(
        "encode_headed (of sealed bytes)",
        len(body),
        lambda: headed.encode_headed({"kind": "wal-piece"}, body, signer),
    )
    print(f"memory peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


def _drain(body: bytes, key: keys.DataKey, context: seal.Context) -> None:
    for _ in seal.iter_frames(body, key, context):
        continue


def _decompress(frame: bytes) -> bytes:
    return compress.decompress_frame(frame, content_bytes_max=seal.FRAME_CONTENT_BYTES)


if __name__ == "__main__":
    main()
