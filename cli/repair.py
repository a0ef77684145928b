"""``pitr repair``: the running daemon compares the regions and makes again what one of them lacks."""

from __future__ import annotations

import click

from cli.context import common_options, current
from cli.errors import RegionsMissed

# A listing of every region, page by page: a million objects are some minutes.
TIMEOUT_S = 1800.0


@click.command()
@common_options
def repair() -> None:
    """Compare the regions, and make missing copies again.

    For when a damaged copy was removed by hand, or a region was replaced. The running daemon does it:
    when this command ends, the copies are queued; "pitr status" shows how many still wait. What is there is
    never overwritten. Exit code 3 if a region could not be compared.
    """
    from cli.control import ControlRequest, ask_own_daemon

    app = current()
    found = ask_own_daemon(app.settings().daemon, ControlRequest("repair"), timeout_s=TIMEOUT_S)
    missing = int(found["missing_copies"])
    where = " in the regions that were compared" if found["unreached"] else ""
    app.output.line(
        f"{found['objects']} objects compared: "
        + (f"{missing} copies are missing and are made again" if missing else f"no copy is missing{where}")
    )
    if found["unreached"]:
        app.partial_result = dict(found)
        raise RegionsMissed(
            f"not compared, or not wholly: {', '.join(found['unreached'])}",
            detail="what those regions lack is not known",
            hint="repeat it once they answer: pitr status",
        )
    app.output.finish(found)
