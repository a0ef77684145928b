"""A verification that is killed at any step: the log shows it, and the next run clears it away."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_kill import Fate, run_child
from fix_verify_site import audit, left_in_scratch, log_of, reports_dir, verified_site, verify

# What is restored and wiped is some thousand files, and of what is staged on its way in nobody reads any.
BULK, BULK_EVERY = r"/staging/|/scratch/[^/]+/(data|programs|tablespace)", 60
WHOLE_EVERY = 10


@dataclass
class Killable:
    """A site without its daemon, whose archive no longer changes."""

    site: Site
    steps: int = 0
    runs: set[str] = field(default_factory=set)

    def run(self, kill_at: int, kill_on: str = "") -> Fate:
        site = self.site
        watched = [site.folder / "scratch", site.state_dir / "verify", reports_dir(site)]
        fields: dict[str, object] = {
            "words": ["-c", str(site.config), "verify", "--latest", "--reports", str(reports_dir(site))],
            "watched": [*map(str, watched), *(str(region.path) for region in site.regions)],
            "kill_on": kill_on,
            "bulk": BULK,
            "bulk_every": BULK_EVERY,
        }
        return run_child("pitr", fields, kill_at, cwd=site.program.folder, env=site.program.env())


@pytest.fixture(scope="module")
def killable(module_make_site: MakeSite) -> Killable:
    site = verified_site(module_make_site(17), 'every = "never"\n')
    assert site.daemon.stop() == 0, site.daemon.tail()
    found = Killable(site)
    found.steps = found.run(0).steps
    found.runs = intended(log_of(site))
    assert (len(found.runs), left_in_scratch(site)) == (1, [])
    return found


def intended(log: list[dict[str, Any]]) -> set[str]:
    return {one["run_id"] for one in log if one["kind"] == "verification-intended"}


def postmasters(site: Site) -> list[int]:
    """Return the servers that run on something in the scratch folder."""
    files = (site.folder / "scratch").glob("0*/data/postmaster.pid")
    return [int(file.read_text().split("\n", 1)[0]) for file in files]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def kill_and_look(killable: Killable, kill_at: int, kill_on: str = "", *, is_whole: bool) -> Fate:
    """Kill a run; what it had begun was announced; the next one leaves nothing of it and says how it ended.

    The next one is ``is_whole``, or one that comes to nothing by itself, which is quicker.
    """
    site = killable.site
    fate = killable.run(kill_at, kill_on)
    print(fate)
    left, servers = left_in_scratch(site), postmasters(site)
    put = {key for one in site.regions for key in one.objects("reports/") if key.endswith("/report")}
    begun = {run for run in left if any((site.folder / "scratch" / run).glob("data*"))}
    site("report", "export", reports_dir(site))
    before = log_of(site)
    intents = intended(before)
    ended = {one["run_id"]: one["facts"] for one in before if one["kind"] == "verification-ended"}
    told = [facts for facts in ended.values() if facts["report_id"] is not None]
    assert begun <= intents, "something was restored that no log announced"
    mine = intents - killable.runs
    assert len(mine) <= 1
    if is_whole:
        assert verify(site, "--latest", "--reports", reports_dir(site)).data["verdict"] == "PASSED"
    else:
        verify(site, "--at", "2020-01-01T00:00:00Z", exit_code=4)
        site("report", "export", reports_dir(site))
    assert left_in_scratch(site) == []
    for pid in servers:
        wait_until(lambda pid=pid: not is_running(pid), "the killed run's server has ended")  # type: ignore[misc]
    after = log_of(site)
    assert after[: len(before)] == before
    for run in mine:
        ends = [one for one in after if (one["kind"], one["run_id"]) == ("verification-ended", run)]
        assert len(ends) == 1, ends
        # A report that was put is not taken back, and what came to none says why.
        is_reported = run in ended or len(put) > len(told)
        assert ends[0]["facts"]["outcome"] == ("PASSED" if is_reported else "ABANDONED")
        assert is_reported or "the run was killed" in ends[0]["facts"]["reason"]
    killable.runs = intended(after)
    errors = [one for one in audit(site)[1] if one["severity"] == "error"]
    assert errors == []
    return fate


@pytest.mark.few_seeds(2)
def test_a_verification_killed_at_some_step_is_seen_and_cleared_away(killable: Killable, seed: int) -> None:
    kill_at = random.Random(f"verify {seed}").randint(1, killable.steps)
    print(f"step {kill_at} of {killable.steps}")
    assert (
        kill_and_look(killable, kill_at, is_whole=seed % 2 == 1).was_killed or kill_at > killable.steps - 10
    )


# Before the intent is anywhere; when it is in one region; while the server runs; in the wiping; when its
# report is in one region; before the log says so; in the export.
MEANT = [
    "/pitr-verify.json",
    r"os.link .*/regions/us/objects/log/[^/]*/checkpoint",
    r"start .*/pg_dumpall ",
    r"os.rmdir .*/scratch/[^/]*/data",
    r"os.link .*/regions/us/objects/reports/[^ ]*/report$",
    r"os.link .*/regions/us/objects/reports/[^ ]*/html",
    r"/reports/log.jsonl",
]


@pytest.mark.parametrize("kill_on", MEANT, ids=lambda one: re.sub(r"\W+", "-", one).strip("-"))
def test_a_verification_killed_where_it_hurts_is_seen_and_cleared_away(
    killable: Killable, kill_on: str
) -> None:
    assert kill_and_look(killable, 0, kill_on, is_whole=False).was_killed


# Each part with a site of its own.
EACH_STEP = [pytest.param(n + 1, 4, id=f"part{n}") for n in range(4)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("first", "stride"), EACH_STEP)
def test_a_verification_killed_at_each_step_is_seen_and_cleared_away(
    killable: Killable, first: int, stride: int
) -> None:
    kill_at, was_killed = first - stride, True
    while was_killed:
        kill_at += stride
        is_whole = (kill_at // stride) % WHOLE_EVERY == 0
        was_killed = kill_and_look(killable, kill_at, is_whole=is_whole).was_killed
    assert kill_at > 50
