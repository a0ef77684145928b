"""The replay certificate, and the options of ``pitr restore --replay`` that do not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.main import run_cli
from pitr.events.flows import EventFormat, Flow
from pitr.events.history import FIRST_LSN, Branch
from pitr.events.partition import TopicPartition
from pitr.events.phantoms import PhantomList
from pitr.events.plan import PartitionPlan, ReplayPlan, RestoredPoint, Tally, TopicPlan
from pitr.events.reconcile import Replayed, reconcile
from pitr.events.replay_certificate import FORMAT, ReplayCertificate, ReplayState, certificate_fields
from pitr.events.starts import StartReason
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


def _plan() -> ReplayPlan:
    partitions = tuple(
        PartitionPlan(n, 50, 70, StartReason.FENCE, False, 3, None, Tally(10, 4, 6)) for n in (0, 1)
    )
    return ReplayPlan(
        "cluster",
        RestoredPoint(7, TimelineId(1), LSN(1000), 700),
        (Branch(TimelineId(1), FIRST_LSN, 0),),
        (),
        (),
        (TopicPlan("orders", "id", Flow.DB_FIRST, EventFormat.HEADERS, False, partitions),),
        (),
        PhantomList(6, ()),
        PhantomList(0, ()),
    )


def test_a_certificate_says_what_was_reached_at_each_step() -> None:
    begun = ReplayCertificate("latest", "/data", ReplayState.RESTORING, accepted_gaps=("orders[1]",))
    said = json.loads(json.dumps(certificate_fields(begun)))
    assert (said["format"], said["state"], said["target"]) == (FORMAT, "restoring", "latest")
    assert (said["plan"], said["restored"], said["partitions"]) == (None, None, [])
    plan = _plan()
    counts = {"read": 10, "in database": 4, "applied": 3, "duplicate": 1, "held": 2}
    rows = reconcile(plan, {TopicPartition("orders", n): Replayed(70, counts) for n in (0, 1)})
    done = ReplayCertificate(
        "latest", "/data", ReplayState.PLANNED, plan=plan, plan_file="/plan", replay_id="r", rows=rows
    ).at(ReplayState.RECONCILED)
    said = json.loads(json.dumps(certificate_fields(done)))
    assert (said["state"], said["plan"]) == ("reconciled", {"file": "/plan", "hash": plan.hash})
    assert said["restored"]["end_lsn"] == "0/3E8"
    assert said["totals"] == {
        "in_database": 8, "applied": 6, "duplicates": 2, "held": 4, "passed_over": 0, "missing": 0
    }  # fmt: skip
    assert [one["result"] for one in said["partitions"]] == ["held back: 2 events are in quarantine"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replay"], "--replay goes with --start only"),
        (["--start", "--handlers", "h.toml"], "go with --replay only"),
        (["--start", "--accept-gap", "orders[0]"], "go with --replay only"),
        (["--start", "--mirror"], "--mirror goes with --replay only"),
    ],
)
def test_options_of_a_replay_go_with_it_only(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["restore", "--to", "latest", "--into", str(tmp_path / "d"), "--identity", "i.toml"]
    assert run_cli([*base, "--from", "file:///nowhere", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
