"""What limits us, each alone: ``python -m benchmarks.limits zstd|unzstd|read DATA_DIR``,
``put|get URL BYTES``, ``write FOLDER BYTES``.

Two threads, as ours has two workers; zstd in our frames, reads past the page cache, objects of 32 MiB
that do not compress.  A process of its own measures each; one JSON object says what of it was the work.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.harness import GIB, MIB, Row, Usage, compare, run
from pitr.pipeline.compress import decompress_frame
from pitr.pipeline.frames import compress_frames
from storage.url import open_store, parse_region_url

_THREADS = 2
_READ_BYTES = 8 * MIB
_DIRECT_BYTES_MIN = MIB
_OBJECT_BYTES = 32 * MIB
_FILE_BYTES = 64 * MIB
_BATCH_BYTES = 64 * MIB
_T = TypeVar("_T")


class _Buffers(threading.local):
    """One aligned buffer a thread: to make one anew for each file costs more than a small file."""

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, _READ_BYTES)


_buffers = _Buffers()


@dataclass(frozen=True, slots=True)
class Limit:
    """The cost of one part alone, for ``size_bytes`` of what goes in; ``out_bytes`` of what came out."""

    cpu_s: float
    wall_s: float
    size_bytes: int
    out_bytes: int


def measure(what: str, *words: str | Path, env: dict[str, str] | None = None, work: Path) -> Limit:
    """Measure one part in a process of its own."""
    report = work / f"limit-{what}.json"
    run([sys.executable, "-m", "benchmarks.limits", what, *words], env=env, stdout=report)
    return Limit(**json.loads(report.read_text()))


def limit_rows(name: str, ours: Usage, size_bytes: int, limits: Iterable[tuple[str, Limit]]) -> list[Row]:
    """Say how far our figures are from each limit, per GiB of what is backed up or restored."""
    rows = []
    for what, limit in limits:
        # What is put is less than what is read: its cost counts for the whole.
        cpu, mine = limit.cpu_s * GIB / size_bytes, ours.cpu_s * GIB / size_bytes
        rows.append(compare(f"{name}: CPU", "s/GiB", mine, f"{what} alone", cpu))
        rows.append(compare(f"{name}: wall", "s", ours.wall_s, f"{what} alone", limit.wall_s))
    return rows


def _relations(data_dir: Path) -> list[Path]:
    return sorted(path for path in (data_dir / "base").rglob("*") if path.is_file())


def _zstd(path: Path) -> tuple[int, int]:
    size = packed = 0
    with path.open("rb") as file:
        while content := file.read(_READ_BYTES):
            size += len(content)
            packed += sum(len(frame) for frame in compress_frames(content))
    return size, packed


def _read(path: Path) -> tuple[int, int]:
    size = 0
    # As in a backup: what is small is not worth a direct read.
    direct = os.O_DIRECT if path.stat().st_size >= _DIRECT_BYTES_MIN else 0
    descriptor = os.open(path, os.O_RDONLY | direct)
    try:
        # The last read of a file is short, and no other is.
        while (count := os.preadv(descriptor, [_buffers.buffer], size)) > 0:
            size += count
    finally:
        os.close(descriptor)
    return size, 0


def _write(folder: Path, size_bytes: int) -> Limit:
    """Write and sync files of the size of PostgreSQL's, in pieces of one frame."""
    folder.mkdir(parents=True)
    piece = os.urandom(MIB)
    lengths = [_FILE_BYTES] * (size_bytes // _FILE_BYTES) + [size_bytes % _FILE_BYTES]

    def write(number: int) -> tuple[int, int]:
        with (folder / str(number)).open("wb", buffering=0) as file:
            for _ in range(lengths[number] // MIB):
                file.write(piece)
            os.fsync(file.fileno())
        return lengths[number] // MIB * MIB, 0

    limit = _spread(write, range(len(lengths)))
    shutil.rmtree(folder)
    return limit


def _unzstd(data_dir: Path) -> Limit:
    """Decompress what was compressed of each file just before; only the former is counted."""
    total = Limit(0.0, 0.0, 0, 0)
    for path in _relations(data_dir):
        with path.open("rb") as file:
            while content := file.read(_BATCH_BYTES):
                frames = list(compress_frames(content))
                part = _spread(_unzstd_frame, frames)
                total = Limit(
                    total.cpu_s + part.cpu_s,
                    total.wall_s + part.wall_s,
                    total.size_bytes + part.size_bytes,
                    total.out_bytes + part.out_bytes,
                )
    return total


def _unzstd_frame(frame: bytes) -> tuple[int, int]:
    return len(frame), len(decompress_frame(frame, content_bytes_max=MIB))


def _spread(job: Callable[[_T], tuple[int, int]], items: Iterable[_T]) -> Limit:
    cpu_s, wall_s = time.process_time(), time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(job, items))
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    return Limit(cpu_s, wall_s, sum(size for size, _ in sizes), sum(out for _, out in sizes))


def _objects(url: str, size_bytes: int, *, is_put: bool) -> Limit:
    store = open_store(parse_region_url(url))
    body = os.urandom(_OBJECT_BYTES)
    lengths = [_OBJECT_BYTES] * (size_bytes // _OBJECT_BYTES) + [size_bytes % _OBJECT_BYTES or 1]
    keys = [f"limit/{number:06d}" for number, _ in enumerate(lengths)]

    def put(number: int) -> tuple[int, int]:
        # As a pack is put: its digest is known by then, and nothing is copied.
        store.put(keys[number], body[: lengths[number]])
        return lengths[number], 0

    def get(number: int) -> tuple[int, int]:
        return len(store.get(keys[number])), 0

    return _spread(put if is_put else get, range(len(lengths)))


def main() -> None:
    _, what, *words = sys.argv
    if what == "write":
        limit = _write(Path(words[0]), int(words[1]))
    elif what == "unzstd":
        limit = _unzstd(Path(words[0]))
    elif what in {"put", "get"}:
        limit = _objects(words[0], int(words[1]), is_put=what == "put")
    else:
        limit = _spread({"zstd": _zstd, "read": _read}[what], _relations(Path(words[0])))
    print(
        json.dumps(
            {
                "cpu_s": limit.cpu_s,
                "wall_s": limit.wall_s,
                "size_bytes": limit.size_bytes,
                "out_bytes": limit.out_bytes,
            }
        )
    )


if __name__ == "__main__":
    main()
