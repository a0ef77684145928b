"""What ``pitr doctor`` asks of Redis: does each site answer as a whole, and is there a fresh snapshot.

It reads where the masters are, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from cli.config_redis import RedisSettings
from cli.redis_site import open_site
from pitr.derived.policy import Policy
from pitr.errors import DerivedRefused, DerivedUnavailable, KeyMissing, NotInitialised
from verifiers.base import Finding, Severity


def examine_redis(sites: tuple[RedisSettings, ...]) -> Iterator[Finding]:
    """Yield the findings of every site."""
    for one in sites:
        yield _examine_site(one)
        yield _examine_timetable(one)


def _examine_site(settings: RedisSettings) -> Finding:
    check, subject = "redis.site", settings.name
    try:
        look = open_site(settings).look()
    except (DerivedUnavailable, DerivedRefused, KeyMissing, NotInitialised) as wrong:
        return Finding(check, Severity.FAIL, subject, wrong.in_one_line, wrong.hint)
    count = len(look.topology.masters)
    if look.problems:
        return Finding(
            check,
            Severity.WARN,
            subject,
            "; ".join(look.problems[:5]),
            "until that is over nothing can be removed or taken as a whole",
        )
    return Finding(check, Severity.OK, subject, f"{count} masters answer, and agree on who owns which slots")


def _examine_timetable(settings: RedisSettings) -> Finding:
    check, subject = "redis.snapshots", settings.name
    restored = [one.prefix for one in settings.namespaces if one.policy is Policy.RESTORE]
    if settings.snapshot_every_s is not None:
        return Finding(check, Severity.OK, subject, "snapshots are taken by the daemon's timetable")
    if not restored:
        return Finding(check, Severity.OK, subject, "nothing is declared that a snapshot would be needed for")
    return Finding(
        check,
        Severity.WARN,
        subject,
        f"{restored[0]!r} is to be restored, and the daemon takes no snapshot",
        f'set snapshot_every in [[redis]] {settings.name}, or run "pitr redis snapshot" from a timer',
    )
