"""Faults under load: whatever the server was told to be at quorum is in what is restored, and nothing else.

Per seed: clients commit; what breaks and when is the seed's choice: daemon, server, both or a region's S3
server end by SIGKILL, a region goes for good, a network is cut.  At last daemon and server are ended, and a
bare machine restores from the identity and two regions of three.

200 runs with the full counts: 100 without and 100 with commits that wait, five times the SEEDS of the
Makefile (20) each.  Of them `make test` runs 3 and 2.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fix_breaking import FAULTS, BreakableSite, MakeBreakable
from fix_cli import Site
from fix_ledger import (
    Commit,
    CommittedRow,
    Ledger,
    Row,
    judge_bound,
    judge_end,
    judge_instant,
    judge_quorum,
    read_rows,
    read_truth,
)

from pitr.wal.lsn import LSN

CLIENTS = 4
BREAKS = 2
COMMITS_BETWEEN = 10
# Longer than a piece waits, so that a fault meets every state of one.
PAUSE_S_MAX = 1.2
# A piece waits a second, then is put; the rest is what a machine with other work takes for that.
BOUND_S = 5.0
# So long it goes on after the last fault: the bound is also met in full.
GOES_ON_S_MAX = 8.0


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored: its rows, where replay ended, and the first commit that was left out."""

    rows: set[Row]
    replay_end: LSN
    next_commit: LSN | None
    next_at: datetime | None


def restore_rows(site: Site, target: str, into: Path, *more: object, regions: Sequence[str]) -> Restored:
    """Restore as on a bare machine, read the ledger, and let PostgreSQL judge the cluster."""
    done = site.restore(target, into, "--start", *more, regions=regions)
    rows = read_rows(done.data["dsn"])
    site.examine(into)
    following = done.data["plan"]["stop"]["next_commit"]
    return Restored(
        rows,
        LSN.parse(done.data["replay_end"]),
        None if following is None else LSN.parse(following["lsn"]),
        None if following is None else datetime.fromisoformat(following["at"]),
    )


def choose_instant(
    truth: dict[Row, CommittedRow], commits: list[Commit], chance: random.Random
) -> tuple[datetime, bool]:
    """Return a moment among these commits and whether it is inclusive: often exactly that of a commit."""
    at = truth[chance.choice(commits).row].committed_at
    kind = chance.choice(("exactly", "just before", "somewhere"))
    if kind == "exactly":
        return at, True
    if kind == "just before":
        return at, False
    return at + timedelta(microseconds=chance.randrange(1, 3000)), True


def end_both(breakable: BreakableSite, chance: random.Random) -> float:
    """Kill the daemon and the server, one after the other; return when that began, as the ledger's clock."""
    began_s = time.monotonic()
    for kill in chance.sample((breakable.site.daemon.kill, breakable.site.server.kill), 2):
        kill()
    return began_s


def run_seed(breakable: BreakableSite, seed: int) -> None:
    """Break things, then lose the host: what was at quorum is restored, and what is older than the bound."""
    chance = random.Random(seed)
    site = breakable.site
    print(f"seed {seed}")
    site.start_daemon()
    with Ledger(site.server.dsn, site.folder, seed=seed, clients=CLIENTS) as ledger:
        ledger.wait_at_quorum(COMMITS_BETWEEN)
        for fault in chance.choices(FAULTS, k=BREAKS):
            time.sleep(chance.uniform(0.0, PAUSE_S_MAX))
            print(f"break {fault}")
            breakable.break_part(fault, chance)
            ledger.wait_at_quorum(COMMITS_BETWEEN)
        ledger.wait_caught_up()
        time.sleep(chance.uniform(0.0, GOES_ON_S_MAX))
        ended_s = end_both(breakable, chance)
        ledger.stop()
        commits, at_quorum = ledger.commits, ledger.commits_at_quorum
    print(f"{len(commits)} commits, {len(at_quorum)} at quorum up to {ledger.quorum_lsn}")

    urls = breakable.some_urls(chance)
    latest = restore_rows(site, "latest", site.folder / "latest", regions=urls)
    judge_quorum(latest.rows, at_quorum)
    judge_bound(latest.rows, commits, ended_s - BOUND_S)
    judge_end(latest.rows, commits, latest.replay_end)

    site.start_server()
    truth = read_truth(site.server.dsn)
    assert latest.rows <= truth.keys(), "rows were restored that were never committed"
    at, is_inclusive = choose_instant(truth, at_quorum, chance)
    print(f"to {at.isoformat()}, {'inclusive' if is_inclusive else 'exclusive'}")
    more = [] if is_inclusive else ["--exclusive"]
    moment = restore_rows(site, at.isoformat(), site.folder / "moment", *more, regions=urls)
    last = at if is_inclusive else at - timedelta(microseconds=1)
    assert moment.next_at is None or moment.next_at > last
    judge_instant(moment.rows, truth, commits, last, moment.next_commit, clients=CLIENTS)
    site.server.stop()


def major_of(request: pytest.FixtureRequest, seed: int) -> int:
    """Return the version that a seed runs on: those of `make test-all` alone have also 16."""
    found = (17, 18) if request.node.get_closest_marker("slow") is None else (16, 17, 18)
    return found[seed % len(found)]


@pytest.mark.few_seeds(3, times=5, parts=6)
def test_every_commit_at_quorum_survives_faults(
    request: pytest.FixtureRequest, make_breakable: MakeBreakable, seed: int
) -> None:
    run_seed(make_breakable(major_of(request, seed)), seed)


def run_synchronous(breakable: BreakableSite, seed: int) -> None:
    """Break things, with commits that wait for the regions: not one that returned may be missing."""
    chance = random.Random(f"synchronous {seed}")
    site = breakable.site
    print(f"seed {seed}")
    site.start_daemon()
    site.server.execute("ALTER SYSTEM SET synchronous_standby_names = 'pitr'")
    site.server.execute("SELECT pg_reload_conf()")
    with Ledger(site.server.dsn, site.folder, seed=seed, clients=CLIENTS) as ledger:
        ledger.wait_commits(COMMITS_BETWEEN)
        for fault in chance.choices(FAULTS, k=BREAKS):
            time.sleep(chance.uniform(0.0, PAUSE_S_MAX))
            print(f"break {fault}")
            breakable.break_part(fault, chance)
            ledger.wait_commits(COMMITS_BETWEEN)
        time.sleep(chance.uniform(0.0, PAUSE_S_MAX))
        end_both(breakable, chance)
        ledger.stop()
        # Of what was found after a crash nobody had been told that it was safe.
        acknowledged = [commit for commit in ledger.commits if commit.after is not None]
    print(f"{len(acknowledged)} commits were acknowledged")
    urls = breakable.some_urls(chance)
    latest = restore_rows(site, "latest", site.folder / "latest", regions=urls)
    missing = [commit.row for commit in acknowledged if commit.row not in latest.rows]
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged commits are gone: {missing[:5]}"
    judge_end(latest.rows, ledger.commits, latest.replay_end)


@pytest.mark.few_seeds(2, times=5, parts=6)
def test_synchronous_mode_loses_no_acknowledged_commit(
    request: pytest.FixtureRequest, make_breakable: MakeBreakable, seed: int
) -> None:
    run_synchronous(make_breakable(major_of(request, seed)), seed)
