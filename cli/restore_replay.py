"""``pitr restore --replay``: what a restore took back is replayed before anybody may use the cluster.

    isolate ─→ restore, paused ─→ plan ─→ promote ─→ replay ─→ reconcile ─→ certificate

The server listens on its private socket alone from its first start on, and stays there: it is opened by its
owner, when the certificate says that all is accounted for.  Each step is durable before the next begins, and
the same command goes on where an earlier one was ended, whatever ended it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.context import App
from cli.errors import ChecksFailed
from cli.events_asking import Choice, of_reader
from cli.events_cluster import mirror_of, open_cluster, open_transactions
from cli.events_plan_view import refuse_gaps, show_plan, unaccepted
from cli.events_replay import read_partition, run_replay, show_result
from cli.events_settings import EventsSettings
from cli.events_sink import LoadedHandlers, check_targets, events_settings_of, load_handlers, read_plan
from cli.mirror_parts import open_pairs
from cli.reading import Source
from pitr.errors import PitrError, RestoreRefused
from pitr.events.mirror_plan import MirrorPlan, build_mirror_plan
from pitr.events.plan_build import PlanRequest, build_plan
from pitr.events.plan_code import encode_plan
from pitr.events.reconcile import Reconciled, Replayed, reconcile, unreconciled
from pitr.events.replay import ReplayRequest
from pitr.events.replay_certificate import FORMAT, ReplayCertificate, ReplayState, certificate_fields
from pitr.events.starts import LOOK_BACK
from pitr.postgres.address import database_of, in_database
from pitr.postgres.applied_events import ReplaySession
from pitr.postgres.instance import Instance
from pitr.restore_instance import reopened
from pitr.restore_journal import WorkDirectory
from pitr.restore_request import PROMOTED_STEPS
from storage.synced_file import replace_synced

if TYPE_CHECKING:
    from cli.restore import Chosen
    from cli.wiring import Reader
    from pitr.events.broker import Broker
    from pitr.events.mirror_names import MirrorNames
    from pitr.events.partition import TopicPartition
    from pitr.events.plan import ReplayPlan
    from pitr.restore_request import RestoreRequest, RestoreResult

CERTIFICATE_SUFFIX = ".replay-certificate.json"
PLAN_SUFFIX = ".events-plan.json"
_CERTIFICATE_BYTES_MAX = 64 << 20
_SHOWN_MAX = 5


@dataclass(slots=True)
class RestoreReplay:
    """One restore with its replay; ``made`` is the certificate as it stands in its file."""

    app: App
    settings: EventsSettings
    database: str
    loaded: LoadedHandlers
    source: Source
    into: Path
    made: ReplayCertificate
    accepted: frozenset[TopicPartition]
    is_mirror: bool
    """Whether the copy in another region is read, and never the cluster beside the database."""
    role: str = ""
    """The restored cluster's superuser; known with the request."""

    @classmethod
    def of(cls, app: App, target: str, into: Path, chosen: Chosen, source: Source) -> RestoreReplay:
        """Check all that can be checked before the first byte.  Raises NotInitialised, ConfigRefused, …"""
        settings = events_settings_of(app)
        loaded = load_handlers(chosen["handlers"], settings)
        with open_cluster(settings, is_mirror=chosen["mirror"]) as cluster:
            check_targets(loaded.handlers, settings.flows, cluster)
        into = into.absolute()
        names = tuple(sorted(set(chosen["accepted"])))
        return cls(
            app,
            settings,
            database_of(app.settings().cluster.dsn),
            loaded,
            source,
            into,
            ReplayCertificate(target, str(into), ReplayState.RESTORING, accepted_gaps=names),
            frozenset(map(read_partition, names)),
            chosen["mirror"],
        )

    # -- what an earlier run has reached

    @property
    def file(self) -> Path:
        """Where the certificate is."""
        return self.into.with_name(f"{self.into.name}{CERTIFICATE_SUFFIX}")

    @property
    def plan_file(self) -> Path:
        return self.into.with_name(f"{self.into.name}{PLAN_SUFFIX}")

    def is_restored(self) -> bool:
        """Tell whether an earlier run of this command restored and promoted the cluster."""
        try:
            with self.file.open("rb") as file:
                said = json.loads(file.read(_CERTIFICATE_BYTES_MAX))
            wanted = (FORMAT, self.made.target, str(self.into))
            is_ours = (said["format"], said["target"], said["into"]) == wanted
        except (OSError, ValueError, KeyError, TypeError):
            return False
        journal = WorkDirectory.of(self.into).read()
        is_done = journal is not None and journal.phase == "done"
        return is_ours and is_done and (self.into / "PG_VERSION").exists()

    # -- the steps

    def joined(self, request: RestoreRequest, reader: Reader) -> RestoreRequest:
        """Return the request that also makes the plan while the server is paused at its target."""
        self.role = request.role

        def at_target(instance: Instance) -> None:
            with _reached("the server is restored and was paused at its target; nothing was promoted"):
                self._plan(instance, reader)

        return replace(request, at_target=at_target)

    def begin(self) -> None:
        """Write down that a restore begins, or goes on: a run that is killed is known by it."""
        if WorkDirectory.of(self.into).read() is None:
            # Of another restore, whose place this was.
            self.plan_file.unlink(missing_ok=True)
        self._write(self.made)

    def finish(self, result: RestoreResult, reader: Reader) -> dict[str, object]:
        """Replay into the cluster that was just promoted.  Raises as ``go_on``."""
        assert result.instance is not None, "it was to be kept running"
        self._note_recovery(result.certificate)
        with _reached("the cluster is promoted, on its private socket; nothing was replayed"):
            plan = self.made.plan or self._planned()
            if plan is None or plan.restored.end != result.replay_end:
                # It was opened by itself: nobody could look before.
                plan = self._plan(result.instance, reader)
        return self._replay(result.instance, plan)

    def go_on(self, request: RestoreRequest, reader: Reader) -> dict[str, object]:
        """Go on with a cluster that an earlier run promoted; return what is told of it, as of a first run.

        Raises RestoreRefused, GapsFound, PlanRefused, ChecksFailed, BrokerUnavailable, ServerRefused.
        """
        self.app.output.note(f"{self.into} was restored by an earlier run; its replay goes on")
        if request.installation is None:
            raise RestoreRefused(
                "PostgreSQL's programs are needed", hint="install the backup's major version"
            )
        self.role = request.role
        self._note_recovery(request.certificate_file)
        instance = reopened(request)
        with _reached("the cluster is promoted, on its private socket; nothing was replayed"):
            plan = self._planned() or self._plan(instance, reader)
        replayed = self._replay(instance, plan)
        self.app.output.line(f"running   {replayed['dsn']}")
        for step in PROMOTED_STEPS:
            self.app.output.line(f"next: {step}")
        return {"replay": replayed, "dsn": replayed["dsn"], "next": list(PROMOTED_STEPS)}

    def _note_recovery(self, certificate: Path | None) -> None:
        if certificate is not None and certificate.exists():
            digest = hashlib.sha256(certificate.read_bytes()).hexdigest()
            self.made = replace(self.made, recovery_file=str(certificate), recovery_sha256=digest)

    def _planned(self) -> ReplayPlan | None:
        """Return the plan that an earlier run made, if any."""
        if not self.plan_file.exists():
            return None
        plan = read_plan(self.plan_file)
        refuse_gaps(unaccepted(plan, self.made.accepted_gaps))
        self.made = replace(self.made, plan=plan, plan_file=str(self.plan_file))
        return plan

    def _plan(self, instance: Instance, reader: Reader) -> ReplayPlan:
        """Make the plan against the restored server, show it, and make it durable."""
        choice = Choice(self.settings.topics, LOOK_BACK)
        output = self.app.output
        over: MirrorPlan | None = None
        with (
            open_cluster(self.settings, is_mirror=self.is_mirror) as cluster,
            of_reader(output, self._dsn(instance), reader, self.source, choice) as found,
        ):
            request = replace(found, wait=open_transactions(output))
            if cluster.names is None:
                plan = build_plan(request, cluster.broker)
            else:
                over = self._over_mirror(cluster.own, cluster.names, request, choice, reader)
                plan = over.plan
        for fault in choice.faults:
            output.warn(fault)
        show_plan(output, plan, over)
        refuse_gaps(unaccepted(plan, self.made.accepted_gaps))
        replace_synced(self.plan_file, encode_plan(plan))
        made = replace(self.made, plan=plan, plan_file=str(self.plan_file), faults=tuple(choice.faults))
        self._write(made.at(ReplayState.PLANNED))
        return plan

    def _over_mirror(
        self, target: Broker, names: MirrorNames, request: PlanRequest, choice: Choice, reader: Reader
    ) -> MirrorPlan:
        mirror = mirror_of(self.settings)
        with open_pairs(self.app, mirror, self.source, choice.faults, reader) as pairs:
            return build_mirror_plan(request, target, names, pairs)

    def _replay(self, instance: Instance, plan: ReplayPlan) -> dict[str, object]:
        limit = self.settings.replay.rate_limit
        request = ReplayRequest(
            plan,
            self.loaded.handlers,
            batch_records=self.settings.replay.batch,
            rate=None if limit is None else float(limit),
            accepted_gaps=self.accepted,
            calls=self.loaded.calls,
        )
        made = replace(
            self.made,
            plan=plan,
            replay_id=request.replay_id,
            handlers_sha256=self.loaded.handlers.sha256,
        )
        self._write(made.at(ReplayState.REPLAYING))
        dsn = self._dsn(instance)
        with _reached(f"the cluster runs on its private socket, and part of the plan is replayed: {dsn}"):
            with open_cluster(self.settings, is_mirror=self.is_mirror) as cluster:
                result = run_replay(self.app, cluster, self.loaded, request, plan.hash, dsn)
            show_result(self.app, request, result)
            rows = reconcile(plan, _replayed(dsn, request.replay_id))
        wrong = unreconciled(rows, self.accepted)
        state = ReplayState.UNRECONCILED if wrong else ReplayState.RECONCILED
        self._write(replace(self.made, rows=rows).at(state))
        fields = {**certificate_fields(self.made), "file": str(self.file), "dsn": dsn}
        self.app.partial_result = {**(self.app.partial_result or {}), "replay": fields}
        self._tell(wrong)
        return fields

    def _tell(self, wrong: list[Reconciled]) -> None:
        if wrong:
            more = f"\nand {len(wrong) - _SHOWN_MAX} more" if len(wrong) > _SHOWN_MAX else ""
            raise ChecksFailed(
                f"the replay does not agree with its plan in {len(wrong)} partitions",
                detail="\n".join(f"{one.at}: {one.result}" for one in wrong[:_SHOWN_MAX]) + more,
                hint=f"do not open the cluster; {self.file} has all of it",
            )
        self.app.output.line(f"reconciled {len(self.made.rows)} partitions; {self.file}")

    def _dsn(self, instance: Instance) -> str:
        return in_database(instance.dsn, user=self.role, database=self.database)

    def _write(self, made: ReplayCertificate) -> None:
        self.made = made
        text = json.dumps(certificate_fields(made), indent=1) + "\n"
        replace_synced(self.file, text.encode())


def _replayed(dsn: str, replay_id: str) -> dict[TopicPartition, Replayed]:
    """Return what the database itself says of the replay, not what this process remembers."""
    from pitr.events.partition import TopicPartition

    with ReplaySession(dsn) as session:
        return {
            TopicPartition(one.topic, one.partition): Replayed(one.next_offset, one.counts)
            for one in session.cursors(replay_id)
        }


@contextmanager
def _reached(said: str) -> Iterator[None]:
    """Say with every refusal what was reached, and that the same command goes on from there."""
    try:
        yield
    except PitrError as failure:
        failure.detail = f"{failure.detail}\n{said}" if failure.detail else said
        again = "then run the same command again: it goes on from there"
        failure.hint = f"{failure.hint}; {again}" if failure.hint else again
        raise
