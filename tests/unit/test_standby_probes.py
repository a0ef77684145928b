"""What doctor says of a server that is a standby, by what the configuration means it to be."""

from __future__ import annotations

import pytest

from verifiers.base import Severity
from verifiers.standby_probes import StandbyWish, judge_standby


@pytest.mark.parametrize("session", ["standby", "prefer-standby", "read-only"])
@pytest.mark.parametrize("reads_files", [True, False])
def test_a_standby_that_is_asked_for_is_right_and_no_other_is_advised(
    session: str, reads_files: bool
) -> None:
    found = judge_standby(StandbyWish(session, has_several_hosts=False, reads_files=reads_files))
    assert (found.severity, found.hint) == (Severity.OK, None)
    assert "once it has received it" in found.message


def test_the_leader_of_a_standby_cluster_is_right_and_one_that_is_to_be_promoted_is_waited_for() -> None:
    asked = StandbyWish(None, has_several_hosts=False, reads_files=True, leads_standby_cluster=True)
    assert (judge_standby(asked).severity, judge_standby(asked).hint) == (Severity.OK, None)
    waits = StandbyWish(None, has_several_hosts=True, reads_files=True, leads_standby_cluster=False)
    assert judge_standby(waits).severity is Severity.WARN
    assert "promoted" in judge_standby(waits).message
    assert "target_session_attrs" not in str(judge_standby(waits).hint)


def test_where_nothing_says_that_it_is_meant_the_advice_fits_what_is_read() -> None:
    files = judge_standby(StandbyWish(None, has_several_hosts=False, reads_files=True))
    assert files.severity is Severity.WARN
    # A daemon that reads files must be on the host of the server that it is led to.
    assert 'source = "protocol"' in str(files.hint)
    far = judge_standby(StandbyWish("any", has_several_hosts=False, reads_files=False))
    assert 'source = "protocol"' not in str(far.hint)
    assert "target_session_attrs=read-write" in str(far.hint)
    several = judge_standby(StandbyWish("any", has_several_hosts=True, reads_files=True))
    assert "name" not in str(several.hint)
    for one in (files, far, several):
        assert "target_session_attrs=prefer-standby" in str(one.hint)
