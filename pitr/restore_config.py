"""External configuration after a restore: which copies there are, and how the server is started with them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from pitr.config_includes import FILE_SETTINGS, stored_path


def restored_config(settings: Mapping[str, str], data_dir: Path) -> dict[str, Path]:
    """Return, by setting, the copies below ``data_dir`` of files that lay outside of the old cluster."""
    found: dict[str, Path] = {}
    for name in FILE_SETTINGS:
        stored = stored_path(settings.get(name, ""))
        if stored is None:
            continue
        place = data_dir / os.fsdecode(stored)
        # The settings are only what the host said: a link may be anywhere.
        if place.is_file() and not place.is_symlink():
            found[name] = place
    return found


def config_steps(settings: Mapping[str, str], data_dir: Path) -> tuple[str, ...]:
    """Return what a person must know of it; nothing if all configuration was in the data directory."""
    copies = restored_config(settings, data_dir)
    lost = _lost(settings, copies, data_dir)
    if not copies:
        return lost
    lay = ", ".join(f"{name} {settings[name]}" for name in copies)
    # data_directory in a configuration file would win over -D.
    words = {"data_directory": data_dir, **copies}
    options = shlex.join(f"--{name}={place}" for name, place in words.items())
    start = shlex.join(["pg_ctl", "-D", str(data_dir), "-o", options, "start"])
    said = (
        f"the configuration lay outside of the data directory ({lay}): copies are in"
        f" {data_dir / 'pitr-config'}; look at their paths, then put them where they were,"
        f" or start the server with them: {start}"
    )
    return (said, *lost)


def _lost(settings: Mapping[str, str], copies: Collection[str], data_dir: Path) -> tuple[str, ...]:
    """Tell of files that are neither copied nor in the data directory: the protocol hands over none."""
    gone = [
        name
        for name in FILE_SETTINGS
        if settings.get(name) and name not in copies and not (data_dir / Path(settings[name]).name).exists()
    ]
    if not gone:
        return ()
    lay = ", ".join(f"{name} {settings[name]}" for name in gone)
    return (f"the backup has no copy of the configuration ({lay}): bring it before you start the server",)
