"""What a restore over an old directory will fetch, and what it will keep: index and files compared.

Reads every byte of the old directory once, fetches the backup's indexes, and writes nothing but notes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pitr.errors import MalformedValue
from pitr.pipeline.packs import IndexFile, IndexFileMore, IndexPack, iter_index
from pitr.restore_files import PATIENCE_S, ChainLink
from pitr.restore_keep import OldDirectory, PackKeeper, PackTask
from pitr.restore_layer import Fetching, Layer
from pitr.restore_uses import PartReader
from pitr.restore_wanted import WantedFiles
from storage.store import ObjectStore


@dataclass(frozen=True, slots=True)
class DeltaEstimate:
    """``fetched_bytes`` are sealed bytes; ``kept_bytes`` are content, of ``size_bytes`` that are restored."""

    fetched_bytes: int
    kept_bytes: int
    size_bytes: int


def estimate_delta(
    store: ObjectStore,
    chain: Sequence[ChainLink],
    old: OldDirectory,
    notes: Path,
    *,
    patience_s: float = PATIENCE_S,
) -> DeltaEstimate:
    """Compare the old directory with the chain.  What seems right is proved only by the restore.

    ``notes`` is a file for what does not fit into memory.  Raises NotAuthentic, MalformedValue, StoreError.
    """
    index_bytes = 0

    def count(size_bytes: int) -> None:
        nonlocal index_bytes
        index_bytes += size_bytes

    fetching = Fetching(store, patience_s, threading.Event(), count)
    keeper, fetched_bytes, kept_bytes = PackKeeper(old), 0, 0
    wanted = WantedFiles(notes)
    try:
        for depth, link in enumerate(chain):
            if depth:
                wanted.begin_parent()
            layer = Layer(link.manifest, link.data_key, fetching)
            for task, use_bytes in _packs(layer, depth, wanted):
                look = keeper.look(task)
                fetched_bytes += look.fetched_bytes
                kept_bytes += sum(use_bytes[number] for number in task.wanted & look.right)
            wanted.end_backup(link.manifest.backup)
    finally:
        wanted.close()
    return DeltaEstimate(fetched_bytes + index_bytes, kept_bytes, chain[0].manifest.size_bytes)


def _packs(layer: Layer, depth: int, wanted: WantedFiles) -> Iterator[tuple[PackTask, dict[int, int]]]:
    """Yield the packs of which something is wanted, and how many bytes of each frame are."""
    for part, (indexes, packs) in layer.parts().items():
        reader = PartReader(wanted, depth, keeps_all=True)
        for line in iter_index([layer.open_index(part, stored) for stored in indexes]):
            match line:
                case IndexFileMore():
                    reader.add_more(line)
                case IndexFile():
                    reader.add_file(line)
                case IndexPack():
                    stored = packs.get(line.number)
                    if stored is None:
                        raise MalformedValue(f"pack {line.number} of part {part} is not in the manifest")
                    held = reader.held
                    use_bytes: dict[int, int] = {}
                    for use in reader.end_pack():
                        taken = sum(span.size_bytes for span in use.spans)
                        use_bytes[use.extent.frame] = use_bytes.get(use.extent.frame, 0) + taken
                    if use_bytes:
                        yield PackTask(part, line, stored, held, frozenset(use_bytes)), use_bytes
                case _:
                    pass
