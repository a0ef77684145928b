"""The demo's steps: the real program on a throw-away cluster, broken and restored."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.config_template import without_schedule
from cli.control import ControlRequest, ask_daemon
from cli.demo_hospital import Acknowledged, Clerk, Moment, Verdict, break_things, judge, open_hospital
from cli.demo_s3 import DemoS3
from cli.demo_verify import describe_verdict, verify_what_is_left
from cli.own_command import ROOT, own_command
from cli.wiring import preferred_bin_dir
from pitr.errors import PitrError
from pitr.postgres.installation import find_pg
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import ServerUser, readable_installation, server_user
from pitr.wal.lsn import LSN

REGIONS = ("eu-central", "us-east", "ap-south")
COMMAND_TIMEOUT_S = 300.0
WAIT_S = 60.0
LOOK_EVERY_S = 0.05
# Long enough that WAL goes on after the backup and that the RPO is a figure and no accident.
WORK_AFTER_BACKUP_S = 6.0
WORK_AFTER_MOMENT_S = 1.5
_SETTINGS = {
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
}


@dataclass(frozen=True, slots=True)
class DemoChoices:
    """What of the demo can be chosen.  ``folder`` must have a short path: sockets lie in it."""

    folder: Path
    major: int
    uses_s3: bool
    verifies: bool = False


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One step, how long it took, and what came of it in words."""

    name: str
    seconds: float
    note: str


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found.  Times in seconds; ``rpo_*``: how long commits took to be at quorum."""

    steps: tuple[DemoStep, ...]
    moment: Moment
    verdict: Verdict
    commits: int
    rpo_p50_s: float
    rpo_max_s: float
    rto_s: float
    restored: Mapping[str, Any]
    verified: Mapping[str, Any] | None = None


@dataclass(slots=True)
class _Steps:
    say: Callable[[str], None]
    done: list[DemoStep] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is put into the list is its note."""
        self.say(name)
        begun = time.monotonic()
        note: list[str] = []
        yield note
        self.done.append(DemoStep(name, time.monotonic() - begun, "; ".join(note)))


