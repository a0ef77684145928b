"""Kills under load: whatever the server was told to be at quorum is in what is restored, and nothing else.

Per seed: clients commit; daemon, server or both are ended by SIGKILL at random moments and started
again; at last both are ended, and a bare machine restores from the regions and the identity.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fix_cli import MakeSite, Site
from fix_ledger import (
    Commit,
    CommittedRow,
    Ledger,
    Row,
    judge_end,
    judge_instant,
    judge_quorum,
    read_rows,
    read_truth,
)

from pitr.wal.lsn import LSN

CLIENTS = 4
KILLS = 2
COMMITS_BETWEEN = 10
# Longer than a piece waits, so that a kill meets every state of one.
PAUSE_S_MAX = 1.2
SLOW_SEEDS = range(1001, 1101)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored: its rows, where replay ended, and the first commit that was left out."""

    rows: set[Row]
    replay_end: LSN
    next_commit: LSN | None
    next_at: datetime | None


def restore_rows(site: Site, target: str, into: Path, *more: object) -> Restored:
    """Restore as on a bare machine, read the ledger, and let PostgreSQL judge the cluster."""
    done = site.restore(target, into, "--start", *more)
    rows = read_rows(done.data["dsn"])
    site.examine(into)
    following = done.data["plan"]["stop"]["next_commit"]
    return Restored(
        rows,
        LSN.parse(done.data["replay_end"]),
        None if following is None else LSN.parse(following["lsn"]),
        None if following is None else datetime.fromisoformat(following["at"]),
    )


def kill_and_restart(site: Site, victim: str, chance: random.Random) -> None:
    """End the daemon, the server or both, at once or one shortly after the other, and start them again."""
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


def run_seed(site: Site, seed: int) -> None:
    chance = random.Random(seed)
    print(f"seed {seed}")
    site.start_daemon()
    with Ledger(site.server.dsn, site.folder, seed=seed, clients=CLIENTS) as ledger:
        ledger.wait_at_quorum(COMMITS_BETWEEN)
        for victim in chance.choices(("daemon", "server", "both"), k=KILLS):
            time.sleep(chance.uniform(0.0, PAUSE_S_MAX))
            print(f"kill {victim}")
            kill_and_restart(site, victim, chance)
            ledger.wait_at_quorum(COMMITS_BETWEEN)
        time.sleep(chance.uniform(0.0, PAUSE_S_MAX))
        for kill in chance.sample((site.daemon.kill, site.server.kill), 2):
            kill()
        ledger.stop()
        commits, at_quorum = ledger.commits, ledger.commits_at_quorum
    print(f"{len(commits)} commits, {len(at_quorum)} at quorum up to {ledger.quorum_lsn}")

    latest = restore_rows(site, "latest", site.folder / "latest")
    judge_quorum(latest.rows, at_quorum)
    judge_end(latest.rows, commits, latest.replay_end)

    site.start_server()
    truth = read_truth(site.server.dsn)
    assert latest.rows <= truth.keys(), "rows were restored that were never committed"
    at, is_inclusive = choose_instant(truth, at_quorum, chance)
    print(f"to {at.isoformat()}, {'inclusive' if is_inclusive else 'exclusive'}")
    moment = restore_rows(
        site, at.isoformat(), site.folder / "moment", *([] if is_inclusive else ["--exclusive"])
    )
    last = at if is_inclusive else at - timedelta(microseconds=1)
    assert moment.next_at is None or moment.next_at > last
    judge_instant(moment.rows, truth, commits, last, moment.next_commit, clients=CLIENTS)
    site.server.stop()


@pytest.mark.few_seeds(3)
def test_every_commit_at_quorum_survives_kills(make_site: MakeSite, seed: int) -> None:
    run_seed(make_site(18 if seed % 2 == 0 else 17), seed)


@pytest.mark.slow
@pytest.mark.parametrize("many", SLOW_SEEDS)
def test_every_commit_at_quorum_survives_many_kills(make_site: MakeSite, many: int) -> None:
    run_seed(make_site(18 if many % 2 == 0 else 17), many)


def run_synchronous(site: Site, seed: int) -> None:
    """Kill and take away, with commits that wait for the regions: not one that returned may be missing."""
    chance = random.Random(f"synchronous {seed}")
    print(f"seed {seed}")
    site.start_daemon()
    site.server.execute("ALTER SYSTEM SET synchronous_standby_names = 'pitr'")
    site.server.execute("SELECT pg_reload_conf()")
    lost = chance.choice(site.regions)
    with Ledger(site.server.dsn, site.folder, seed=seed, clients=CLIENTS) as ledger:
        ledger.wait_commits(COMMITS_BETWEEN)
        for victim in chance.choices(("daemon", "server", "both", "region"), k=KILLS):
            time.sleep(chance.uniform(0.0, PAUSE_S_MAX))
            print(f"kill {victim}")
            if victim == "region" and lost.path.exists():
                lost.take_away()
            elif victim != "region":
                kill_and_restart(site, victim, chance)
            ledger.wait_commits(COMMITS_BETWEEN)
        time.sleep(chance.uniform(0.0, PAUSE_S_MAX))
        for kill in chance.sample((site.daemon.kill, site.server.kill), 2):
            kill()
        ledger.stop()
        # Of what was found after a crash nobody had been told that it was safe.
        acknowledged = [commit for commit in ledger.commits if commit.after is not None]
    print(f"{len(acknowledged)} commits were acknowledged")
    if not lost.path.exists():
        lost.give_back()
    latest = restore_rows(site, "latest", site.folder / "latest")
    missing = [commit.row for commit in acknowledged if commit.row not in latest.rows]
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged commits are gone: {missing[:5]}"
    judge_end(latest.rows, ledger.commits, latest.replay_end)


@pytest.mark.few_seeds(2)
def test_synchronous_mode_loses_no_acknowledged_commit(make_site: MakeSite, seed: int) -> None:
    run_synchronous(make_site(18 if seed % 2 == 0 else 17), seed)


@pytest.mark.slow
@pytest.mark.parametrize("many", SLOW_SEEDS)
def test_synchronous_mode_loses_no_acknowledged_commit_in_many_runs(make_site: MakeSite, many: int) -> None:
    run_synchronous(make_site(18 if many % 2 == 0 else 17), many)
