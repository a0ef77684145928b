"""``pitr drill`` as people run it: real servers, three regions, a verifier with a key of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fix_cli import CHECKOUT, Done, MakeSite, Site

DRILL_TIMEOUT_S = 300.0
SCENARIOS = CHECKOUT / "examples" / "drills"


@pytest.fixture(scope="module")
def site(module_make_site: MakeSite) -> Site:
    """A site with a backup, some rows, a verifier's key and drills that are held only when asked."""
    site = module_make_site(17)
    site.config.write_text(
        site.config.read_text()
        + f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
        + f'organisation = "St. Elsewhere"\nscratch_dir = "{site.folder}/scratch"\n'
        + 'every = "never"\nrpo = "10m"\nowner = "dba"\n'
        + '\n[verify.drills]\ncomponents = "never"\nload = "2s"\n'
    )
    site("verifier", "init")
    site.server.execute("CREATE TABLE patients (id int PRIMARY KEY, name text NOT NULL)")
    site.server.execute("INSERT INTO patients SELECT n, 'p' || n FROM generate_series(1, 1000) n")
    site.start_daemon()
    site.server.execute("INSERT INTO patients VALUES (5000, 'late')")
    site.wait_durable()
    return site


def drill(site: Site, *words: object, exit_code: int = 0) -> Done:
    words = ("-c", site.config, "drill", *words, "--json")
    return site.program(*words, exit_code=exit_code, timeout_s=DRILL_TIMEOUT_S)


def results(done: Done) -> dict[str, str]:
    return {check["id"]: check["result"] for check in done.data["checks"]}


def check_of(done: Done, name: str) -> dict[str, Any]:
    (found,) = [check for check in done.data["checks"] if check["id"] == name]
    return found


def objects_of(site: Site) -> dict[str, bytes]:
    """Return what the regions hold of the archive, with what it holds."""
    return {
        f"{region.name}/{key}": path.read_bytes()
        for region in site.regions
        for key, path in region.objects().items()
        if not key.startswith(("log/", "reports/", "probe/", "heads/"))
    }


def audited(site: Site, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", "-S", str(CHECKOUT / "verifiers" / "pitr_audit.py")]
    words += ["--key", str(site.config.parent / "verifier.pub.pem"), str(folder)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def left_in_scratch(site: Site) -> list[str]:
    return sorted(path.name for path in (site.folder / "scratch").glob("0*"))


def test_every_part_of_a_recovery_is_tried_alone(site: Site) -> None:
    before = objects_of(site)
    done = drill(site, "start", "components", "--reports", site.folder / "reports")
    found = results(done)
    regions = {f"D01.{region.name}" for region in site.regions}
    assert {name: found[name] for name in (*regions, "D02", "D03", "D04")} == dict.fromkeys(
        (*regions, "D02", "D03", "D04"), "PASSED"
    )
    assert found["D05"] in ("PASSED", "WARNED")
    assert (done.data["verdict"], done.data["report_type"]) == ("PASSED", "scrub")
    after = objects_of(site)
    assert before.items() <= after.items(), "a drill deletes and changes nothing"
    assert left_in_scratch(site) == []
    said = audited(site, site.folder / "reports")
    assert said.returncode == 0, said.stdout + said.stderr
