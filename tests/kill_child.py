"""One backup, restore, or command of ``pitr``, in a process that kills itself at the Nth step of its own.

Arguments: the verb, the step (0: none), and the verb's fields as JSON.  At its end it says how many steps it
passed.  What only the parent can do (ship WAL) it asks for on its output, and reads the answer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

    from fix_kill import KillCount

    from pitr.wal.lsn import LSN
    from pitr.wal.timeline import TimelineId
    from storage.replicated import ReplicatedStore

_ASKING = threading.Lock()


def ask(words: str) -> str:
    with _ASKING:
        print(f"ask {words}", flush=True)
        return sys.stdin.readline().strip()


@contextmanager
def regions_of(fields: dict[str, Any], count: KillCount) -> Iterator[ReplicatedStore]:
    """Open the regions for putting; every call of each is a step."""
    from fix_kill import FatalStore

    from storage.local import DirectoryStore
    from storage.regions import Region
    from storage.repair import RepairQueue
    from storage.replicated import ReplicatedStore

    regions = [
        Region(Path(path).name, FatalStore(DirectoryStore(Path(path)), count)) for path in fields["regions"]
    ]
    queue = RepairQueue(Path(fields["queue"]))
    # One thread for each region, and so nearly one order of steps.
    store = ReplicatedStore(regions, quorum=2, queue=queue, workers_per_region=1)
    try:
        yield store
    finally:
        store.close()
        queue.close()


def back_up(fields: dict[str, Any], count: KillCount) -> None:
    from pitr.backup import take_backup
    from pitr.backup_parent import ParentBackup, read_note
    from pitr.backup_remote import RemoteRequest, take_remote_backup
    from pitr.backup_request import BackupRequest, BackupWriter
    from pitr.catalogue.lease_record import Holder
    from pitr.layout import ArchiveId
    from pitr.lease_terms import LeaseTerms
    from pitr.pipeline.keys import Recipient
    from pitr.pipeline.sign import Signer, Verifier
    from pitr.repository import Repository

    def wait_for_wal(timeline: TimelineId, start: LSN, end: LSN, _timeout_s: float) -> bool:
        count.met(f"before the wait for WAL up to {end}")
        is_there = ask(f"wal {timeline.number} {start} {end}") == "yes"
        count.met(f"after the wait for WAL up to {end}")
        return is_there

    notes = Path(fields["notes"])
    with regions_of(fields, count) as store:
        repository = Repository.open(store, Verifier.parse(fields["root"]))
        archive = ArchiveId.parse(fields["archive"])
        based_on = None
        if fields["parent"] is not None:
            based_on = repository.get_manifest(archive, fields["parent"]).manifest
        holder, lease = Holder.parse(fields["holder"]), LeaseTerms(*fields["lease"])
        writer = BackupWriter(
            repository, Signer.parse(fields["signer"]), [Recipient.parse(fields["recipient"])]
        )
        take: Callable[..., object]
        if fields["is_protocol"]:
            take = partial(
                take_remote_backup,
                RemoteRequest(fields["dsn"], archive, "to be killed", notes, based_on, holder, lease=lease),
            )
        else:
            parent = None
            if based_on is not None:
                note = read_note(notes, fields["parent"])
                assert note is not None
                parent = ParentBackup(based_on, note)
            take = partial(
                take_backup,
                BackupRequest(
                    fields["dsn"],
                    archive,
                    "to be killed",
                    parent=parent,
                    notes_dir=notes,
                    holder=holder,
                    lease=lease,
                ),
            )
        count.watch_files(notes, *(Path(path) for path in fields["watched"]))
        count.is_armed = True
        take(
            writer,
            wait_for_wal,
            clock=lambda: datetime.now(UTC),
            random=os.urandom,
            progress=lambda progress: count.met(f"progress {progress.phase}"),
        )
        count.met("the end of the backup")


def restore_cluster(fields: dict[str, Any], count: KillCount) -> None:
    from fix_kill import FatalStore
    from fix_restore import RestoreReader

    from pitr.pipeline.keys import Identity
    from pitr.postgres.installation import find_pg
    from pitr.postgres.server_user import readable_installation, server_user
    from pitr.recovery import RecoveryTarget
    from pitr.restore import restore
    from pitr.restore_request import RestoreRequest
    from storage.local import DirectoryStore

    store = FatalStore(DirectoryStore(Path(fields["region"])), count)
    house = RestoreReader(store, Identity.parse(fields["identity"]))
    user = server_user(must_run=[sys.executable, "--version"])
    found = find_pg(fields["major"], preferred=Path(fields["bin_dir"]))
    target = Path(fields["target"])
    request = RestoreRequest(
        plan=house.plan(RecoveryTarget("latest"), backup=fields["backup"]),
        target=target,
        action="promote",
        installation=readable_installation(found, user, lambda: Path(tempfile.gettempdir())),
        fetch_command=(),
        tablespace_mapping={name: Path(place) for name, place in fields["tablespaces"].items()},
        user=user,
        server_settings={"fsync": "off"},
        is_delta=fields["is_delta"],
    )
    repository, data_keys = house.repository, house.data_keys
    count.watch_files(target.parent)
    count.is_armed = True
    restore(request, repository, data_keys)


def run_pitr(fields: dict[str, Any], count: KillCount) -> None:
    """Run ``pitr`` itself; the changes below the watched folders are its steps."""
    from cli.main import main as pitr

    count.watch_files(*(Path(path) for path in fields["watched"]))
    count.is_armed = True
    sys.argv = ["pitr", *fields["words"]]
    # Its exit would leave no time to say how many steps there were.
    try:
        pitr()
    except SystemExit as end:
        if end.code:
            raise


def replay_events(fields: dict[str, Any], count: KillCount) -> None:
    """Replay; the calls of, and returns from, the functions that are named are its steps."""
    from fix_replay import all_committed, plan_of, shop, shop_handlers

    from pitr.events.replay import Ports, Replay, ReplayRequest
    from pitr.events.sink_sql import SqlSink
    from pitr.postgres.applied_events import ReplaySession

    broker = shop(fields["seed"])
    request = ReplayRequest(
        plan_of(broker, system_identifier=1), shop_handlers(), batch_records=fields["batch"]
    )
    ports = Ports(broker, all_committed, lambda: 0.0, lambda _seconds: None)
    functions = set(fields["functions"])
    modules = ("applied_events.py", "held_events.py", "replay.py", "replay_apply.py", "sink_sql.py")

    def look(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event in ("call", "return") and code.co_name in functions and code.co_filename.endswith(modules):
            count.met(f"{event} {code.co_name}")

    with ReplaySession(fields["dsn"]) as session:
        count.is_armed = True
        # Python's own profiler tells of them, so no code of ours knows of it.
        sys.setprofile(look)
        Replay(request, ports, session, SqlSink(session)).run()
        sys.setprofile(None)


VERBS = {"replay": replay_events, "backup": back_up, "restore": restore_cluster, "pitr": run_pitr}


def main() -> None:
    here = Path(__file__).parent
    sys.path[:0] = [str(here.parent), str(here)]
    from fix_kill import KillCount

    verb, kill_at, text = sys.argv[1:]
    fields = json.loads(text)
    count = KillCount(
        int(kill_at), fields.get("kill_on", ""), fields.get("bulk", ""), fields.get("bulk_every", 1)
    )
    VERBS[verb](fields, count)
    count.is_armed = False
    print(f"steps {count.steps}", flush=True)


if __name__ == "__main__":
    main()
