"""What counts as a region that answers: this repository's, and each place once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fix_cli import MakeSite, Site


@pytest.fixture(scope="module")
def site(module_make_site: MakeSite) -> Site:
    made = module_make_site()
    made.start_daemon()
    made("backup")
    made.server.execute("CREATE TABLE kept (n int)")
    made.wait_durable()
    assert made.daemon.stop() == 0, made.daemon.tail()
    return made


def plan(site: Site, *urls: str, exit_code: int = 0):  # type: ignore[no-untyped-def]
    words = [word for url in urls for word in ("--from", url)]
    return site.program("plan", "latest", "--json", *words, "--identity", site.identity, exit_code=exit_code)


def test_an_empty_place_beside_one_region_does_not_make_the_end_certain(site: Site, tmp_path: Path) -> None:
    first, second = site.regions[0].url, site.regions[1].url
    assert plan(site, first, second).data["plan"]["is_past_end"]
    empty = tmp_path / "empty"
    (empty / "objects").mkdir(parents=True)
    shutil.copy(site.regions[0].path / "pitr-region", empty)
    refused = plan(site, first, empty.as_uri(), exit_code=4)
    assert "1 of 3 regions answered, and it takes 2" in refused.error["why"]
    assert any("holds no repository" in warning for warning in refused.object["warnings"])
    alone = plan(site, empty.as_uri(), exit_code=10)
    assert "no repository is there" in alone.error["message"]


def test_one_place_under_two_names_is_one_answer(site: Site, tmp_path: Path) -> None:
    region = site.regions[0]
    link = tmp_path / "link"
    link.symlink_to(region.path)
    for other in (f"{region.url}/", f"{region.url}/.", link.as_uri()):
        refused = plan(site, region.url, other, exit_code=4)
        assert "1 of 3 regions answered" in refused.error["why"], other
        assert any("same place as another" in warning for warning in refused.object["warnings"])


def test_another_repositorys_region_is_told_as_that_and_not_as_damage(
    site: Site, make_site: MakeSite
) -> None:
    other = make_site()
    for urls in ((site.regions[0].url, other.regions[0].url), (other.regions[0].url, site.regions[0].url)):
        refused = plan(site, *urls, exit_code=8)
        assert "holds another repository" in refused.error["message"]
        assert "nothing there is damaged" in refused.error["next"]
        assert "copy_faults" not in refused.data or not refused.data["copy_faults"]