class DemoRun:
    """One demo in one folder.  ``run`` leaves nothing running, whatever happens."""

    def __init__(self, choices: DemoChoices, say: Callable[[str], None]) -> None:
        self._choices = choices
        self._folder = choices.folder
        self._steps = _Steps(say)
        self._s3: DemoS3 | None = None
        self._user: ServerUser | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def run(self) -> DemoResult:
        """Go through all steps.  Raises PitrError where one fails."""
        with ExitStack() as ending:
            source = self._start_server(ending)
            self._init(source, ending)
            self._start_daemon(ending)
            clerk = Clerk(source.dsn, self._folder / "ledger.jsonl")
            with self._steps.step("a clerk begins to work, WAL is streamed") as note:
                clerk.start()
                ending.callback(clerk.stop_quietly)
                self._wait_for(lambda seen: bool(seen["is_streaming"]) and seen["durable_lsn"] is not None)
                note.append("every acknowledged commit is written down")
            durable = DurableLog(self._status)
            durable.start()
            ending.callback(durable.stop)
            self._back_up(clerk)
            moment = self._break(source, clerk, durable)
            self._lose_the_host(source)
            restored, rto_s = self._restore(moment, ending)
            with self._steps.step("every row is compared with the ledger") as note:
                verdict = judge(str(restored["dsn"]), clerk.acknowledged, moment)
                note.append(f"{verdict.expected} acknowledged before, {verdict.found} found")
            verified = self._verify(moment) if self._choices.verifies else None
        ages = sorted(durable.ages_of(clerk.acknowledged))
        return DemoResult(
            steps=tuple(self._steps.done),
            moment=moment,
            verdict=verdict,
            commits=len(clerk.acknowledged),
            rpo_p50_s=ages[len(ages) // 2] if ages else 0.0,
            rpo_max_s=ages[-1] if ages else 0.0,
            rto_s=rto_s,
            restored=restored,
            verified=verified,
        )

    def _start_server(self, ending: ExitStack) -> Instance:
        with self._steps.step("a throw-away PostgreSQL starts") as note:
            found = find_pg(self._choices.major, preferred=preferred_bin_dir(None))
            self._user = server_user(must_run=(*own_command(), "wal", "fetch", "--help"))
            installation = readable_installation(found, self._user, lambda: self._folder / "postgres")
            instance = Instance(
                installation,
                self._folder / "primary",
                user=self._user,
                socket_dir=self._folder / "s",
                port=5432,
                log_path=self._folder / "primary.log",
            )
            ending.callback(instance.kill)
            instance.init(["--no-sync"])
            instance.start(_SETTINGS, timeout_s=WAIT_S)
            open_hospital(instance.dsn)
            note.append(f"PostgreSQL {installation.version}: patients, appointments, billing")
        return instance

    def _init(self, source: Instance, ending: ExitStack) -> None:
        with self._steps.step("pitr init: keys, three regions, replication slot") as note:
            if self._choices.uses_s3:
                self._s3 = DemoS3(self._folder / "s3", REGIONS)
                ending.callback(self._s3.stop)
                self._s3.start()
            words = ["init", "--pg", source.dsn, "--quorum", "2", "--create-directories", "--non-interactive"]
            words += ["--dir", str(self._folder / "host"), "--metrics", "127.0.0.1:0"]
            words += ["--identity-out", str(self._identity)]
            for name, url in self._urls.items():
                words += ["--region", f"{name}={url}"]
            self._pitr(*words)
            # The demo asks for its one backup itself.
            config = self._folder / "host" / "pitr.toml"
            config.write_text(without_schedule(config.read_text(encoding="utf-8")), encoding="utf-8")
            note.append("the identity, which alone can read, is kept apart")

    def _start_daemon(self, ending: ExitStack) -> None:
        with self._steps.step("pitr daemon starts") as note:
            with (self._folder / "daemon.log").open("ab") as log:
                self._daemon = subprocess.Popen(
                    [*own_command(), "-c", str(self._folder / "host" / "pitr.toml"), "daemon"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    cwd=self._folder,
                )
            ending.callback(self._kill_daemon)
            self._wait_for(lambda seen: bool(seen["is_streaming"]))
            note.append("WAL is received, sealed, and acknowledged at 2 of 3 regions")

    def _back_up(self, clerk: Clerk) -> None:
        with self._steps.step("pitr backup: a full base backup under load") as note:
            before = len(clerk.acknowledged)
            done = self._pitr(
                "-c", str(self._folder / "host" / "pitr.toml"), "backup", "--label", "demo", allowed=(0, 3)
            )
            size_mib = int(done["backup"]["size_bytes"]) / (1 << 20)
            note.append(f"{size_mib:.0f} MiB, {len(clerk.acknowledged) - before} commits meanwhile")
        with self._steps.step("work goes on"):
            time.sleep(WORK_AFTER_BACKUP_S)

    def _break(self, source: Instance, clerk: Clerk, durable: DurableLog) -> Moment:
        with self._steps.step("DELETE FROM appointments; DROP TABLE billing") as note:
            moment = clerk.moment()
            time.sleep(WORK_AFTER_MOMENT_S)
            end = break_things(source.dsn, clerk)
            # The disaster is archived, too: a restore must stop before it, not run out before it.
            self._wait_for(
                lambda seen: seen["durable_lsn"] is not None and LSN.parse(seen["durable_lsn"]) >= end
            )
            durable.stop()
            after = len(clerk.acknowledged) - moment.count
            note.append(f"the moment before: {moment.at.isoformat()}; {after} commits came after it")
        return moment

    def _lose_the_host(self, source: Instance) -> None:
        with self._steps.step(f"the host is lost, and region {REGIONS[0]} is destroyed") as note:
            self._kill_daemon()
            source.kill()
            if self._s3 is not None:
                self._s3.destroy(REGIONS[0])
            else:
                shutil.rmtree(self._folder / "regions" / REGIONS[0])
            note.append("left: two regions and the identity")

    def _restore(self, moment: Moment, ending: ExitStack) -> tuple[Mapping[str, Any], float]:
        into = self._folder / "restored"
        ending.callback(self._stop_restored, into)
        with self._steps.step("pitr restore: to the moment before, on a bare machine") as note:
            begun = time.monotonic()
            words = ["restore", "--identity", str(self._identity), "--to", moment.at.isoformat()]
            for url in self._urls.values():
                words += ["--from", url]
            done = self._pitr(*words, "--into", str(into), "--start", "--yes")
            rto_s = time.monotonic() - begun
            seconds = ", ".join(f"{name} {float(spent):.1f} s" for name, spent in done["seconds"].items())
            note.append(f"pg_verifybackup accepts the files; {seconds}")
        return done, rto_s

    def _verify(self, moment: Moment) -> Mapping[str, Any]:
        with self._steps.step("pitr verify: the same moment, in a scratch place, by every check") as note:
            done = verify_what_is_left(self._pitr, self._folder, self._identity, moment.at, REGIONS[0])
            note.append(describe_verdict(done))
        return done

    @property
    def _urls(self) -> dict[str, str]:
        if self._s3 is not None:
            return {name: self._s3.url(name) for name in REGIONS}
        return {name: (self._folder / "regions" / name).as_uri() for name in REGIONS}

    @property
    def _identity(self) -> Path:
        return self._folder / "vault" / "identity.toml"

    @property
    def _environment(self) -> Mapping[str, str]:
        """Return an environment in which no configuration of the user takes part."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PITR_")}
        kept |= {"PITR_PG_BIN": os.environ["PITR_PG_BIN"]} if "PITR_PG_BIN" in os.environ else {}
        kept |= {"HOME": str(self._folder), "PYTHONPATH": str(ROOT)}
        return {**kept, **(self._s3.environment if self._s3 is not None else {})}

    def _pitr(self, *words: str, allowed: tuple[int, ...] = (0,)) -> Mapping[str, Any]:
        """Run one command of the real program; return what it answers.  Raises PitrError."""
        with (self._folder / "commands.log").open("a", encoding="utf-8") as log:
            log.write("$ pitr " + " ".join(words) + "\n")
            log.flush()
            done = subprocess.run(
                [*own_command(), "--json", "--progress", "none", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                cwd=self._folder,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
            log.write(done.stdout.decode("utf-8", "replace"))
        try:
            answer = json.loads(done.stdout)
        except ValueError as error:
            raise PitrError(
                f"pitr {words[0]} gave no answer", detail=f"exit code {done.returncode}"
            ) from error
        if done.returncode not in allowed:
            said = answer.get("error") or {}
            raise PitrError(
                f"pitr {words[0]} failed: {said.get('message')}",
                detail=said.get("why"),
                hint=said.get("next"),
            )
        result: Mapping[str, Any] = answer["data"]
        return result

    def _status(self) -> Mapping[str, Any] | None:
        """Ask the daemon how it does; None if it does not answer now."""
        path = self._folder / "host" / "state" / "control.sock"
        with suppress(PitrError):
            return ask_daemon(path, ControlRequest("status"), timeout_s=5)
        return None

    def _wait_for(self, is_so: Callable[[Mapping[str, Any]], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if self._daemon is not None and self._daemon.poll() is not None:
                log = (self._folder / "daemon.log").read_text(errors="replace")
                raise PitrError("the daemon ended", detail=log[-1500:])
            seen = self._status()
            if seen is not None and is_so(seen):
                return
            time.sleep(LOOK_EVERY_S)
        log = (self._folder / "daemon.log").read_text(errors="replace")
        raise PitrError(f"the daemon was not ready in {WAIT_S:.0f} s", detail=log[-1500:])

    def _kill_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait(WAIT_S)
            self._daemon = None

    def _stop_restored(self, into: Path) -> None:
        """Stop the restored server, which `pitr restore --start` left running."""
        if not (into / "postmaster.pid").exists():
            return
        installation = readable_installation(
            find_pg(self._choices.major, preferred=preferred_bin_dir(None)),
            self._user,
            lambda: self._folder / "postgres",
        )
        Instance(
            installation,
            into,
            user=self._user,
            socket_dir=self._folder / "s",
            port=5432,
            log_path=self._folder / "restored.log",
        ).kill()


class DurableLog:
    """Notes when WAL became durable, to say how old a commit was at that moment."""

    def __init__(self, status: Callable[[], Mapping[str, Any] | None]) -> None:
        self._status = status
        self._seen: list[tuple[float, LSN]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, name="durable-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End.  May be repeated."""
        self._stopping.set()
        self._thread.join(WAIT_S)

    def ages_of(self, acknowledged: list[Acknowledged]) -> Iterator[float]:
        """Yield, for each commit since the start, how long after its acknowledgement it was at quorum."""
        looks = iter(self._seen)
        look = next(looks, None)
        begun = self._seen[0][0] if self._seen else 0.0
        for commit in acknowledged:
            if commit.acknowledged_s < begun:
                continue
            while look is not None and look[1] < commit.end:
                look = next(looks, None)
            if look is None:
                return
            yield max(0.0, look[0] - commit.acknowledged_s)

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            seen = self._status()
            if seen is not None and seen["durable_lsn"] is not None:
                self._seen.append((time.monotonic(), LSN.parse(str(seen["durable_lsn"]))))
