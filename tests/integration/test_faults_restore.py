"""Restores that must be refused or must stop: holes, flipped bytes, wrong keys, wrong places, unclear times.

One archive is made by the real daemon; each test damages a copy of its regions.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from fix_cli import COMMAND_TIMEOUT_S, MakeSite, Region, Site, on_small_disk, wait_until
from fix_ports import free_port
from fix_postgres import START_TIMEOUT_S, server_settings, table_digests

from cli.key_files import read_identity, write_secret
from pitr.pipeline.keys import Identity, IdentityFile
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import ServerUser, hand_over
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId

STEPS = 5
SEGMENT_BYTES = 16 << 20
HOLE_AT = 3


@dataclass(frozen=True, slots=True)
class Step:
    """A commit in a WAL segment of its own."""

    number: int
    committed_at: datetime
    end: LSN

    @property
    def segment(self) -> str:
        return str(SegmentName.holding(TimelineId(1), self.end, SEGMENT_BYTES))


@dataclass(frozen=True, slots=True)
class Archive:
    """The site, stopped, with what it has archived."""

    site: Site
    steps: tuple[Step, ...]
    digests: dict[str, str]


@pytest.fixture(scope="module")
def archive(module_make_site: MakeSite) -> Archive:
    """An archive of one backup and a commit in each of five segments after it."""
    # A server that does nothing by itself, so that its files can be compared.
    site = module_make_site(settings={"autovacuum": "off"})
    server = site.server
    server.execute("CREATE TABLE step (number int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())")
    site.start_daemon()
    steps = []
    for number in range(1, STEPS + 1):
        server.execute("INSERT INTO step (number) VALUES (%s)", number)
        (found,) = server.execute(
            "SELECT pg_xact_commit_timestamp(xmin), pg_current_wal_flush_lsn() FROM step WHERE number = %s",
            number,
        )
        assert isinstance(found[0], datetime)
        steps.append(Step(number, found[0], LSN.parse(str(found[1]))))
        server.switch_wal()
    # The last segment is not complete: its end is known from pieces alone.
    server.execute("CREATE TABLE last_word AS SELECT 'said'::text AS word")
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()
    return Archive(site, tuple(steps), table_digests(server.dsn))


@pytest.fixture
def regions(archive: Archive, server_tmp_path: Path) -> tuple[Region, ...]:
    """Copies of the regions, to be damaged."""
    copies = []
    for region in archive.site.regions:
        copy = Region(region.name, server_tmp_path / "regions" / region.name)
        shutil.copytree(region.path, copy.path)
        copies.append(copy)
    return tuple(copies)


def at(step: Step) -> str:
    return step.committed_at.astimezone(UTC).isoformat()


def delete_segment(regions: tuple[Region, ...], name: str) -> None:
    """Delete every copy of a segment's WAL, pieces and whole, everywhere."""
    for region in regions:
        found = region.wal_segment(name)
        assert found, f"{region.name} has nothing of {name}"
        for path in found.values():
            path.unlink()


def flip(path: Path, where: float = 0.5) -> None:
    """Change one bit of a file, at a part of its length."""
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * where), len(content) - 1)] ^= 0x10
    path.chmod(0o600)
    path.write_bytes(content)


def step_numbers(dsn: str) -> list[int]:
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        return [row[0] for row in connection.execute("SELECT number FROM step ORDER BY 1").fetchall()]


# -- holes


