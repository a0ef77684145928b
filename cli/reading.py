"""Options that say where a repository is read from, and which of its archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.context import App
from cli.errors import UsageRefused

if TYPE_CHECKING:
    from cli.wiring import Reader
    from pitr.layout import ArchiveId
    from pitr.repository import Repository

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Source:
    """Where to read from, as it was typed."""

    urls: tuple[str, ...] = ()
    identity_path: Path | None = None
    region: str | None = None
    archive: str | None = None

    @property
    def names_epoch(self) -> bool:
        """Tell whether ``archive`` says which writer epoch, and not only which cluster."""
        return "/" in (self.archive or "")


def source_options(command: Command) -> Command:
    """Give a command ``--from``, ``--identity``, ``--region`` and ``--archive``; it gets a ``source``."""
    options = [
        click.option(
            "--from",
            "source_urls",
            multiple=True,
            metavar="URL",
            help="A region; needs no configuration; may be repeated.",
        ),
        click.option(
            "--identity",
            "source_identity",
            type=click.Path(path_type=Path),
            help="The reader's identity file.",
        ),
        click.option("--region", "source_region", metavar="NAME", help="Read this configured region alone."),
        click.option(
            "--archive", "source_archive", metavar="SYSTEM/EPOCH", help="Which archive, if there are several."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def source_of(
    urls: tuple[str, ...], identity: Path | None, region: str | None, archive: str | None
) -> Source:
    """Return the options as one value.  Raises UsageRefused if they contradict each other."""
    if urls and region is not None:
        raise UsageRefused(
            "--from and --region exclude each other", hint="--region names a configured region"
        )
    return Source(urls, identity, region, archive)


@contextmanager
def open_source(app: App, source: Source) -> Iterator[Reader]:
    """Open the repository that the options name.  Raises as ``cli.wiring.open_reader``."""
    from cli.config import find_config_or_none
    from cli.wiring import open_reader
    from storage.url import MalformedURL, parse_region_url, shown_url

    for url in source.urls:
        try:
            parse_region_url(url)
        except MalformedURL as error:
            raise UsageRefused(
                f"--from {shown_url(url)}: {error}", hint="docs/config.md shows the forms of URLs"
            ) from error
    settings = None
    if not source.urls and (app.config_path is not None or find_config_or_none(None) is not None):
        settings = app.settings()
    with open_reader(
        settings, urls=source.urls, identity_path=source.identity_path, region=source.region
    ) as reader:
        yield reader


def choose_archive(repository: Repository, wanted: str | None) -> ArchiveId:
    """Return the archive to read: the one that is named, else the newest epoch of the only cluster.

    Raises UsageRefused if there are several clusters, NotInitialised if there is none.
    """
    from pitr.errors import MalformedValue, NotInitialised
    from pitr.layout import ArchiveId

    archives = repository.archives()
    if wanted is not None:
        system, _, epoch = wanted.partition("/")
        try:
            named = ArchiveId(int(system), int(epoch)) if epoch else None
        except (ValueError, MalformedValue) as error:
            raise UsageRefused(f"not an archive: {wanted!r}", hint=_known(archives)) from error
        if named is not None:
            archives = [archive for archive in archives if archive == named]
        else:
            archives = [archive for archive in archives if str(archive.system_identifier) == system]
        if not archives:
            raise UsageRefused(f"there is no archive {wanted}", hint=_known(repository.archives()))
    if not archives:
        raise NotInitialised("the repository has no archive yet", hint="pitr init lets a cluster in")
    clusters = {archive.system_identifier for archive in archives}
    if len(clusters) > 1:
        raise UsageRefused("the repository has archives of several clusters", hint=_known(archives))
    return max(archives, key=lambda archive: archive.epoch)


def _known(archives: list[ArchiveId]) -> str:
    return "choose with --archive: " + (", ".join(str(archive) for archive in archives) or "there is none")
