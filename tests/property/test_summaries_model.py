"""Parent and changed blocks give the file of now, whatever happened between: against a model of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from fix_summaries import Row, relation, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr.postgres.datadir import PG_DEFAULT_OID
from pitr.postgres.summaries import Changes, plan_file

SEGMENT_BLOCKS = 4
NODES = (16384, 16385)
# A page of the parent that was torn, or written to after the parent's start: replay of the parent mends it,
# and nobody replays it now.
TORN = -1
ZERO = 0

Fork = tuple[int, int]
Pages = dict[Fork, list[int]]


@dataclass
class SummaryModel:
    """What the summarizer gathers of one stretch of WAL (blkreftable.c)."""

    limits: dict[Fork, int] = field(default_factory=dict)
    blocks: dict[Fork, set[int]] = field(default_factory=dict)
    databases: set[int] = field(default_factory=set)

    def wrote(self, fork: Fork, block: int) -> None:
        self.blocks.setdefault(fork, set()).add(block)

    def cut(self, fork: Fork, blocks: int) -> None:
        self.limits[fork] = min(blocks, self.limits.get(fork, blocks))
        self.blocks[fork] = {block for block in self.blocks.get(fork, ()) if block < blocks}

    def rows(self) -> list[Row]:
        rows = [(PG_DEFAULT_OID, database, 0, "main", 0, True) for database in sorted(self.databases)]
        rows += [(PG_DEFAULT_OID, *fork, "main", limit, True) for fork, limit in self.limits.items()]
        rows += [
            (PG_DEFAULT_OID, *fork, "main", block, False)
            for fork, blocks in self.blocks.items()
            for block in sorted(blocks, reverse=True)
        ]
        return rows


class ClusterModel:
    """Relations as lists of pages; each page that is written is another one."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.summaries = [SummaryModel()]
        self.touched: set[tuple[Fork, int]] = set()
        self._last = 1000

    def _page(self) -> int:
        self._last += 1
        return self._last

    def write(self, fork: Fork, block: int) -> None:
        if fork in self.pages:
            pages = self.pages[fork]
            # Pages between the old end and the new one are zero, and no WAL says so.
            pages += [ZERO] * (block + 1 - len(pages))
            pages[block] = self._page()
            self.touched.add((fork, block))
            self.summaries[-1].wrote(fork, block)

    def extend(self, fork: Fork, count: int) -> None:
        if fork in self.pages:
            self.pages[fork] += [ZERO] * count

    def truncate(self, fork: Fork, blocks: int) -> None:
        if fork in self.pages and blocks <= len(self.pages[fork]):
            del self.pages[fork][blocks:]
            self.summaries[-1].cut(fork, blocks)

    def drop(self, fork: Fork, _block: int) -> None:
        if self.pages.pop(fork, None) is not None:
            self.summaries[-1].cut(fork, 0)

    def create(self, fork: Fork, _block: int) -> None:
        if fork not in self.pages:
            self.pages[fork] = []
            self.summaries[-1].cut(fork, 0)

    def recreate_database(self, fork: Fork, blocks: int) -> None:
        """Drop it and copy it again from a template's files: its pages are in no WAL."""
        for node in NODES:
            self.pages.pop((fork[0], node), None)
        self.pages[fork] = [self._page() for _ in range(blocks)]
        self.summaries[-1].databases.add(fork[0])

    def next_summary(self, _fork: Fork, _block: int) -> None:
        self.summaries.append(SummaryModel())


def files_of(pages: Pages) -> dict[str, list[int]]:
    """Return the relations' segments as files."""
    files = {}
    for (database, node), content in pages.items():
        for segment in range(max(1, -(-len(content) // SEGMENT_BLOCKS))):
            suffix = f".{segment}" if segment else ""
            part = content[segment * SEGMENT_BLOCKS : (segment + 1) * SEGMENT_BLOCKS]
            files[f"base/{database}/{node}{suffix}"] = part
    return files


# Mostly the same one, so that something happens to it twice.
_FORKS = st.sampled_from([(5, 16384)] * 5 + [(5, 16385), (6, 16384)])
_STEPS = st.tuples(
    st.sampled_from(
        ["write"] * 6
        + ["extend", "truncate", "truncate", "drop", "create", "recreate_database"]
        + ["next_summary"] * 3
    ),
    _FORKS,
    st.integers(0, 10),
)
_PAGES = st.dictionaries(
    _FORKS, st.lists(st.sampled_from([1, 2, 3, ZERO]), min_size=3, max_size=11), min_size=1
)


@settings(max_examples=400, deadline=None)
@given(before=_PAGES, steps=st.lists(_STEPS, max_size=30), batch_rows=st.integers(1, 5))
def test_parent_and_changed_blocks_give_the_file_of_now(
    before: Pages, steps: list[tuple[str, Fork, int]], batch_rows: int
) -> None:
    parent_pages = {fork: list(pages) for fork, pages in before.items()}
    cluster = ClusterModel({fork: list(pages) for fork, pages in before.items()})
    for name, fork, number in steps:
        getattr(cluster, name)(fork, number)
    # The parent read its pages while all this had begun.
    for fork, block in cluster.touched:
        if block < len(parent_pages.get(fork, ())):
            parent_pages[fork][block] = TORN

    changes = Changes()
    for summary in cluster.summaries:
        rows = summary.rows()
        for is_limit in (True, False):
            some = [row for row in rows if row[5] is is_limit]
            for at in range(0, len(some), batch_rows):
                changes.add_rows(rows_of(some[at : at + batch_rows]))
    changes.finish()

    parent = files_of(parent_pages)
    for path, now in files_of(cluster.pages).items():
        part = plan_file(
            relation(path, len(now)),
            changes,
            is_in_parent=path in parent,
            relation_segment_blocks=SEGMENT_BLOCKS,
        )
        if part is None:
            continue
        restored = (parent[path] + [ZERO] * len(now))[: len(now)]
        restored[part.parent_blocks :] = [ZERO] * (len(now) - part.parent_blocks)
        for block in part.blocks.tolist():
            restored[block] = now[block]
        assert restored == now, path
