"""A site of which a seed breaks parts at random moments: processes, regions and the networks between."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from fix_cli import MakeSite, Region, Site
from fix_cut import CutKind, CutNetwork
from fix_s3 import S3Server

PROCESSES = ("daemon", "server", "both")
FAULTS = (*PROCESSES, "s3", "region", "cut region", "cut server")
# Shorter than a commit is waited for; longer than a put, a piece's age and a try to connect.
_OUTAGE_S_MAX = 4.0


@dataclass(slots=True)
class BreakableSite:
    """Two regions that are directories and one that is an S3 server behind a network; so is the server.

    The ledger's clients do not go through a network: what they are told is the truth.
    """

    site: Site
    s3: S3Server
    to_region: CutNetwork
    to_server: CutNetwork
    lost: Region | None = None

    def break_part(self, fault: str, chance: random.Random) -> None:
        """Break something and mend it; a region that is taken away stays away."""
        if fault in PROCESSES:
            self._kill_and_restart(fault, chance)
        elif fault == "s3":
            self.s3.kill()
            time.sleep(chance.uniform(0.0, _OUTAGE_S_MAX))
            self.s3.start()
        elif fault == "region":
            self._take_region(chance)
        else:
            network = self.to_region if fault == "cut region" else self.to_server
            kind = chance.choice(list(CutKind))
            print(f"  {kind}")
            network.cut(kind)
            time.sleep(chance.uniform(0.0, _OUTAGE_S_MAX))
            network.mend()

    def some_urls(self, chance: random.Random) -> tuple[str, ...]:
        """Return the regions to restore from: as few of those that are there as a reader needs."""
        away = None if self.lost is None else self.lost.url
        urls = [url for url in self.site.region_urls if url != away]
        return tuple(chance.sample(urls, 2))

    def _take_region(self, chance: random.Random) -> None:
        if self.lost is None:
            self.lost = chance.choice(self.site.regions[:2])
            self.lost.take_away()

    def _kill_and_restart(self, victim: str, chance: random.Random) -> None:
        """End one or both, at once or one shortly after the other, and start them again."""
        site = self.site
        victims = [site.daemon.kill] if victim != "server" else []
        if victim != "daemon":
            victims.append(site.server.kill)
        chance.shuffle(victims)
        for kill in victims:
            kill()
            time.sleep(chance.choice((0.0, 0.05, 0.3)))
        starts = [site.start_server] if victim != "daemon" else []
        if victim != "server":
            starts.append(site.daemon.start)
        chance.shuffle(starts)
        for start in starts:
            start()


MakeBreakable = Callable[[int], BreakableSite]


@pytest.fixture
def make_breakable(make_site: MakeSite, own_s3_server: S3Server) -> Iterator[MakeBreakable]:
    """Return a callable that makes such a site on a major version; its daemon is not started."""
    with ExitStack() as networks:

        def make(major: int) -> BreakableSite:
            to_region = networks.enter_context(CutNetwork(own_s3_server.port))
            site = make_site(major, far=replace(own_s3_server, port=to_region.port))
            to_server = networks.enter_context(CutNetwork(site.server.port))
            through = site.server.tcp_dsn.replace(f"port={site.server.port}", f"port={to_server.port}")
            site.set_option(f'dsn = "{site.server.dsn}"', f'dsn = "{through}"')
            return BreakableSite(site, own_s3_server, to_region, to_server)

        yield make
