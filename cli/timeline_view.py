"""The map of timelines for people: a tree on a terminal, plain columns elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cli.output import Output
from cli.timeline_fields import shown_spans, why_text
from pitr.recovery import instant_text

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from pitr.timeline_map import Branch, BranchId, TimelineMap
    from pitr.timeline_spans import TimelineSpan

_BAR_CELLS = 40
# Ever deeper trees are an attacker's; timelines of real clusters are a few dozen.
_DEPTH_MAX = 100


def show_map(output: Output, made: TimelineMap, *, gaps_only: bool) -> None:
    """Write the map."""
    if output.is_json:
        return
    for line in _summary(made):
        output.line(line)
    if output.stdout.isatty():
        output.console(on_stderr=False).print(_tree(made, gaps_only=gaps_only))
        return
    rows = [_row(span) for branch in made.branches for span in shown_spans(branch.spans, gaps_only=gaps_only)]
    output.table(
        ["restorable", "epoch", "timeline", "start", "end", "since", "until", "regions", "why"],
        rows,
        empty="there is no gap" if gaps_only else "there is no WAL yet",
    )


def _summary(made: TimelineMap) -> list[str]:
    lines = [f"archive {made.way.archive}, on the way to timeline {made.way.timeline}"]
    if made.first is not None and made.last is not None:
        count = len(made.gaps)
        verdict = "every moment of it" if made.is_whole else f"with {count} gap{'s' if count != 1 else ''}"
        lines.append(f"restorable from {made.first} to {made.last}, {verdict}")
    return lines


def _row(span: TimelineSpan) -> list[str]:
    return [
        "yes" if span.is_restorable else "NO",
        str(span.archive.epoch),
        str(span.timeline),
        str(span.start),
        str(span.end),
        "-" if span.first_at is None else instant_text(span.first_at),
        "-" if span.last_at is None else instant_text(span.last_at),
        ",".join(span.regions) or "-",
        why_text(span),
    ]


def _tree(made: TimelineMap, *, gaps_only: bool) -> Tree:
    from rich.tree import Tree

    known = {branch.id: branch for branch in made.branches}
    children: dict[BranchId | None, list[Branch]] = {}
    for branch in made.branches:
        parent = branch.parent
        above = parent.branch if parent is not None and parent.branch in known else None
        children.setdefault(above, []).append(branch)
    root = Tree("", hide_root=True, guide_style="dim")
    _grow(root, None, children, made, gaps_only=gaps_only, depth=0)
    return root


def _grow(
    node: Tree,
    above: BranchId | None,
    children: Mapping[BranchId | None, Sequence[Branch]],
    made: TimelineMap,
    *,
    gaps_only: bool,
    depth: int,
) -> None:
    if depth >= _DEPTH_MAX:
        return
    for branch in children.get(above, ()):
        grown = node.add(_label(branch, made))
        for span in shown_spans(branch.spans, gaps_only=gaps_only):
            grown.add(_line(span))
        _grow(grown, branch.id, children, made, gaps_only=gaps_only, depth=depth + 1)


def _label(branch: Branch, made: TimelineMap) -> Text:
    from rich.text import Text

    label = Text(f"timeline {branch.id.timeline}", style="bold" if branch.is_on_way else "dim")
    label.append(f", epoch {branch.id.archive.epoch}", style="not bold")
    if branch.parent is not None:
        label.append(f", from {branch.parent.lsn}", style="not bold")
    if branch.id == made.way:
        label.append("  <- the way leads here", style="cyan")
    if branch.spans:
        label.append("  ")
        label.append_text(_bar(branch.spans))
    return label


def _line(span: TimelineSpan) -> Text:
    from rich.text import Text

    style = _style(span)
    line = Text("yes " if span.is_restorable else "NO  ", style=style)
    line.append(f"{span.start} to {span.end}", style="default")
    if span.first_at is not None and span.last_at is not None:
        line.append(f"  {instant_text(span.first_at)} to {instant_text(span.last_at)}", style="dim")
    if span.regions:
        line.append(f"  {', '.join(span.regions)}", style="blue")
    why = why_text(span)
    if why:
        line.append(f"  {why}", style="red" if not span.is_restorable else "yellow")
    return line


def _style(span: TimelineSpan) -> str:
    if not span.is_restorable:
        return "red"
    return "green" if span.aside is None else "dim green"


def _bar(spans: Sequence[TimelineSpan]) -> Text:
    """Return the branch as equal cells; each shows the worst that lies in it, so no gap is too small."""
    from rich.text import Text

    first, last = spans[0].start.offset, max(spans[-1].end.offset, spans[0].start.offset + 1)
    bar = Text()
    for cell in range(_BAR_CELLS):
        start = first + (last - first) * cell // _BAR_CELLS
        end = first + (last - first) * (cell + 1) // _BAR_CELLS
        within = [
            span for span in spans if span.start.offset < max(end, start + 1) and start < span.end.offset
        ]
        worst = min(within, key=_rank, default=None)
        mark = " " if worst is None else _MARKS[_rank(worst)]
        bar.append(mark, style=None if worst is None else _style(worst))
    return bar


# The worst first: WAL is missing; it is there and of no use; it can be restored, beside the way or on it.
_MARKS = "·░▒█"


def _rank(span: TimelineSpan) -> int:
    if not span.is_restorable:
        return 1 if span.segments is None else 0
    return 3 if span.aside is None else 2
