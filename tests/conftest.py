"""What every test shares: the fixture files, how much a random suite runs, and its seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Each tests/fix_*.py holds the fixtures of one outside part (PostgreSQL, an S3 server).
pytest_plugins = sorted(path.stem for path in Path(__file__).parent.glob("fix_*.py"))
# They may import each other in any order.
pytest.register_assert_rewrite(*pytest_plugins)

# No deadlines: the machine is shared, and a slow moment is not a mistake.  A failure prints the line
# that repeats it.
settings.register_profile(
    "default", max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("full", settings.get_profile("default"), max_examples=2000)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pitr")
    group.addoption(
        "--seeds", type=int, default=5, help="how many seeds a test with the argument `seed` runs"
    )
    group.addoption("--first-seed", type=int, default=1, help="the first of these seeds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``seed`` to the tests that ask for it; the seed is part of the test's name, so it is printed.

    Of a test that is marked ``few_seeds`` the seeds after those are slow, may be ``times`` as many, and are
    dealt out to as many workers as it has ``parts`` (see fix_parts.py).
    """
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("first_seed")
        count = metafunc.config.getoption("seeds")
        few = metafunc.definition.get_closest_marker("few_seeds")
        quick = count if few is None else few.args[0]
        more = {} if few is None else few.kwargs
        seeds = [pytest.param(first + n, id=f"seed{first + n}") for n in range(min(quick, count))]
        for n in range(quick, count * more.get("times", 1)):
            part = f"-part{n % more['parts']}" if "parts" in more else ""
            seeds.append(pytest.param(first + n, marks=pytest.mark.slow, id=f"seed{first + n}{part}"))
        metafunc.parametrize("seed", seeds)
