"""A plan of replay as one HTML file without scripts, to be read and printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from cli.events_plan_view import COLUMNS, PHANTOM_COLUMNS, partition_row, phantom_rows, summary
from pitr.events.mirror_plan import MirrorPlan
from pitr.events.partition import TopicPartition
from pitr.events.phantoms import PhantomList
from pitr.events.plan import ReplayPlan

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;color:#1a1a1a;max-width:80em;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{font-size:1.1em;border-bottom:1px solid #bbb;margin:1.6em 0 .5em}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.2em .8em .2em 0}
th{font-weight:600;color:#444}tbody tr{border-top:1px solid #e4e4e4}.bad{color:#a00016}
li{overflow-wrap:anywhere}
@media print{body{margin:0;max-width:none;font-size:10pt}h2{break-after:avoid}tr{break-inside:avoid}}
"""
_HEAD: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Plan of replay</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head><body>
<h1>Plan of replay</h1>
"""


def render_plan(
    plan: ReplayPlan, accepted: Sequence[str], faults: Sequence[str], mirror: MirrorPlan | None = None
) -> bytes:
    """Return the page; the same bytes for the same plan."""
    partitions = [(topic, one) for topic in plan.topics for one in topic.partitions]
    gaps = [
        gap.told(at) + (" (accepted)" if str(at) in accepted else "")
        for topic, one in partitions
        for at in [TopicPartition(topic.topic, one.partition)]
        for gap in one.gaps
    ]
    resets = [
        [one.group, f"{at.topic}[{at.partition}]", "-" if at.before is None else str(at.before), str(at.to)]
        for one in plan.groups
        for at in one.resets
    ]
    parts = [
        _HEAD.format(style=_STYLE),
        _items("In short", summary(plan, mirror)),
        _items("Missing", gaps, css="bad"),
        _items("Fences", faults, css="bad"),
        _table("Partitions", COLUMNS, [partition_row(topic, one) for topic, one in partitions]),
        _table("Consumer groups to reset", ("group", "partition", "stands at", "to"), resets),
        _phantoms("Events of commits that a failover lost", plan.lost),
        _phantoms("Events whose transaction is not in the database", plan.phantoms),
        "</body></html>\n",
    ]
    return "".join(parts).encode("utf-8")


def _items(title: str, lines: Sequence[str], *, css: str = "") -> str:
    if not lines:
        return ""
    items = "".join(f'<li class="{css}">{escape(line)}</li>' for line in lines)
    return f"<h2>{escape(title)}</h2>\n<ul>{items}</ul>\n"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{_cells(row)}</tr>\n" for row in rows)
    return f"<h2>{escape(title)}</h2>\n<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"


def _cells(row: Iterable[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in row)


def _phantoms(title: str, found: PhantomList) -> str:
    counted = f"{title}: {found.count}"
    if found.count > len(found.first):
        counted += f", of which the first {len(found.first)}"
    return _table(counted, PHANTOM_COLUMNS, list(phantom_rows(found)))
