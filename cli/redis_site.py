"""Sites of Redis as the configuration names them: opened, with the secrets read from files of their own."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli.config_redis import RedisSettings
from cli.errors import UsageRefused
from cli.key_files import read_secret, read_signing_key
from cli.settings import Settings
from pitr.derived.access import RedisAccess, RedisTls
from pitr.errors import KeyMissing, NotInitialised

if TYPE_CHECKING:
    from pitr.derived.site import Site
    from pitr.layout import ArchiveId
    from pitr.pipeline.sign import Signer
    from pitr.repository import Repository

_CLOSE_S = 10.0
_SECRET_KEYS = {"username", "password"}


def chosen_sites(settings: Settings, names: Sequence[str]) -> tuple[RedisSettings, ...]:
    """Return the named sites, or all.  Raises NotInitialised if there is none, UsageRefused."""
    if not settings.redis:
        raise NotInitialised(
            "the configuration has no [[redis]]",
            hint="say where Redis is and what becomes of its keys: docs/redis.md",
        )
    known = {one.name: one for one in settings.redis}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageRefused(f"there is no [[redis]] {unknown[0]!r}", hint="known: " + ", ".join(known))
    return tuple(one for one in settings.redis if not names or one.name in names)


def open_site(settings: RedisSettings) -> Site:
    """Return the site; nothing is connected yet.  Raises KeyMissing for its credentials."""
    from pitr.derived.site import Site

    username, password = _credentials(settings.credentials_file)
    tls = None
    if settings.is_tls:
        tls = RedisTls(settings.ca_file, settings.certificate_file, settings.key_file, settings.checks_names)
    access = RedisAccess(settings.timeout_s, username, password, tls)
    return Site(settings.name, settings.addresses, access)


def _credentials(path: Path | None) -> tuple[str | None, str | None]:
    if path is None:
        return None, None
    text = read_secret(path, "Redis credentials")
    try:
        fields = tomllib.loads(text)
    except ValueError:
        # Not the cause's text: a parser quotes what it does not understand, a secret perhaps.
        raise _not_credentials(path) from None
    if not set(fields) <= _SECRET_KEYS or not all(isinstance(one, str) for one in fields.values()):
        raise _not_credentials(path)
    if not fields.get("password"):
        raise _not_credentials(path)
    return fields.get("username"), fields["password"]


def _not_credentials(path: Path) -> KeyMissing:
    return KeyMissing(
        f"{path} is not a file of Redis credentials",
        detail="it has other lines than these, or no password",
        hint='it needs password = "…", and username = "…" where there is one',
    )


@contextmanager
def writing_repository(settings: Settings) -> Iterator[Repository]:
    """Open the repository for writing at quorum, beside a daemon: with a queue of its own.

    Raises AlreadyRunning while another process has that.
    """
    from cli.lock import RunLock
    from cli.regions import open_regions, open_writing
    from cli.wiring import host_repository
    from storage.repair import RepairQueue

    folder = settings.daemon.state_dir / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with RunLock(folder / "snapshots.lock", whose="pitr redis snapshot"):
        queue = RepairQueue(folder / "repair.sqlite")
        store = open_writing(open_regions(settings.regions), settings.repository.quorum, queue)
        try:
            yield host_repository(settings, store)
        finally:
            store.close(_CLOSE_S)
            queue.close()


def host_signer(settings: Settings) -> Signer:
    """Read the host's key.  Raises KeyMissing."""
    return read_signing_key(settings.keys.signing_key_file)


def writable_archive(repository: Repository, signer: Signer, wanted: str | None) -> ArchiveId:
    """Return the archive that this host writes, without asking the server: that may be what is down.

    Raises NotInitialised if the newest epoch is not this host's, NotAuthentic; UsageRefused.
    """
    from cli.reading import choose_archive
    from cli.wiring import own_archive

    chosen = choose_archive(repository, wanted)
    return own_archive(repository, signer, chosen.system_identifier)
