"""A site whose daemon takes fences while applications work, and what a restored database holds of theirs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import psycopg
from fix_cli import Site, wait_until
from fix_event_flows import HANDLERS, SCHEMA, Topics
from fix_kafka import KafkaNode

from cli.config_template import without_schedule


@dataclass(frozen=True)
class Effects:
    """What a database holds: how often each event's effect."""

    effect: Counter[str]
    once: frozenset[str]

    @classmethod
    def of(cls, dsn: str) -> Effects:
        with psycopg.connect(dsn, connect_timeout=20) as session:
            effect = Counter(row[0] for row in session.execute("SELECT event_id FROM effect"))
            once = frozenset(row[0] for row in session.execute("SELECT event_id FROM effect_once"))
        return cls(effect, once)


def configure(site: Site, node: KafkaNode, topics: Topics, *, unknown: str = "quarantine") -> None:
    """Add [events], and take out the timetable."""
    (site.config.parent / "handlers.toml").write_text(HANDLERS.format(unknown=unknown))
    events = f'\n[events]\nbootstrap = "{node.bootstrap}"\nfence_every = "1s"\nstore_every = "1s"\n'
    events += '[events.replay]\nhandlers_file = "handlers.toml"\n'
    site.config.write_text(without_schedule(site.config.read_text()) + events + topics.config())


def begin(site: Site) -> None:
    """Start the daemon, and wait for its first fence."""
    site.server.execute(SCHEMA)
    site.daemon.start()

    def is_ready() -> bool:
        site.daemon.check_alive()
        return site.flush_lsn() is not None and fences(site) > 0

    wait_until(is_ready, "it streams and takes fences", timeout_s=240)


def fences(site: Site) -> int:
    if site.server.value("SELECT to_regclass('pitr.fence') IS NULL"):
        return 0
    return int(str(site.server.value("SELECT count(*) FROM pitr.fence")))
