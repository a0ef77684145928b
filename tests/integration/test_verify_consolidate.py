"""A chain that was proved becomes a full backup: on the verifier, and never on the host that writes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fix_cli import MakeSite, Site
from fix_postgres import table_digests
from fix_verify_site import audit, log_of, reports_dir, verified_site, verify


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site with a chain of two, and rows after it."""
    site = verified_site(
        make_site(17, settings={"summarize_wal": "on"}), 'every = "never"\nconsolidate = true\n'
    )
    site.server.execute("UPDATE patients SET name = 'other' WHERE id % 7 = 0")
    assert site("backup", "--type", "incr", "--json").data["backup"]["type"] == "incr"
    site.server.execute("INSERT INTO patients VALUES (6000, 'after the chain')")
    site.wait_durable()
    return site


def elsewhere(site: Site) -> Site:
    """Return the site as a machine has it that has its configuration, and not the key of the host."""
    folder = site.folder / "verifier"
    (folder / "pitr").mkdir(parents=True)
    for name in ("verifier.key", "verifier.pub.pem"):
        (folder / "pitr" / name).write_bytes((site.config.parent / name).read_bytes())
    (folder / "pitr" / "verifier.key").chmod(0o600)
    text = site.config.read_text()
    for own, other in ((site.state_dir, folder / "pitr" / "state"), ("signing.key", "nobodys.key")):
        assert text.count(f"{own}") == 1
        text = text.replace(f"{own}", f"{other}")
    (folder / "pitr" / "pitr.toml").write_text(text)
    return replace(site, folder=folder)


def consolidations(site: Site) -> list[dict[str, object]]:
    return [one["facts"] for one in log_of(site) if one["kind"] == "backup-consolidated"]


@pytest.mark.slow
def test_a_proved_chain_is_consolidated_where_the_hosts_key_is_not(site: Site) -> None:
    chain = {name.rpartition("/")[2] for name in site.backups()}
    kept = verify(site, "--latest", "--reports", reports_dir(site))
    assert (kept.data["verdict"], kept.data["consolidated"]) == ("PASSED", None)
    assert any("the host that writes the archive" in warning for warning in kept.object["warnings"])
    (said,) = consolidations(site)
    assert said["backup"] is None
    assert "the host that writes the archive" in str(said["reason"])

    verifier = elsewhere(site)
    lost = verify(verifier, "--latest", "--without-region", "us", "--reports", reports_dir(verifier))
    assert lost.data["consolidated"] is None
    made = verify(verifier, "--latest", "--reports", reports_dir(verifier))
    assert made.data["verdict"] == "PASSED"
    assert made.data["backup"] in chain
    name = made.data["consolidated"]
    assert name is not None
    assert name not in chain
    said = consolidations(verifier)[-1]
    assert (said["backup"], said["stands_for"], said["reason"]) == (name, made.data["backup"], None)
    assert sorted(map(str, json.loads(json.dumps(said["chain"])))) == sorted(chain)
    assert [path.name for path in (site.folder / "scratch").glob("*") if path.is_dir()] == []

    again = verify(verifier, "--latest", "--reports", reports_dir(verifier))
    assert (again.data["verdict"], again.data["backup"], again.data["consolidated"]) == ("PASSED", name, None)
    exit_code, found = audit(verifier)
    assert exit_code == 0, found
    restored = site.restore("latest", site.folder / "restored", "--start")
    assert table_digests(restored.data["dsn"]) == table_digests(site.server.dsn)
