"""``pitr status``, asking a control socket that answers with a daemon's own snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_cli import PitrProgram
from fix_snapshot import ERROR, NOW, SNAPSHOT

from cli.config_template import NewConfig, NewRegion, render_config
from cli.control import ControlRequest
from cli.control_server import ControlServer
from cli.snapshot import ProtectionSnapshot, RegionSnapshot, WalDiskSnapshot
from pitr.catalogue.backup_record import PageFinding
from pitr.pipeline.keys import Identity

IDENTITY = Identity(bytes(range(32)))


class Answering:
    """Stands for the daemon; the test says what it knows."""

    snapshot = SNAPSHOT
    failure: Exception | None = None

    def __call__(self, _request: ControlRequest, _progress: Callable[[Mapping[str, Any]], None]) -> Any:
        if self.failure is not None:
            raise self.failure
        return self.snapshot.to_fields()


@pytest.fixture
def pitr(server_tmp_path: Path) -> PitrProgram:
    config = NewConfig(
        cluster="main",
        dsn="host=/nowhere",
        slot="pitr",
        repository="0" * 32,
        root=str(IDENTITY.root_signer().public),
        recipients=(str(IDENTITY.recipient()),),
        quorum=1,
        regions=(NewRegion("eu", "file:///nowhere"),),
        signing_key_file=server_tmp_path / "signing.key",
        state_dir=server_tmp_path,
    )
    (server_tmp_path / "pitr.toml").write_text(render_config(config))
    return PitrProgram(server_tmp_path)


@pytest.fixture
def daemon(server_tmp_path: Path) -> Iterator[Answering]:
    answering = Answering()
    server = ControlServer(server_tmp_path / "control.sock", answering)
    server.start()
    yield answering
    server.stop()


def test_the_last_error_is_told_once(pitr: PitrProgram, daemon: Answering) -> None:
    done = pitr("status")
    assert (done.stdout + done.stderr).count(ERROR) == 1, str(done)
    assert f"warning: {ERROR}" in done.stderr
    assert pitr("status", "--json").object["warnings"] == [ERROR]
    daemon.snapshot = replace(SNAPSHOT, last_error=None)
    assert pitr("status").stderr == ""


def test_bad_pages_of_the_server_are_a_warning(pitr: PitrProgram, daemon: Answering) -> None:
    clean = replace(SNAPSHOT, last_error=None)
    named = PageFinding("app.public.patients", "base/5/16384", "main", 11, "checksum")
    daemon.snapshot = replace(clean, backup=replace(clean.backup, bad_pages=1, bad_pages_named=(named,)))
    done = pitr("status")
    assert "warning: 1 page of the server is bad: app.public.patients main block 11; in which" in done.stderr
    (told,) = pitr("status", "--json").data["backup"]["bad_pages_named"]
    assert (told["relation"], told["fork"], told["block"]) == ("app.public.patients", "main", 11)
    stray = replace(named, relation=None)
    daemon.snapshot = replace(clean, backup=replace(clean.backup, bad_pages=7, bad_pages_named=(stray,)))
    assert "7 pages of the server are bad: base/5/16384 main block 11, …; in which" in pitr("status").stderr


@pytest.mark.parametrize(("rpo_s", "exit_code"), [(59.0, 0), (60.0, 0), (61.0, 5)])
def test_as_a_probe_it_fails_with_5_if_more_would_be_lost_than_allowed(
    pitr: PitrProgram, daemon: Answering, rpo_s: float, exit_code: int
) -> None:
    sick = RegionSnapshot("us", False, rpo_s, 3, 0, "it is away", None, 0, ())
    daemon.snapshot = replace(SNAPSHOT, last_error=None, rpo_s=rpo_s, regions=(*SNAPSHOT.regions, sick))
    done = pitr("status", "--check-rpo", "60s", "--json", exit_code=exit_code)
    assert done.data["rpo_s"] == rpo_s
    if exit_code:
        assert done.error["code"] == "PITR-5001"
        assert "more than 60s" in done.error["message"]
        assert done.error["why"] == "regions that fail: us"


def test_what_commits_are_worth_and_what_their_puts_cost_is_told(
    pitr: PitrProgram, daemon: Answering
) -> None:
    daemon.snapshot = replace(SNAPSHOT, last_error=None)
    assert "puts " not in pitr("status").stdout
    waits = ProtectionSnapshot(True, 0, "durable in the quorum of regions", None, 0, 1.5, 58.3201)
    daemon.snapshot = replace(SNAPSHOT, last_error=None, protection=waits)
    told = pitr("status").stdout
    assert "commits  acknowledged ones are durable in the quorum of regions" in told
    assert "puts     1.50 objects/s: about 58.32 a month in all regions" in told
    fields = pitr("status", "--json").data["protection"]
    assert (fields["puts_per_s"], fields["puts_cost_per_month"]) == (1.5, 58.32)


def test_how_long_the_disk_lasts_is_told(pitr: PitrProgram, daemon: Answering) -> None:
    disk = WalDiskSnapshot(
        "extended", 1 << 30, 3 << 30, 12 << 30, 100 << 30, float(1 << 20), 11_400.0, None, "keep"
    )
    daemon.snapshot = replace(SNAPSHOT, last_error=None, wal_disk=disk)
    done = pitr("status")
    assert "disk     12.0 GiB of 100.0 GiB free where pg_wal is" in done.stdout
    assert "disk full in 3 h 10 min, at 1.0 MiB/s of WAL; the server stops then" in done.stderr
    assert pitr("status", "--json").data["wal_disk"]["full_in_s"] == 11_400.0
    daemon.snapshot = replace(
        SNAPSHOT, wal_disk=replace(disk, full_in_s=None, slot_lost_in_s=120.0, free_bytes=None)
    )
    done = pitr("status")
    assert "disk     " not in done.stdout
    assert "max_slot_wal_keep_size is reached in" in done.stderr


def test_a_loss_of_wal_is_a_warning_until_there_is_a_backup_from_after_it(
    pitr: PitrProgram, daemon: Answering
) -> None:
    lost = replace(SNAPSHOT, last_error=None, events={"wal-lost": 2}, wal_lost_at=NOW)
    text = "WAL was lost 2 times, last at 2026-11-25T12:00:00.000Z: pitr timeline shows the gaps"
    for completed_at, is_warning in ((None, True), (NOW, True), (NOW + timedelta(minutes=1), False)):
        daemon.snapshot = replace(lost, backup=replace(lost.backup, last_completed_at=completed_at))
        done = pitr("status")
        assert (text in done.stderr, text in done.stdout) == (is_warning, not is_warning)


def test_a_daemon_that_does_not_say_how_it_is_breaks_the_threshold(
    pitr: PitrProgram, daemon: Answering
) -> None:
    daemon.failure = ZeroDivisionError("of a library")
    assert "error[PITR-1099]" in pitr("status", exit_code=1).stderr
    asked = pitr("status", "--check-rpo", "60s", exit_code=5)
    assert "the RPO is not kept: a mistake in pitr itself" in asked.stderr
