"""When copying pauses for the server's sake, and when it goes on."""

from __future__ import annotations

from pitr.strain import RECOVERED_S, Look, StandbyPosition, StrainBounds, StrainJudge
from pitr.wal.lsn import LSN

MIB = 1 << 20


def look(at_s: float, end: int = 1, replayed: int | None = None, latency_s: float | None = None) -> Look:
    standbys = () if replayed is None else (StandbyPosition("two", LSN(replayed)),)
    return Look(at_s, LSN(end), standbys, latency_s)


def test_without_bounds_nothing_pauses() -> None:
    judge = StrainJudge(StrainBounds())
    assert not StrainBounds().are_set
    assert judge.judge(look(0, 1 << 40, 1, 60.0)) is None


def test_a_slow_commit_pauses_until_commits_were_quick_for_some_seconds() -> None:
    judge = StrainJudge(StrainBounds(latency_s=0.1))
    assert judge.judge(look(0, latency_s=0.1)) is None
    assert judge.judge(look(1, latency_s=0.25)) == "a commit takes 250 ms"
    assert judge.judge(look(2, latency_s=0.01)) is not None
    assert judge.judge(look(2 + RECOVERED_S - 0.1, latency_s=0.01)) is not None
    # One slow commit begins the wait anew.
    assert judge.judge(look(7, latency_s=0.3)) == "a commit takes 300 ms"
    assert judge.judge(look(8, latency_s=0.01)) is not None
    assert judge.judge(look(8 + RECOVERED_S, latency_s=0.01)) is None


def test_a_standby_that_is_behind_in_bytes_pauses() -> None:
    judge = StrainJudge(StrainBounds(lag_bytes=64 * MIB))
    assert judge.judge(look(0, 65 * MIB, MIB)) is None
    assert judge.judge(look(1, 81 * MIB, MIB)) == "standby two is 80.0 MiB behind"
    # One that has gone is nobody's lag.
    assert judge.judge(look(2, 99 * MIB)) is not None
    assert judge.judge(look(2 + RECOVERED_S, 99 * MIB)) is None


def test_lag_in_seconds_is_since_the_server_had_what_is_not_replayed() -> None:
    judge = StrainJudge(StrainBounds(lag_s=10))
    # An idle server has no lag, however long ago its standby replayed the last of it.
    assert judge.judge(look(0, 100, 100)) is None
    assert judge.judge(look(500, 100, 100)) is None
    assert judge.judge(look(501, 200, 100)) is None
    assert judge.judge(look(511, 900, 199)) is None
    assert judge.judge(look(512, 900, 199)) == "standby two is 11 s behind"
    assert judge.judge(look(513, 900, 200)) is not None
    assert judge.judge(look(514, 900, 900)) is not None
    assert judge.judge(look(520, 900, 900)) is None


def test_lag_is_told_from_when_wal_was_written_though_commits_were_slow_then() -> None:
    judge = StrainJudge(StrainBounds(lag_s=10, latency_s=0.1))
    assert judge.judge(look(0, 100, 100)) is None
    for second in range(1, 31):
        assert judge.judge(look(second, 200, 100, latency_s=0.3)) == "a commit takes 300 ms"
    assert judge.judge(look(31, 200, 100, latency_s=0.01)) == "standby two is 30 s behind"


def test_what_is_not_seen_does_not_pause() -> None:
    judge = StrainJudge(StrainBounds(lag_bytes=1, latency_s=0.1))
    assert judge.judge(Look(0)) is None
