"""A replay that is killed anywhere, again and again, ends in the same state as one run."""

from __future__ import annotations

import random

import pytest
from fix_kill import Fate, run_child
from fix_postgres import PostgresFactory, RunningPostgres
from fix_replay import SHOP, SHOP_BATCH, shop

SEED = 11
# Of about two hundred steps, with each seed of the test others.
KILLS = 5
# Where a transaction begins, is left for its commit, and is over.
BOUNDARY = ["transaction"]
EVERYTHING = [
    "transaction", "attempt", "claim", "stage", "run_handler", "move", "hold", "apply", "settle", "enter",
    "note_handlers", "prepare", "end", "back_to_attempt",
]  # fmt: skip
STATE = {
    "orders": "SELECT id, customer, amount, changes FROM orders ORDER BY 1",
    "logged": "SELECT event_id FROM logged ORDER BY 1",
    "applied": "SELECT topic, event_id FROM pitr.applied ORDER BY 2",
    "held": "SELECT partition, record_offset, reason, stops_key FROM pitr.quarantine ORDER BY 1, 2",
    "cursors": "SELECT partition, next_offset, counts FROM pitr.replay_cursor ORDER BY 1",
    "ended": "SELECT count(*) FROM pitr.replay WHERE ended_at IS NOT NULL",
}
State = dict[str, list[tuple[object, ...]]]


class ShopHouse:
    """One server; each replay has a database of its own."""

    def __init__(self, server: RunningPostgres) -> None:
        self.server = server
        self._count = 0

    def new(self) -> str:
        self._count += 1
        name = f"shop{self._count}"
        self.server.execute(f"CREATE DATABASE {name}")
        self.server.execute(SHOP, dbname=name)
        return name

    def run(self, name: str, functions: list[str], kill_at: int = 0) -> Fate:
        fields = {
            "dsn": f"{self.server.dsn} dbname={name}",
            "seed": SEED,
            "batch": SHOP_BATCH,
            "functions": functions,
        }
        return run_child("replay", dict(fields), kill_at)

    def state(self, name: str) -> State:
        return {what: self.server.execute(query, dbname=name) for what, query in STATE.items()}


@pytest.fixture(scope="module")
def shop_house(module_postgres_factory: PostgresFactory) -> ShopHouse:
    return ShopHouse(module_postgres_factory(17))


@pytest.fixture(scope="module")
def undisturbed(shop_house: ShopHouse) -> State:
    """What one run ends in."""
    name = shop_house.new()
    shop_house.run(name, BOUNDARY)
    found = shop_house.state(name)
    records = sum(len(log) for log in shop(SEED).records.values())
    assert sum(dict(row[2])["read"] for row in found["cursors"]) == records  # type: ignore[call-overload]
    assert {row[2] for row in found["held"]} == {"poison", "unknown version", "behind a held event"}
    assert len(found["logged"]) == len(set(found["logged"])) > 10
    return found


def run_until_done(house: ShopHouse, name: str, functions: list[str], kill_at: int) -> int:
    """Kill each run at the same step of its own until one ends; return how many were killed."""
    for killed in range(25):
        if not house.run(name, functions, kill_at).was_killed:
            return killed
    pytest.fail("it does not get on")


# A transaction makes four steps: called, left for the body, called again, over.  The body of a second one
# is left, right before its commit, at step 7; the first one is over at step 4.
@pytest.mark.parametrize("kill_at", [4, 7], ids=["after-each-commit", "before-each-commit"])
def test_killed_at_every_batch_boundary_it_ends_as_if_it_never_was(
    shop_house: ShopHouse, undisturbed: State, kill_at: int
) -> None:
    name = shop_house.new()
    assert run_until_done(shop_house, name, BOUNDARY, kill_at) >= 6
    assert shop_house.state(name) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_step_it_ends_as_if_it_never_was(
    shop_house: ShopHouse, undisturbed: State, seed: int
) -> None:
    name = shop_house.new()
    total = shop_house.run(name, EVERYTHING).steps
    assert total > 100
    for kill_at in random.Random(seed).sample(range(1, total + 1), KILLS):
        name = shop_house.new()
        assert shop_house.run(name, EVERYTHING, kill_at).was_killed
        # The next one is killed, too, somewhere earlier or later.
        shop_house.run(name, EVERYTHING, random.Random(kill_at).randrange(1, total))
        shop_house.run(name, EVERYTHING)
        assert shop_house.state(name) == undisturbed, kill_at
