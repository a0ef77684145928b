"""Copies that are damaged or missing in one region while another covers for them: somebody is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from fix_cli import REGION_NAMES, MakeSite, Region, Site, wait_until
from fix_postgres import table_digests

from cli.key_files import read_signing_key
from pitr.catalogue.records import HeadRecord
from pitr.pipeline.sign import open_record, sign_record


@pytest.fixture(scope="module")
def site(module_make_site: MakeSite) -> Site:
    """An archive of one backup and two segments; nobody writes it any more."""
    site = module_make_site(settings={"autovacuum": "off"})
    site.start_daemon()
    site.server.execute("CREATE TABLE visits AS SELECT generate_series(1, 1000) AS i")
    site.server.switch_wal()
    site.server.execute("CREATE TABLE last (i int)")
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()
    return site


@pytest.fixture
def regions(site: Site, server_tmp_path: Path) -> tuple[Region, ...]:
    """Copies of the regions, to be damaged."""
    copies = []
    for region in site.regions:
        copy = Region(region.name, server_tmp_path / "regions" / region.name)
        shutil.copytree(region.path, copy.path)
        copies.append(copy)
    return tuple(copies)


@pytest.fixture
def config(site: Site, regions: tuple[Region, ...]) -> Iterator[Path]:
    """The site's configuration, with the copies as its regions."""
    path = site.config.with_name("copies.toml")
    text = site.config.read_text()
    for own, copy in zip(site.regions, regions, strict=True):
        assert text.count(own.url) == 1
        text = text.replace(own.url, copy.url)
    path.write_text(text)
    yield path
    path.unlink()


