"""A cluster that is restored in place: the old one goes, the new one starts where it was."""

from __future__ import annotations

import shutil

from fix_cli import Done, Site


def restore_in_place(site: Site, target: object, *more: object) -> Done:
    """End the server, restore it, and start what was restored where the old one was."""
    if site.daemon.is_running:
        site.daemon.stop()
    site.server.stop()
    new = site.server.data_dir.with_name("restored")
    done = site.restore(target, new, *more)
    shutil.rmtree(site.server.data_dir)
    new.rename(site.server.data_dir)
    site.start_server()
    return done


def renew(site: Site, exit_code: int = 0) -> Done:
    """Run what a restore says that comes next, where the host's configuration is."""
    line = ["-c", site.config, "init", "--identity", site.identity, "--json"]
    return site.program(*line, exit_code=exit_code)
