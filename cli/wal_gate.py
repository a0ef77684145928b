"""``pitr wal gate``: the folder and the setting that let PostgreSQL's archiver ask what is durable."""

from __future__ import annotations

import click

from cli.context import common_options, current


@click.command("gate")
@common_options
def gate(*_: object) -> None:
    """Make the archive_command gate, and say how to set it.

    Run it as the daemon's user. PostgreSQL then recycles a WAL segment only once it is at quorum; with [wal]
    source = "archive" all WAL comes this way. May be repeated: an upgrade writes the script anew, as the
    daemon does whenever it starts.
    """
    from cli.wiring import gate_folder
    from pitr.gate_script import archive_command

    app = current()
    settings = app.settings()
    folder = gate_folder(settings)
    folder.make()
    command = archive_command(folder.root)
    quoted = command.replace("'", "''")
    statements = ["ALTER SYSTEM SET archive_mode = 'on';", f"ALTER SYSTEM SET archive_command = '{quoted}';"]
    app.output.line(f"the gate is in {folder.root}; on the server:")
    for statement in statements:
        app.output.line(f"  {statement}")
    app.output.line("  then restart it if archive_mode was off, else: SELECT pg_reload_conf();")
    app.output.finish({"folder": str(folder.root), "archive_command": command, "source": settings.wal.source})