def flip(path: Path) -> None:
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_restore_that_another_region_covered_for_is_done_and_says_so(
    site: Site, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    near = regions[0]
    packs = [key for key in near.objects("backups/") if "/pack-" in key]
    (index, *_) = [key for key in near.objects("backups/") if "/index-" in key]
    flip(near.objects()[packs[0]])
    near.objects()[index].unlink()
    into = server_tmp_path / "restored"
    done = site.restore("latest", into, "--start", regions=regions)
    assert table_digests(done.data["dsn"]) == table_digests(site.server.dsn)
    site.examine(into)
    damaged, missing = done.data["copy_faults"]
    assert (damaged["region"], damaged["reason"], damaged["objects"]) == (near.url, "damaged", 1)
    assert [one["key"] for one in damaged["named"]] == [packs[0]]
    assert (missing["reason"], [one["key"] for one in missing["named"]]) == ("missing", [index])
    assert missing["named"][0]["read_from"] == regions[1].url
    text = f"1 object had a damaged copy in region {near.url}, read from {regions[1].url} instead"
    assert text in done.object["warnings"]
    assert f"warning: {text}" in done.stderr
    assert packs[0] in done.stderr
    assert "pitr catalogue check" in done.stderr


def test_a_restore_from_good_copies_warns_of_nothing(
    site: Site, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    done = site.restore("latest", server_tmp_path / "restored", "--action", "none", regions=regions)
    assert done.data["copy_faults"] == []
    assert not any("region" in warning and "copy" in warning for warning in done.object["warnings"])


def test_a_plan_that_met_a_damaged_manifest_says_so(site: Site, regions: tuple[Region, ...]) -> None:
    (manifest,) = regions[0].objects("manifests/").values()
    flip(manifest)
    words = ["plan", "latest", "--identity", site.identity, "--json"]
    for region in regions:
        words += ["--from", region.url]
    done = site.program(*words)
    assert [(one["reason"], one["objects"]) for one in done.data["copy_faults"]] == [("damaged", 1)]
    assert any("a damaged copy" in warning for warning in done.object["warnings"])


def test_wal_fetch_without_a_restore_beside_it_tells_the_servers_log(
    site: Site, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    into = server_tmp_path / "restored"
    site.restore("latest", into, "--action", "none", regions=regions)
    (plan,) = server_tmp_path.rglob("wal-plan.json")
    wal = regions[0].objects("wal/")
    segment = [key for key in wal if "/s-" in key][-1].split("/")[4]
    for path in regions[0].wal_segment(segment).values():
        flip(path)
    got = server_tmp_path / "got"
    done = site.program("wal", "fetch", segment, got, "--plan", plan)
    assert "a damaged copy in region" in done.stderr
    assert f"read from {regions[1].url} instead" in done.stderr
    assert got.stat().st_size == 16 << 20


def test_status_names_a_bad_copy_until_it_was_removed_and_repaired(make_site: MakeSite) -> None:
    site = make_site()
    site.set_option('metrics_listen = "off"', 'metrics_listen = "127.0.0.1:0"')
    site.start_daemon()
    assert site.daemon.stop() == 0
    near = site.regions[0]
    ((key, manifest),) = near.objects("manifests/").items()
    good = manifest.read_bytes()
    flip(manifest)
    # The daemon reads the manifests at its start, to learn of the last backup.
    site.start_daemon()
    wait_until(lambda: site("status", "--json").data["regions"][0]["bad_copies"] == 1, "the copy is known")
    seen = site("status", "--json").data
    assert [one["key"] for one in seen["regions"][0]["bad_copies_named"]] == [key]
    assert seen["regions"][1]["bad_copies"] == 0
    assert seen["events"]["store-copy-damaged"] == 1
    assert site.daemon.log.read_text().count("copy-damaged") == 1
    shown = site("status").stdout
    assert f"1 copy is known to be bad in region {near.name}" in shown
    assert f"damaged: {key}" in shown
    assert "pitr repair" in shown
    assert "no copy is missing" in site("repair").stdout
    manifest.unlink()
    assert site("repair", "--json").data["missing_copies"] == 1
    wait_until(lambda: site("status", "--json").data["regions"][0]["bad_copies"] == 0, "it is made anew")
    assert manifest.read_bytes() == good
    assert "known to be bad" not in site("status").stdout
    site.regions[2].take_away()
    assert "error[PITR-3001]" in site("repair", exit_code=3).stderr


def fork(site: Site, region: Region) -> int:
    """Sign other heads in one region, from the first that has all WAL on, as a second writer would.

    Return the number of the first one.
    """
    signer = read_signing_key(site.config.parent / "signing.key")
    heads = {
        path: HeadRecord.from_payload(open_record(path.read_bytes(), signer.public, "head"))
        for path in region.objects("heads/").values()
    }
    end = max(head.wal_end for head in heads.values() if head.wal_end is not None)
    numbers = []
    for path, head in heads.items():
        if head.wal_end == end:
            path.chmod(0o600)
            path.write_bytes(
                sign_record(replace(head, at=head.at + timedelta(seconds=1)).to_payload(), signer)
            )
            numbers.append(head.sequence)
    assert min(numbers) > 1
    return min(numbers)


def test_a_restore_that_depends_on_a_fork_is_refused_and_one_before_it_or_from_one_side_is_not(
    site: Site, regions: tuple[Region, ...], server_tmp_path: Path
) -> None:
    number = fork(site, regions[1])
    into = server_tmp_path / "restored"
    done = site.restore("latest", into, "--action", "none", regions=regions, exit_code=8)
    assert done.error["code"] == "PITR-8001"
    assert f"head {number}" in done.error["message"]
    assert regions[0].url in done.error["message"]
    assert regions[1].url in done.error["message"]
    assert "--region NAME or --from URL" in done.error["next"]
    assert not into.exists()
    early = site.restore("immediate", into, "--action", "none", regions=regions)
    assert any(warning.startswith("FORK: ") for warning in early.object["warnings"])
    other = server_tmp_path / "other"
    # One side alone is not the certain end of the archive: who takes it says so by its LSN.
    unsure = site.restore("latest", other, "--action", "none", regions=regions[:1], exit_code=4)
    end = unsure.error["next"].rpartition("--to ")[2]
    alone = site.restore(end, other, "--action", "none", regions=regions[:1])
    assert not any("FORK" in warning for warning in alone.object["warnings"])


def test_doctor_and_check_see_a_fork(site: Site, regions: tuple[Region, ...], config: Path) -> None:
    fork(site, regions[2])
    for words, exit_code in (("doctor", 1), ("catalogue check", 7)):
        done = site.program("-c", config, *words.split(), "--json", exit_code=exit_code)
        (finding,) = [one for one in done.data["findings"] if one["id"] == "heads.fork"]
        assert finding["severity"] == "fail"
        assert "regions eu and ap have different heads" in finding["message"]


def check(site: Site, config: Path, *more: object, exit_code: int) -> dict[str, str]:
    """Run ``pitr catalogue check`` and return each region's verdict."""
    done = site.program("-c", config, "catalogue", "check", "--json", *more, exit_code=exit_code)
    return {one["region"]: one["verdict"] for one in done.data["regions"]}


def test_check_passes_regions_that_are_alike_and_good(site: Site, config: Path) -> None:
    for more in ((), ("--read-data",)):
        assert check(site, config, *more, exit_code=0) == {"eu": "pass", "us": "pass", "ap": "pass"}
    assert site.program("-c", config, "catalogue", "check").stdout.count(" PASS ") == len(REGION_NAMES)


def test_check_finds_what_one_region_lacks(site: Site, regions: tuple[Region, ...], config: Path) -> None:
    key, path = next((key, path) for key, path in regions[1].objects("wal/").items() if "/s-" in key)
    path.unlink()
    assert check(site, config, exit_code=7) == {"eu": "pass", "us": "fail", "ap": "pass"}
    shown = site.program("-c", config, "catalogue", "check", exit_code=7)
    assert f"us: {key}: in eu, ap" in shown.stdout
    assert "next: pitr repair" in shown.stdout
    assert "error[PITR-7002]" in shown.stderr


@pytest.mark.parametrize("kind", ["/pack-", "/index-", "/s-", "/p-"])
def test_check_with_read_data_finds_a_flipped_bit_in_any_region(
    site: Site, regions: tuple[Region, ...], config: Path, kind: str
) -> None:
    key, path = next((key, path) for key, path in regions[2].objects().items() if kind in key)
    flip(path)
    assert check(site, config, exit_code=0)["ap"] == "pass", "its size is right"
    done = site.program("-c", config, "catalogue", "check", "--read-data", "--json", exit_code=7)
    (bad,) = [one for one in done.data["regions"] if one["verdict"] == "fail"]
    assert bad["region"] == "ap"
    assert [(one["reason"], one["objects"], one["named"][0]["key"]) for one in bad["copy_faults"]] == [
        ("damaged", 1, key)
    ]


def test_check_tells_of_a_header_that_the_chain_was_read_past(
    site: Site, regions: tuple[Region, ...], config: Path
) -> None:
    path = next(path for key, path in regions[0].objects("wal/").items() if "/p-" in key)
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert check(site, config, exit_code=7) == {"eu": "fail", "us": "pass", "ap": "pass"}


def test_check_of_a_region_that_is_away_is_9_and_says_not_asked(
    site: Site, regions: tuple[Region, ...], config: Path
) -> None:
    regions[2].take_away()
    assert check(site, config, exit_code=9) == {"eu": "pass", "us": "pass", "ap": "not asked"}
    (manifest,) = regions[1].objects("manifests/").values()
    flip(manifest)
    # What is wrong for sure goes before what is not known.
    assert check(site, config, exit_code=7)["us"] == "fail"
