"""``pitr events reset-groups``: consumer groups back to where replay starts, after showing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.events_cluster import mirror_option

if TYPE_CHECKING:
    from pitr.events.reset_groups import GroupMove


@click.command()
@click.option(
    "--plan",
    "plan_path",
    required=True,
    type=click.Path(path_type=Path),
    help="The file of `pitr events plan`.",
)
@click.option("--plan-hash", metavar="SHA256", help="The plan's hash, from whoever read it.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="This group only; may be repeated.")
@mirror_option
@common_options
def events_reset_groups(
    plan_path: Path, plan_hash: str | None, groups: tuple[str, ...], mirror: bool
) -> None:
    """Move consumer groups back to where replay starts.

    Shows where each group stands and where it goes, and moves it with --yes, or after asking. A group with
    members is refused: stop them first. Not for topics that `pitr events replay` itself replays into the
    database: their sinks would apply the same events again.
    """
    from cli.events_cluster import open_cluster
    from cli.events_sink import events_settings_of, read_plan
    from pitr.events.refusals import PlanRefused
    from pitr.events.reset_groups import move_groups, moves_of

    app = current()
    settings = events_settings_of(app)
    plan = read_plan(plan_path)
    if plan_hash is not None and plan_hash.lower() != plan.hash:
        raise PlanRefused("this plan is not the one that was named", detail=f"its hash is {plan.hash}")
    unknown = set(groups) - {one.group for one in plan.groups}
    if unknown:
        raise UsageRefused(f"the plan moves no group {min(unknown)!r}")
    with open_cluster(settings, is_mirror=mirror) as cluster:
        broker = cluster.broker
        if (found := broker.cluster_id()) != plan.cluster_id:
            raise PlanRefused(
                "the plan is for another Kafka cluster",
                detail=f"the plan's is {plan.cluster_id}, this is {found}",
                hint="a plan that was made with --mirror needs it here, too",
            )
        moves = moves_of(plan, broker, groups)
        _show(app, moves)
        wanted = [one for one in moves if one.is_needed]
        moved = 0
        if wanted:
            busy = sorted({one.group for one in wanted if not one.is_empty})
            if busy:
                raise UsageRefused(
                    f"group {busy[0]} has members",
                    detail="they would write their own offsets over what is set here",
                    hint="stop its consumers, then repeat",
                )
            if _is_wanted(app, plan.hash, plan_hash):
                moved = move_groups(wanted, broker)
                app.output.line(f"{moved} offsets were moved")
    app.output.finish({"moves": [_fields(one) for one in moves], "moved": moved})


def _is_wanted(app: App, real: str, named: str | None) -> bool:
    """Tell whether to go on: with --yes or an answer.  Raises UsageRefused for --yes without the hash."""
    if app.is_yes:
        if named is None:
            raise UsageRefused(
                "--yes needs the plan's hash", detail="so that what is done is what somebody has read",
                hint=f"--plan-hash {real}",
            )  # fmt: skip
        return True
    if not app.output.is_interactive():
        app.output.note("nothing was moved: give --yes and --plan-hash to do it")
        return False
    return click.confirm("Move these groups?", default=False, err=True)


def _show(app: App, moves: list[GroupMove]) -> None:
    app.output.table(
        ["group", "partition", "stands at", "goes to", ""],
        [
            [
                one.group,
                str(one.at),
                "nowhere" if one.now is None else str(one.now),
                str(one.to),
                "" if one.is_needed else "stays",
            ]
            for one in moves
        ],
        empty="no group is to be moved",
    )


def _fields(move: GroupMove) -> dict[str, object]:
    return {
        "group": move.group,
        "topic": move.at.topic,
        "partition": move.at.partition,
        "now": move.now,
        "to": move.to,
        "is_needed": move.is_needed,
        "is_empty": move.is_empty,
    }
