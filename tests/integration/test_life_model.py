"""Random lives of a real cluster, backed up at random, restored to random moments: no table differs."""

from __future__ import annotations

import random
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_increment import SUMMARIES
from fix_life import BACKUPS, HAPPENINGS, TABLESPACE, Life, Moment, Step
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres
from fix_restore import Judge
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from pitr.postgres.server_user import hand_over
from pitr.recovery import RecoveryTarget
from storage.local import DirectoryStore

EXAMPLES_MIN = 2
# As many as --seeds is by itself, in `make test`.
SEEDS_QUICK = 5
ROUNDS_MAX = 4
RESTORES = 2

steps = st.builds(Step, st.sampled_from(HAPPENINGS), st.integers(0, 60), st.integers(1, 40))
backups = st.builds(Step, st.sampled_from(BACKUPS), st.integers(0, 60), st.integers(1, 40))
# Something happens, a backup, something more, a moment.
rounds = st.tuples(st.lists(steps, min_size=1, max_size=8), backups, st.lists(steps, max_size=4))
BEGIN = [Step("create_table", pick, 20) for pick in (0, 1, 4)]


@pytest.fixture(scope="module")
def server(
    module_major: int, module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse
) -> RunningPostgres:
    server = module_postgres_factory(module_major, settings=SUMMARIES, name="life")
    space = server.data_dir.parent / "space"
    space.mkdir()
    hand_over(space, postgres_house.user)
    server.execute(f"CREATE TABLESPACE {TABLESPACE} LOCATION '{space}'")
    return server


def live(life: Life, history: list[tuple[list[Step], Step, list[Step]]]) -> None:
    for step in [*BEGIN, Step("back_up_full", 0, 1)]:
        life.do(step)
    life.mark()
    for before, backup, after in history:
        for step in before:
            life.do(step)
        life.mark()
        life.do(backup)
        for step in after:
            life.do(step)
        life.mark()
    life.server.switch_wal()
    life.archiver.ship()


def restore(life: Life, judge: Judge, choice: random.Random, moment: Moment, target: RecoveryTarget) -> None:
    """Restore from the backup that the planner takes, or from any other; compare every table."""
    earlier = [backup for backup in life.backups if backup.stop_lsn <= moment.at]
    backup = choice.choice([None, *(one.backup for one in earlier)])
    plan = life.restores.plan(target, backup=backup)
    said = f"{target} from {plan.backup.backup} on {[one.backup for one in plan.parents]}"
    life.told.append(said)
    into = Path(tempfile.mkdtemp(prefix="pitr-"))
    into.chmod(0o755)
    try:
        request = life.restores.request(
            plan,
            into / "data",
            life.server,
            keep_running=True,
            tablespace_mapping={TABLESPACE: into / "space"},
        )
        assert judge.tables(life.restores.restore(request), moment.databases) == moment.tables, said
    finally:
        judge.close()
        shutil.rmtree(into)


def test_every_moment_of_a_random_life_can_be_returned_to(
    request: pytest.FixtureRequest, server: RunningPostgres, postgres_house: PostgresHouse, judge: Judge
) -> None:
    first, count = request.config.getoption("first_seed"), request.config.getoption("seeds")
    # Of the long run other lives each day: the same ones find nothing that they did not find at first.
    seed = datetime.now(UTC).toordinal() if first == 1 and count > SEEDS_QUICK else first
    print(f"repeat it with --first-seed {seed}")

    @seeded(seed)
    # No shrinking: each life takes seconds.  Its steps and its restores are told.
    @settings(
        max_examples=max(EXAMPLES_MIN, count * 3 // 5),
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(rounds, min_size=2, max_size=ROUNDS_MAX), st.integers(0, 1 << 30))
    def check(history: list[tuple[list[Step], Step, list[Step]]], chosen: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="pitr-"))
        life = Life(server, DirectoryStore.create(folder / "store"), postgres_house.user, folder)
        try:
            live(life, history)
            choice = random.Random(chosen)
            end = life.moments[-1]
            restore(life, judge, choice, end, RecoveryTarget("latest"))
            for moment in choice.sample(life.moments[:-1], RESTORES):
                target = choice.choice(
                    [RecoveryTarget("lsn", lsn=moment.at), RecoveryTarget("name", name=moment.name)]
                )
                restore(life, judge, choice, moment, target)
        except BaseException:
            # Hypothesis lives it again to tell of it, and the second life may be another one.
            print("\n".join(life.told))
            raise
        finally:
            shutil.rmtree(folder)

    check()
