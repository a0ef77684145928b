"""Threads of the daemon that go on after what nobody foresaw."""

from __future__ import annotations

from pathlib import Path

import structlog
from fix_cli import wait_until
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from cli.catalogue_keeper import CatalogueKeeper
from cli.heartbeat_keeper import HeartbeatKeeper
from pitr.repository import Repository
from storage.memory import MemoryStore


class Odd:
    """An address of a server that raises what no address does."""

    def __init__(self) -> None:
        self.asked = 0

    def session(self) -> str:
        self.asked += 1
        raise ZeroDivisionError("of a library")


def test_the_heart_goes_on() -> None:
    logged: list[str] = []

    def log(_logger: object, level: str, event: dict[str, object]) -> str:
        logged.append(f"{level}: {event['event']}: {event['reason']}")
        raise structlog.DropEvent

    address = Odd()
    heart = HeartbeatKeeper(
        address,  # type: ignore[arg-type]  # what is asked of it
        0.01,
        structlog.wrap_logger(None, processors=[log]),
        lambda _kind: None,
        retry_s=0.01,
    )
    heart.start()
    wait_until(lambda: address.asked >= 3, "it is asked again")
    heart.stop()
    told = "error: the heartbeat failed, and is tried again: ZeroDivisionError: of a library"
    assert set(logged) == {told}


def test_the_catalogue_is_made_anew_all_the_same(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    house = RepositoryHouse(store)
    repository = Repository(store, house.repository.repository_id, house.root.public)
    store.fail(ZeroDivisionError("of a library"), times=3)  # type: ignore[arg-type]
    said: list[str] = []
    keeper = CatalogueKeeper(tmp_path / "catalogue.sqlite", repository, said.append, retry_s=0.01)
    keeper.start()
    wait_until(lambda: keeper.is_complete, "it is whole")
    keeper.stop()
    assert "catalogue: it cannot be rebuilt now: of a library" in said
