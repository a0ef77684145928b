"""A restore that is killed at any point: the same call again ends as if nothing had been."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, PostgresHouse, server_settings
from fix_restore import HISTORY_SETTINGS, History, Judge, make_history

from pitr.errors import RestoreRefused
from pitr.prefetch import Prefetcher
from pitr.recover import Arrival, ArrivedElsewhere, Recovery
from pitr.recovery import RecoveryTarget
from pitr.recovery_certificate import Certifier
from pitr.wal.timeline import TimelineId
from storage.local import DirectoryStore

CHILD = Path(__file__).parents[1] / "restore_child.py"


@pytest.fixture(scope="module")
def region(module_major: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("region") / "store"


@pytest.fixture(scope="module")
def history(
    module_major: int, module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse, region: Path
) -> History:
    server = module_postgres_factory(module_major, settings=HISTORY_SETTINGS, name="killed")
    return make_history(server, postgres_house.user, DirectoryStore.create(region))


def run_and_die(history: History, region: Path, target: Path, point: str) -> None:
    """Restore in another process until it kills itself at ``point``."""
    installation = history.server.instance.installation
    words = [str(region), history.restores.identity.text(), str(target)]
    words += [str(installation.major), str(installation.bin_dir), point]
    done = subprocess.run(
        [sys.executable, str(CHILD), *words], capture_output=True, check=False, timeout=120, text=True
    )
    assert done.returncode == -9, f"{point} was never reached: {done.returncode} {done.stderr[-2000:]}"


# In the files; between prepare, fetch, place, verify and recover; in replay; before, in and after promotion.
POINTS = ["file:1", "clock:3", "clock:6", "replay:1", "answered:1", "arrived:1", "arrived:3"]
# Each lies between two of those, and ``test_killed_restore.py`` kills at drawn steps besides.
MORE_POINTS = ["file:3", "clock:5", "clock:8", "arrived:2", "arrived:4"]


@pytest.mark.parametrize(
    "point", [*POINTS, *(pytest.param(point, marks=pytest.mark.slow) for point in MORE_POINTS)]
)
def test_a_killed_restore_is_repeated_with_the_same_outcome(
    history: History, region: Path, server_tmp_path: Path, judge: Judge, point: str
) -> None:
    target = server_tmp_path / "data"
    run_and_die(history, region, target, point)
    house = history.restores
    plan = house.plan(RecoveryTarget("latest"))
    request = house.request(plan, target, history.server, keep_running=True)
    result = house.restore(request)
    assert judge.tables(result) == history.end
    assert plan.stop is not None
    assert result.replay_end == plan.stop.replay_end


def test_an_interrupted_restore_is_not_gone_on_with_to_another_target(
    history: History, region: Path, server_tmp_path: Path, judge: Judge
) -> None:
    target = server_tmp_path / "data"
    run_and_die(history, region, target, "clock:6")
    house = history.restores
    other = house.request(house.plan(RecoveryTarget("immediate")), target, history.server)
    with pytest.raises(RestoreRefused, match="another plan"):
        house.restore(other)
    # What was only staged is nobody's loss: another target begins anew.
    second = server_tmp_path / "second"
    run_and_die(history, region, second, "file:2")
    begun = house.request(house.plan(RecoveryTarget("immediate")), second, history.server, keep_running=True)
    assert judge.tables(house.restore(begun)) == history.base


def test_a_server_that_somebody_started_meanwhile_is_left_alone(
    history: History, region: Path, server_tmp_path: Path, judge: Judge
) -> None:
    target = server_tmp_path / "data"
    run_and_die(history, region, target, "arrived:2")
    # The promoted server of the killed restore ends, and its owner starts the cluster.
    judge.instance(history, target).stop("immediate")
    foreign = judge.start(history, target)
    house = history.restores
    request = house.request(house.plan(RecoveryTarget("latest")), target, history.server)
    with pytest.raises(RestoreRefused, match="not the restore's"):
        house.restore(request)
    assert foreign.is_running


def test_a_cluster_that_was_promoted_elsewhere_than_planned_is_refused(
    history: History, region: Path, server_tmp_path: Path, judge: Judge
) -> None:
    target = server_tmp_path / "data"
    run_and_die(history, region, target, "arrived:2")
    instance = judge.instance(history, target)
    instance.stop("immediate")
    house = history.restores
    plan = house.plan(RecoveryTarget("latest"))
    stop = plan.stop
    assert stop is not None
    plan_file = target.with_name("data.pitr") / "wal-plan.json"
    settings = server_settings(instance.installation)
    # The server promotes by itself where hot standby comes too late: then the history file is the witness.
    for end, is_right in ((stop.replay_end, True), (stop.replay_end + 8, False)):
        with Prefetcher(plan_file, lambda _key: b"", data_dir=target, user=house.user) as feeder:
            recovery = Recovery(
                instance,
                feeder,
                Arrival(end),
                superuser="postgres",
                certifier=Certifier(
                    server_tmp_path / "said.json", plan, stop, feeder.path, feeder.notes, is_resumed=True
                ),
                on_progress=lambda _progress: None,
                cancel=threading.Event(),
            )
            if is_right:
                assert not recovery.run(settings, "promote", TimelineId(1)).has_paused
            else:
                with pytest.raises(ArrivedElsewhere, match="promoted elsewhere"):
                    recovery.run(settings, "promote", TimelineId(1))
        instance.stop("immediate")
