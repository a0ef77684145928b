"""C04, C06 and C07: what PostgreSQL's own programs say of the restored files while no server runs on them."""

from __future__ import annotations

from typing import Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.restore_directory import FilesDiffer
from pitr.wal.timeline import TimelineId
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.scratch_server import ScratchServer

_CLEAN: Final = "shut down"


def check_files(version: str, refusal: FilesDiffer | None, files: int, maker: CheckMaker) -> CheckResult:
    """C04: the restore ran pg_verifybackup on all files before the first start; this states what it said."""

    def judge() -> Judgement:
        expected = "pg_verifybackup ends with exit code 0"
        if refusal is not None:
            return failed(expected, "it does not accept the files", refusal.detail or refusal.message)
        return passed(expected, f"exit code 0, {files} files")

    return maker.run("C04", "pg_verifybackup -n -q DIRECTORY", judge, version=version)


def check_control(
    server: ScratchServer, system_identifier: int, timeline: TimelineId | None, maker: CheckMaker
) -> CheckResult:
    """C06, of a server that was stopped; ``timeline`` is the one that it was promoted to."""

    def judge() -> Judgement:
        wanted = {
            "Database cluster state": _CLEAN,
            "Database system identifier": str(system_identifier),
        }
        if timeline is not None:
            wanted["Latest checkpoint's TimeLineID"] = str(timeline.number)
        run = server.run_tool("pg_controldata", "-D", str(server.data_dir))
        lines = dict(_pair(line) for line in run.output.splitlines() if ":" in line)
        found = {name: lines.get(name, "absent") for name in wanted}
        evidence = "".join(f"{name}: {value}\n" for name, value in sorted(found.items())).encode()
        expected = ", ".join(f"{name}: {value}" for name, value in wanted.items())
        observed = ", ".join(f"{name}: {value}" for name, value in found.items())
        if run.exit_code != 0 or found != wanted:
            return failed(expected, observed, run.said or "the control file says otherwise", evidence)
        return passed(expected, observed, evidence)

    return maker.run("C06", "pg_controldata -D DIRECTORY", judge, version=server.version)


def check_page_checksums(server: ScratchServer, backup: BackupManifest, maker: CheckMaker) -> CheckResult:
    """C07, of a server that was stopped.  Not required of a cluster that has no checksums."""

    def judge() -> Judgement:
        if not backup.page_checksums:
            reason = "the cluster was made without data checksums"
            return Judgement(Outcome.SKIPPED, "every page has its checksum", "not looked at", reason)
        run = server.run_tool("pg_checksums", "--check", "-D", str(server.data_dir))
        expected = "pg_checksums ends with exit code 0 and finds no bad page"
        said = " ".join(f"{run.output} {run.said}".split())
        if run.exit_code != 0:
            return failed(expected, f"exit code {run.exit_code}", said, digest=run.sha256)
        return passed(expected, said, digest=run.sha256)

    command = "pg_checksums --check -D DIRECTORY"
    return maker.run("C07", command, judge, version=server.version, is_required=backup.page_checksums)


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
