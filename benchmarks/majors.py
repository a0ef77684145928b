"""One name's figures on each PostgreSQL major, with one S3 server for all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.cluster import bench_cluster, missing_major
from benchmarks.harness import Row
from benchmarks.s3 import s3_server
from benchmarks.side import Place

# From here on the server says which pages changed, if it is told to note it.
_SUMMARIES_SINCE = 17
Figures = Callable[[Place], list[Row]]


def on_majors(
    work: Path, name: str, figures: Mapping[int, Figures], settings: Mapping[str, str] | None = None
) -> list[Row]:
    """Run each major's figures on an empty cluster; a major that is not installed is a row that says so.

    ``settings`` are the cluster's, beside those that all have.
    """
    rows: list[Row] = []
    with s3_server(work) as server:
        for major, run in figures.items():
            absent = missing_major(major)
            if absent is not None:
                rows.append(Row(f"{name} PG{major}", "", None, absent, None, None, "", None))
                continue
            print(f"{name} PG{major} …", file=sys.stderr, flush=True)
            folder = work / f"on-{major}"
            folder.mkdir(mode=0o755)
            summaries = {"summarize_wal": "on"} if major >= _SUMMARIES_SINCE else {}
            with bench_cluster(folder, major=major, settings={**summaries, **(settings or {})}) as cluster:
                rows += run(Place(cluster, server, folder))
            # Room for the next: what was stored is not read again.
            server.drop_buckets()
    return rows