def test_a_target_behind_a_hole_is_refused_with_the_moments_around_it(
    archive: Archive, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    hole, behind = archive.steps[HOLE_AT - 1], archive.steps[HOLE_AT]
    delete_segment(regions, hole.segment)
    into = server_tmp_path / "restored"
    for target in (at(behind), f"lsn:{behind.end}", "latest"):
        refused = archive.site.restore(target, into, "--dry-run", regions=regions, exit_code=4)
        assert refused.error["code"] == "PITR-4001"
        start = SegmentName.parse(hole.segment).start_offset(SEGMENT_BYTES)
        assert (
            f"WAL from {LSN(start)} to {LSN(start + SEGMENT_BYTES)} is in no region" in refused.error["why"]
        )
        nearest = re.search(r"before: (\S+) \((lsn:\S+)\)", refused.error["next"])
        assert nearest is not None, str(refused)
    # What is offered is kept: the same command with either form plans.
    for offer in nearest.groups():
        offered = archive.site.restore(offer, into, "--dry-run", regions=regions)
        assert LSN.parse(offered.data["plan"]["stop"]["replay_end"]) <= LSN(start)
    assert list(server_tmp_path.iterdir()) == [server_tmp_path / "regions"]


def test_the_moment_before_a_hole_is_restored_exactly(
    archive: Archive, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    delete_segment(regions, archive.steps[HOLE_AT - 1].segment)
    into = server_tmp_path / "restored"
    end = SegmentName.parse(archive.steps[HOLE_AT - 1].segment).start_offset(SEGMENT_BYTES)
    done = archive.site.restore(LSN(end), into, "--start", regions=regions)
    assert step_numbers(done.data["dsn"]) == list(range(1, HOLE_AT))
    archive.site.examine(into)


@dataclass(frozen=True, slots=True)
class PreparedRestore:
    """Files that were restored with ``--action none``, to be started by hand."""

    instance: Instance

    def start(self) -> None:
        self.instance.start(
            server_settings(self.instance.installation), timeout_s=START_TIMEOUT_S, wait=False
        )


@pytest.fixture
def prepare(
    archive: Archive,
    regions: tuple[Region, ...],
    server_tmp_path: Path,
    server_user_or_none: ServerUser | None,
) -> Iterator[Callable[[str], PreparedRestore]]:
    """Return a callable that restores files for a target, for a server that recovers on its own."""
    prepared: list[PreparedRestore] = []

    def prepare_files(target: str) -> PreparedRestore:
        site, into = archive.site, server_tmp_path / "restored"
        # restore_command runs as the server's user, who needs the regions and the identity then.
        identity = server_tmp_path / "identity.toml"
        shutil.copy(site.identity, identity)
        hand_over(identity, server_user_or_none)
        hand_over(server_tmp_path / "regions", server_user_or_none)
        words: list[object] = ["restore", "--identity", identity, "--to", target, "--into", into]
        for region in regions:
            words += ["--from", region.url]
        site.program(*words, "--action", "none", "--yes", "--json")
        prepared.append(
            PreparedRestore(
                Instance(
                    site.server.instance.installation,
                    into,
                    user=server_user_or_none,
                    socket_dir=server_tmp_path / "s",
                    port=free_port(),
                    log_path=server_tmp_path / "log",
                )
            )
        )
        return prepared[-1]

    yield prepare_files
    for one in prepared:
        one.instance.kill()


def test_a_server_started_by_hand_recovers_to_the_planned_end(
    archive: Archive, prepare: Callable[[str], PreparedRestore]
) -> None:
    prepared = prepare("latest")
    prepared.start()
    prepared.instance.wait_ready(START_TIMEOUT_S)

    def has_paused() -> bool:
        import psycopg

        with psycopg.connect(prepared.instance.dsn, autocommit=True) as connection:
            return connection.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() == ("paused",)

    wait_until(has_paused, "recovery has paused at the target")
    assert table_digests(prepared.instance.dsn) == archive.digests


def test_a_hole_made_after_the_plan_stops_recovery_and_nothing_is_promoted(
    archive: Archive, regions: tuple[Region, ...], prepare: Callable[[str], PreparedRestore]
) -> None:
    prepared = prepare("latest")
    delete_segment(regions, archive.steps[HOLE_AT - 1].segment)
    prepared.start()
    prepared.instance.wait_stopped(START_TIMEOUT_S)
    log = prepared.instance.log_path.read_text()
    # Not merely short of the target: the command itself stopped recovery, at the hole.
    segment = archive.steps[HOLE_AT - 1].segment
    assert f'could not restore file "{segment}" from archive: child process exited with exit code 200' in log
    for word in ("selected new timeline", "archive recovery complete", "recovery stopping"):
        assert word not in log
    assert not list((prepared.instance.data_dir / "pg_wal").glob("*.history"))
    assert (prepared.instance.data_dir / "recovery.signal").exists()


# -- flipped bytes


def spoil(paths: list[Path]) -> None:
    """Flip, cut, swap or rename each of these objects, in turn."""
    for path in paths[len(paths) // 5 * 5 :]:
        flip(path)
    for flipped, cut, one, other, renamed in zip(*(paths[at::5] for at in range(5)), strict=False):
        flip(flipped)
        os.truncate(cut, cut.stat().st_size // 2)
        one.rename(one.with_name("aside"))
        other.rename(one)
        one.with_name("aside").rename(other)
        # Still a good name, of something else.
        renamed.rename(renamed.with_name(renamed.name[:-1] + ("0" if renamed.name[-1] != "0" else "1")))


def test_a_region_of_flipped_cut_swapped_and_renamed_objects_is_passed_over(
    archive: Archive, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    paths = list(regions[0].objects().values())
    assert len(paths) > 20
    spoil(paths)
    into = server_tmp_path / "restored"
    done = archive.site.restore("latest", into, "--start", regions=regions)
    assert table_digests(done.data["dsn"]) == archive.digests
    archive.site.examine(into)


@pytest.mark.parametrize(
    ("kind", "exit_code", "code"),
    [
        ("manifests/", 4, "PITR-4001"),
        ("/index-", 8, "PITR-8003"),
        ("/pack-", 8, "PITR-8003"),
        ("envelopes/", 8, "PITR-8003"),
        ("epochs/", 8, "PITR-8003"),
    ],
)
def test_a_flipped_byte_in_every_region_stops_a_restore_before_it_writes(
    archive: Archive,
    regions: tuple[Region, ...],
    server_tmp_path: Path,
    kind: str,
    exit_code: int,
    code: str,
) -> None:
    for region in regions:
        found = [path for key, path in region.objects().items() if kind in key]
        assert found
        for path in found:
            flip(path)
    into = server_tmp_path / "restored"
    refused = archive.site.restore("latest", into, regions=regions, exit_code=exit_code)
    assert refused.error["code"] == code
    assert not into.exists()


def test_a_flipped_header_of_wal_in_every_region_is_a_hole(
    archive: Archive, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    for region in regions:
        for path in region.wal_segment(archive.steps[HOLE_AT - 1].segment).values():
            flip(path, 0.02)
    into = server_tmp_path / "restored"
    refused = archive.site.restore("latest", into, regions=regions, exit_code=4)
    assert refused.error["code"] == "PITR-4001"
    assert any("cannot be used" in warning for warning in refused.object["warnings"])
    assert not into.exists()


def test_flipped_wal_in_every_region_is_never_replayed_and_a_good_copy_lets_the_restore_go_on(
    archive: Archive, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    segment, good = archive.steps[HOLE_AT - 1].segment, regions[-1]
    kept = {path: path.read_bytes() for path in good.wal_segment(segment).values()}
    for region in regions:
        for path in region.wal_segment(segment).values():
            flip(path, 0.9)
    into = server_tmp_path / "restored"
    stopped = archive.site.restore("latest", into, regions=regions, exit_code=7)
    assert stopped.error["code"] == "PITR-7001"
    assert f'could not restore file "{segment}" from archive' in stopped.error["why"]
    assert (into / "recovery.signal").exists()
    assert not list((into / "pg_wal").glob("*.history"))
    for path, content in kept.items():
        path.write_bytes(content)
    done = archive.site.restore("latest", into, "--start", regions=regions)
    assert table_digests(done.data["dsn"]) == archive.digests
    archive.site.examine(into)


# -- keys


def other_identity(archive: Archive, path: Path, *, is_root_other: bool) -> Path:
    """Write an identity file of somebody else, for this repository."""
    own = read_identity(archive.site.identity)
    identity = Identity.generate(lambda count: bytes([7]) * count)
    root = identity.root_signer().public if is_root_other else own.root
    write_secret(path, IdentityFile(identity, own.repository, root).render())
    return path


@pytest.mark.parametrize("is_root_other", [False, True], ids=["recipient", "root"])
def test_a_wrong_identity_is_refused_and_nothing_is_written(
    archive: Archive, server_tmp_path: Path, is_root_other: bool
) -> None:
    identity = other_identity(archive, server_tmp_path / "other.toml", is_root_other=is_root_other)
    into = server_tmp_path / "restored"
    words: list[object] = [
        "restore",
        "--identity",
        identity,
        "--to",
        "latest",
        "--into",
        into,
        "--yes",
        "--json",
    ]
    for url in archive.site.region_urls:
        words += ["--from", url]
    refused = archive.site.program(*words, exit_code=8)
    assert refused.error["code"] == "PITR-8002"
    assert [path.name for path in server_tmp_path.iterdir()] == ["other.toml"]


# -- places


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_restore_into_a_folder_with_files_is_refused_and_changes_nothing(
    archive: Archive, server_tmp_path: Path
) -> None:
    into = server_tmp_path / "restored"
    (into / "mine").mkdir(parents=True)
    (into / "mine" / "thesis").write_text("do not lose this")
    before = tree(server_tmp_path)
    refused = archive.site.restore("latest", into, exit_code=1)
    assert refused.error["code"] == "PITR-1006"
    assert "is not empty" in refused.error["message"]
    assert archive.site.restore("latest", into, "--dry-run", exit_code=1).error == refused.error
    assert tree(server_tmp_path) == before


def test_a_restore_into_a_running_data_directory_is_refused_and_changes_nothing(archive: Archive) -> None:
    server = archive.site.server
    server.checkpoint()
    # Statistics and WAL are the server's own to write; what it has checked in is not.
    before = {name: stat for name, stat in tree(server.data_dir).items() if name.startswith(("base/", "PG_"))}
    refused = archive.site.restore("latest", server.data_dir, exit_code=1)
    assert refused.error["code"] == "PITR-1006"
    assert "running" in refused.error["message"]
    dry = archive.site.restore("latest", server.data_dir, "--dry-run", exit_code=1)
    assert dry.error == refused.error
    after = tree(server.data_dir)
    assert {name: after[name] for name in before} == before
    assert server.value("SELECT count(*) FROM step") == STEPS
    assert not server.data_dir.with_name(f"{server.data_dir.name}.pitr").exists()


@pytest.mark.parametrize("kind", ["no-folder", "a-file", "in-a-cluster", "foreign-work", "read-only"])
def test_a_dry_run_refuses_a_place_in_the_words_of_the_restore_and_writes_nothing(
    archive: Archive, server_tmp_path: Path, kind: str
) -> None:
    place = server_tmp_path / "place"
    place.mkdir()
    into = place / "restored"
    if kind == "no-folder":
        into = place / "none" / "restored"
    elif kind == "a-file":
        into.write_text("mine")
    elif kind == "in-a-cluster":
        (place / "PG_VERSION").write_text("17")
    elif kind == "foreign-work":
        (place / "restored.pitr").mkdir()
        (place / "restored.pitr" / "notes").write_text("mine")
    elif kind == "read-only":
        into = Path("/proc/restored")
    before = tree(server_tmp_path)
    dry = archive.site.restore("latest", into, "--dry-run", exit_code=1)
    assert dry.error["code"] == "PITR-1006"
    assert dry.data["plan"]["stop"]["replay_end"], "the plan is shown all the same"
    assert archive.site.restore("latest", into, exit_code=1).error == dry.error
    assert tree(server_tmp_path) == before


# Slow: it needs user namespaces, which not every host gives to everybody.
@pytest.mark.slow
def test_a_dry_run_refuses_what_there_is_no_room_for(archive: Archive, server_tmp_path: Path) -> None:
    small = server_tmp_path / "small"
    small.mkdir()
    words = archive.site.restore_words("latest", small / "restored", "--dry-run")
    log = server_tmp_path / "log"
    process = archive.site.program.begin(*words, log=log, prefix=on_small_disk(small, 4 << 20))
    assert process.wait(COMMAND_TIMEOUT_S) == 1
    assert "error[PITR-1006]: there is not enough room for the restore" in log.read_text()


# -- times


@pytest.mark.parametrize(
    ("target", "readings"),
    [
        ("2026-11-20 14:05", ["2026-11-20T14:05:00Z", "Europe/Berlin", "2026-11-20T13:05:00Z"]),
        ("2026-11-20 14:05 IST", ["Asia/Kolkata", "Asia/Jerusalem", "Europe/Dublin"]),
        ("2026-10-25 02:30 Europe/Berlin", ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"]),
        ("2026-03-29 02:30 Europe/Berlin", ["2026-03-29T02:30:00+02:00"]),
        ("01/02/2026", ["is the month first, or the day?"]),
    ],
)
def test_an_unclear_time_is_refused_with_its_readings(
    archive: Archive, server_tmp_path: Path, target: str, readings: list[str]
) -> None:
    into = server_tmp_path / "restored"
    site = archive.site
    site.program.environment = {**site.program.environment, "TZ": "Europe/Berlin"}
    refused = site.restore(target, into, exit_code=4)
    assert refused.error["code"] == "PITR-4001"
    told = " ".join(str(refused.error[part]) for part in ("message", "why", "next"))
    for reading in readings:
        assert reading in told
    assert not into.exists()


def test_the_future_is_refused(archive: Archive, server_tmp_path: Path) -> None:
    at = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    site = archive.site
    site.program.environment = {**site.program.environment, "TZ": "Asia/Kolkata"}
    refused = site.restore(at.isoformat(), server_tmp_path / "restored", exit_code=4)
    # As it was read, in UTC and on the reader's clock: a wrong zone is the usual reason.
    local = at.astimezone(ZoneInfo("Asia/Kolkata")).isoformat(" ")
    assert f"{at:%Y-%m-%dT%H:%M:%SZ} = {local} Asia/Kolkata is in the future" in refused.error["message"]
    assert not (server_tmp_path / "restored").exists()
