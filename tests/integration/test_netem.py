"""One region of three is far away, then out of reach: the quorum goes on, and the region ends without a hole.

The delay and the loss are of packets (tc-netem(8)), between namespaces of the test's own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fix_cli import REGION_NAMES, Done, MakeSite, Site, wait_until
from fix_ledger import Commit, Ledger, Row, judge_end, judge_quorum, read_rows
from fix_netem import FarServer
from fix_postgres import table_digests

from pitr.wal.lsn import LSN

pytestmark = [pytest.mark.needs_apt, pytest.mark.timeout(1200)]

# There and back 160 ms, and of a hundred packets each way one is lost: another continent on a bad day.
FAR_AWAY = ("delay", "80ms", "loss", "1%")
ROUND_TRIP_S = 0.16
OUT_OF_REACH = ("loss", "100%")
OUT_OF_REACH_S = 12.0
FAR = REGION_NAMES[-1]
CATCH_UP_S = 300.0
# Some hundred commits a second: enough for pieces without an end, and little to replay from afar.
PAUSE_S = 0.02


def far_region(site: Site) -> dict[str, Any]:
    """Return what the daemon says of the far region."""
    (found,) = [one for one in site("status", "--json").data["regions"] if one["name"] == FAR]
    assert isinstance(found, dict)
    return found


def signed_end(site: Site) -> LSN:
    """Return the end of WAL that the far region alone can show."""
    return LSN.parse(site("wal", "list", "--region", FAR, "--json").data["head"]["wal_end"])


def wait_caught_up(site: Site, wanted: LSN) -> None:
    """Return once the far region lacks nothing, and shows WAL up to ``wanted`` at least."""

    def has_all() -> bool:
        site.daemon.check_alive()
        return far_region(site)["pending_repairs"] == 0 and signed_end(site) >= wanted

    wait_until(has_all, f"{FAR} has WAL up to {wanted}", timeout_s=CATCH_UP_S, every_s=1.0)


def restore_from_afar(site: Site, end: LSN, into: Path) -> Done:
    """Restore from the far region alone, as on a bare machine; it cannot say that nothing came after it."""
    site.started.append(into)
    words: list[object] = ["restore", "--from", site.region_urls[-1], "--identity", site.identity]
    words += ["--to", f"lsn:{end}", "--into", into, "--start", "--yes", "--json"]
    return site.program(*words, timeout_s=CATCH_UP_S)


def check_exact(site: Site, commits: list[Commit], at_quorum: list[Commit]) -> None:
    """Check that the far region alone gives back the cluster as it stands, which rests."""
    assert site("wal", "list", "--region", FAR, "--gaps-only", "--json").data["stretches"] == []
    end = signed_end(site)
    into = site.folder / "from-afar"
    done = restore_from_afar(site, end, into)
    rows: set[Row] = read_rows(done.data["dsn"])
    judge_quorum(rows, at_quorum)
    judge_end(rows, commits, end)
    assert table_digests(done.data["dsn"]) == table_digests(site.server.dsn)
    site.examine(into)


def start(make_site: MakeSite, far_server: FarServer) -> Site:
    """Return a site that streams to two directories and, far away, to the server."""
    site = make_site(far=far_server.s3)
    far_server.link.shape(*FAR_AWAY)
    site.start_daemon()
    return site


def test_a_far_region_does_not_hold_the_quorum_and_alone_restores_all_of_it(
    far_server: FarServer, make_site: MakeSite
) -> None:
    site = start(make_site, far_server)
    with Ledger(site.server.dsn, site.folder, seed=21, pause_s=PAUSE_S) as ledger:
        ledger.wait_at_quorum(300)
        # It keeps up while the load lasts, not only after it.
        wait_caught_up(site, ledger.commits_at_quorum[-1].before)
        assert far_region(site)["put_latency_s"] > ROUND_TRIP_S
        ledger.wait_at_quorum(100)
        ledger.stop()
        commits, at_quorum = ledger.commits, ledger.commits_at_quorum
    wait_caught_up(site, site.wait_durable())
    assert site.daemon.stop() == 0, site.daemon.tail()
    check_exact(site, commits, at_quorum)


def test_a_region_that_was_out_of_reach_catches_up_without_a_hole(
    far_server: FarServer, make_site: MakeSite
) -> None:
    site = start(make_site, far_server)
    with Ledger(site.server.dsn, site.folder, seed=22, pause_s=PAUSE_S) as ledger:
        ledger.wait_at_quorum(100)
        wait_caught_up(site, ledger.commits_at_quorum[-1].before)
        far_server.link.shape(*OUT_OF_REACH)
        until = time.monotonic() + OUT_OF_REACH_S
        while time.monotonic() < until:
            # Each wait has its own limit, far below what a put into nowhere takes to give up.
            ledger.wait_at_quorum(20, timeout_s=20)
        missed = ledger.commits_at_quorum[-1].before
        assert far_region(site)["pending_repairs"] > 0
        far_server.link.shape(*FAR_AWAY)
        wait_caught_up(site, missed)
        ledger.wait_at_quorum(50)
        ledger.stop()
        commits, at_quorum = ledger.commits, ledger.commits_at_quorum
    wait_caught_up(site, site.wait_durable())
    assert site.daemon.stop() == 0, site.daemon.tail()
    check_exact(site, commits, at_quorum)
