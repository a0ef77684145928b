"""A verification without a configuration: regions, identity and the verifier's key are all given by option.

So an auditor's or a spare machine verifies what it never wrote.  What only a configuration could say (the
objectives, the owner, the retention window) is nobody's then, and the report says why.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from cli.context import App
from cli.errors import UsageRefused
from cli.reading import Source, choose_archive, open_source
from cli.settings import (
    ClusterSettings,
    DaemonSettings,
    KeySettings,
    RepositorySettings,
    RetentionSettings,
    Settings,
)
from cli.verify_settings import VerifySettings

NOTE: Final = (
    "there was no configuration: regions, identity and the verifier's key were given by option,"
    " and no objectives"
)
# Nothing is read from it: the digest that the report has of its configuration is that of nothing.
_NO_FILE: Final = Path(os.devnull)


def bare_settings(
    app: App, urls: tuple[str, ...], identity: Path | None, key: Path | None, archive: str | None
) -> Settings:
    """Return what a verification goes by.  Raises UsageRefused, and as ``cli.wiring.open_reader``.

    The log is put into as many of the regions as the archive's head says that an object must be in.
    """
    if identity is None:
        raise UsageRefused("without a configuration the reader's identity is needed", hint="--identity FILE")
    if key is None:
        raise UsageRefused(
            "without a configuration the verifier's key is needed",
            detail="it signs the report",
            hint="--key FILE; pitr verifier init --key FILE makes one",
        )
    key = key.absolute()
    with open_source(app, Source(urls, identity)) as reader:
        chosen = choose_archive(reader.repository, archive)
        head = reader.repository.latest_head(chosen)
        quorum = None if head is None else head.quorum
        needed = len(reader.regions) // 2 + 1 if quorum is None else quorum.acknowledged_by
        if needed > len(reader.regions):
            app.output.warn(
                f"an object belongs in {needed} regions, and {len(reader.regions)} were named:"
                " the rest get log and report by pitr repair"
            )
        regions, repository = reader.regions, reader.repository
    state_dir = key.with_name(f"{key.stem}-state")
    name = str(chosen.system_identifier)
    return Settings(
        path=_NO_FILE,
        cluster=ClusterSettings(name, dsn="", slot=""),
        repository=RepositorySettings(repository.repository_id, min(needed, len(regions))),
        regions=regions,
        keys=KeySettings(_NO_FILE, (), str(repository.root)),
        daemon=DaemonSettings(state_dir),
        retention=RetentionSettings(window_s=0),
        verify=VerifySettings(
            work_dir=state_dir,
            # Open to the server's user, as a folder beside a key seldom is.
            scratch_dir=Path(tempfile.gettempdir()) / f"pitr-verify-{os.geteuid()}",
            key_file=key,
            identity_file=identity,
            every_s=None,
            rto_s=None,
            rpo_s=None,
            system=name,
        ),
    )
