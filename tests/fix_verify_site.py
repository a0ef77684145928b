"""Sites whose restores are verified: ``pitr verify`` as a process, its log, and the auditor's judgement."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fix_cli import CHECKOUT, Done, Site

VERIFY_TIMEOUT_S = 300.0
AUDIT_TIMEOUT_S = 60.0


def verified_site(site: Site, more: str = "") -> Site:
    """Give a site a backup, some rows, a verifier's key and a table [verify]."""
    site.config.write_text(
        site.config.read_text()
        + f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
        + f'organisation = "St. Elsewhere"\nscratch_dir = "{site.folder}/scratch"\n{more}'
        + '\n[verify.drills]\ncomponents = "never"\n'
    )
    site("verifier", "init")
    site.server.execute("CREATE TABLE patients (id int PRIMARY KEY, name text NOT NULL)")
    site.server.execute("INSERT INTO patients SELECT n, 'p' || n FROM generate_series(1, 1000) n")
    site.start_daemon()
    site.server.execute("INSERT INTO patients VALUES (5000, 'late')")
    site.wait_durable()
    return site


def verify(site: Site, *words: object, exit_code: int = 0) -> Done:
    return site.program(
        "-c", site.config, "verify", "--json", *words, exit_code=exit_code, timeout_s=VERIFY_TIMEOUT_S
    )


def results(done: Done) -> dict[str, str]:
    return {check["id"]: check["result"] for check in done.data["checks"]}


def check_of(done: Done, check: str) -> dict[str, Any]:
    """Return the one result of a check."""
    (found,) = [one for one in done.data["checks"] if one["id"] == check]
    assert isinstance(found, dict)
    return found


def reports_dir(site: Site) -> Path:
    return site.folder / "reports"


def log_of(site: Site) -> list[dict[str, Any]]:
    """Return the log, exported by a verification into a folder."""
    return [json.loads(line) for line in (reports_dir(site) / "log.jsonl").read_text().splitlines()]


def left_in_scratch(site: Site) -> list[str]:
    return sorted(path.name for path in (site.folder / "scratch").glob("0*"))


def audit(site: Site) -> tuple[int, list[dict[str, Any]]]:
    """Let the auditor's tool, alone, judge what was exported; return its exit code and findings."""
    words = [sys.executable, "-I", "-S", str(CHECKOUT / "verifiers" / "pitr_audit.py"), "--json"]
    words += ["--key", str(site.config.parent / "verifier.pub.pem"), str(reports_dir(site))]
    audited = subprocess.run(words, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S, check=False)
    assert audited.returncode in (0, 1), audited.stdout + audited.stderr
    return audited.returncode, list(json.loads(audited.stdout)["findings"])
