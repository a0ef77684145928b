"""``pitr init`` that cannot be carried out: all is told before anything is made, and a repeat goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_cli import REGION_NAMES, DaemonProcess, MakeSite, PitrProgram, Region, Site
from fix_postgres import PostgresFactory, RunningPostgres
from fix_s3 import S3Server
from fix_terminal import on_a_terminal

from cli.config import load_settings
from cli.key_files import read_identity, write_secret
from pitr.pipeline.keys import Identity, IdentityFile

STRIDE = 18
CHILD = Path(__file__).parents[1] / "init_child.py"


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    """One server for all tests that leave it as it is but for its slots."""
    return module_postgres_factory(17)


@pytest.fixture
def site(server: RunningPostgres, server_tmp_path: Path) -> Iterator[Site]:
    """The shared server and three directories that are to become regions."""
    regions = tuple(Region(name, server_tmp_path / "regions" / name) for name in REGION_NAMES)
    program = PitrProgram(server_tmp_path)
    config = server_tmp_path / "pitr" / "pitr.toml"
    yield Site(
        server, server_tmp_path, program, regions, DaemonProcess(program, config, server_tmp_path / "log")
    )
    server.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


def words(site: Site, *more: object, creates: bool = True, slot: str = "pitr") -> list[object]:
    line: list[object] = ["init", "--pg", site.server.dsn, "--quorum", 2, "--non-interactive", "--json"]
    line += ["--dir", site.config.parent, "--identity-out", site.identity, "--metrics", "off", "--slot", slot]
    for region in site.regions:
        line += ["--region", f"{region.name}={region.url}"]
    return [*line, *(["--create-directories"] if creates else []), *more]


def made(site: Site) -> list[str]:
    """Return everything that is in the site's folder, and the server's slots."""
    found = [str(path.relative_to(site.folder)) for path in sorted(site.folder.rglob("*"))]
    slots = site.server.execute("SELECT slot_name::text FROM pg_replication_slots ORDER BY 1")
    return found + [f"slot {row[0]}" for row in slots]


def refused(site: Site, line: list[object], exit_code: int, code: str) -> dict[str, str]:
    """Run a command line that must be refused in three lines, and make nothing."""
    before = made(site)
    done = site.program(*line, exit_code=exit_code)
    assert done.error["code"] == code, done.error
    assert "pitr doctor" not in done.error["next"], "there is no configuration that it could check"
    shown = [text for text in done.stderr.splitlines() if not text.startswith("        ")]
    assert [text[:8] for text in shown[-3:]] == ["error[PI", "  why:  ", "  next: "], done.stderr
    assert made(site) == before
    return done.error


def works(site: Site, line: list[object]) -> dict[str, object]:
    """Run the same line, which now must work, and see that the daemon could begin with it."""
    data = site.program(*line).data
    settings = load_settings(site.config)
    assert settings.repository.repository == read_identity(site.identity).repository
    found = {one["id"]: one["severity"] for one in site("doctor", "--json").data["findings"]}
    assert [found[f"repository.{region.name}"] for region in site.regions] == ["ok"] * 3
    return data


def test_a_directory_that_is_no_region_is_told_with_the_option_that_makes_it(site: Site) -> None:
    error = refused(site, words(site, creates=False), 9, "PITR-9001")
    assert "3 things are in the way" in error["message"]
    assert all(f"region {region.name}: " in error["why"] for region in site.regions)
    assert "--create-directories" in error["why"]
    assert "repeat the same command" in error["next"]
    works(site, words(site))


def test_a_region_that_is_missing_is_told_and_the_same_line_works_when_it_is_back(site: Site) -> None:
    from storage.local import DirectoryStore

    for region in site.regions:
        DirectoryStore.create(region.path)
    site.regions[1].take_away()
    error = refused(site, words(site, creates=False), 9, "PITR-9001")
    assert "region us: " in error["message"]
    assert "--create-directories" in error["next"]
    site.regions[1].give_back()
    works(site, words(site, creates=False))


def test_a_server_that_is_down_is_told_together_with_all_else(site: Site) -> None:
    # Where no server listens; the shared one goes on.
    line = words(site)
    line[2] = "host=/nonexistent user=postgres"
    site.regions[2].path.mkdir(parents=True)
    (site.regions[2].path / "holiday.jpg").write_bytes(b"x")
    before = sorted(site.folder.rglob("*"))
    error = site.program(*line, exit_code=1).error
    assert (error["code"], error["exit"]) == ("PITR-1004", 1)
    assert "2 things are in the way" in error["message"]
    assert "check --pg" in error["why"]
    assert "region ap: " in error["why"]
    assert "is not empty and is not a region" in error["why"]
    assert sorted(site.folder.rglob("*")) == before
    (site.regions[2].path / "holiday.jpg").unlink()
    works(site, words(site))


def test_a_role_without_rights_and_a_slot_of_another_kind_are_told_before_anything_is_made(
    make_site: MakeSite,
) -> None:
    site = make_site(init=False, settings={"wal_level": "logical"})
    site.server.execute("SELECT pg_create_logical_replication_slot('pitr', 'pgoutput')")
    site.server.execute("CREATE ROLE weak LOGIN")
    line = words(site)
    line[2] = site.server.dsn.replace("user=postgres", "user=weak")
    error = refused(site, line, 1, "PITR-1003")
    for told in (
        "may stream WAL",
        "may start and stop backups",
        "slot 'pitr': the slot is logical",
        "--slot",
    ):
        assert told in error["why"]
    site.server.execute("SELECT pg_drop_replication_slot('pitr')")
    site.server.execute("ALTER ROLE weak SUPERUSER")
    works(site, line)


def test_no_room_for_another_slot_is_told_before_anything_is_made(make_site: MakeSite) -> None:
    site = make_site(init=False, settings={"max_replication_slots": "1"})
    site.server.execute("SELECT pg_create_physical_replication_slot('other')")
    error = refused(site, words(site), 1, "PITR-1003")
    assert "max_replication_slots = 1, 1 in use" in error["message"]
    site.server.execute("SELECT pg_drop_replication_slot('other')")
    works(site, words(site))


def test_places_that_cannot_be_made_are_told(site: Site) -> None:
    (site.folder / "vault").write_text("a file where a folder is wanted")
    (site.folder / "pitr").write_text("another")
    error = refused(site, words(site), 1, "PITR-1012")
    assert "3 things are in the way" in error["message"]
    assert f"{site.identity} cannot be made" in error["why"]
    assert "it is not a directory" in error["why"]


def test_credentials_that_cannot_be_read_are_told(site: Site) -> None:
    line = words(site, "--credentials", f"eu={site.folder / 'none'}")
    error = refused(site, line, 8, "PITR-8002")
    assert "region eu: the credentials file" in error["message"]


def test_a_bucket_with_other_things_in_it_is_not_made_a_repository(site: Site) -> None:
    from storage.local import DirectoryStore

    DirectoryStore.create(site.regions[0].path).put("photos/1.jpg", b"x")
    error = refused(site, words(site), 2, "PITR-2001")
    assert "region eu holds objects, and no repository" in error["message"]


def test_a_mistake_after_a_step_is_mended_by_the_same_line(site: Site) -> None:
    # A file where the epochs' folder must come: nothing that can be looked at before.
    works_once = words(site)
    site.program(*works_once)
    first = read_identity(site.identity)
    site.config.unlink()
    (site.regions[1].path / "objects" / "epochs").rename(site.folder / "kept")
    (site.regions[1].path / "objects" / "epochs").write_text("not a folder")
    error = site.program(*works_once, exit_code=9).error
    assert "what was made before stays" in error["why"]
    assert "repeat the same command" in error["next"]
    assert "pitr doctor" not in error["next"]
    (site.regions[1].path / "objects" / "epochs").unlink()
    assert works(site, works_once)["is_new_repository"] is True
    assert read_identity(site.identity) == first


def test_an_identity_that_was_left_is_taken_up_and_never_replaced(site: Site) -> None:
    identity = Identity.generate(lambda count: bytes([5]) * count)
    left = IdentityFile(identity, "0" * 32, identity.root_signer().public)
    site.identity.parent.mkdir()
    write_secret(site.identity, left.render())
    data = works(site, words(site))
    assert (data["repository"], data["is_new_repository"]) == ("0" * 32, True)
    assert read_identity(site.identity) == left
    # Everything is done already: the same line says so, another one is refused.
    again = site.program(*words(site)).data
    assert (again["is_new_epoch"], again["is_new_repository"]) == (False, False)
    assert "exists already" in site.program(*words(site, "--name", "other"), exit_code=2).error["message"]


def test_another_directory_with_the_same_identity_does_not_end_the_first_hosts_epoch(site: Site) -> None:
    site.program(*words(site))
    line = words(site)
    line[line.index("--dir") + 1] = site.folder / "second"
    error = refused(site, line, 2, "PITR-2001")
    assert "is in use already" in error["message"]
    assert site.program(*line, "--identity", site.identity).data["archive"].endswith("/00000002")


def test_a_bucket_that_is_missing_is_told_and_the_same_line_works_when_it_is_there(
    site: Site, s3_server: S3Server
) -> None:
    site.program.environment = {
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
    }
    bucket = f"init-{site.folder.name}".lower().replace("_", "-")
    url = f"s3://{bucket}/main?endpoint={s3_server.endpoint}&region={s3_server.region_name}&profile=versitygw"
    line = [*words(site), "--region", f"s3={url}"]
    error = refused(site, line, 9, "PITR-9002")
    assert "region s3: " in error["message"]
    assert bucket in error["message"]
    s3_server.make_bucket(bucket)
    works(site, line)


@pytest.mark.parametrize("content", ["", "identity = 5\n"])
def test_a_file_that_is_no_identity_is_not_written_over(site: Site, content: str) -> None:
    site.identity.parent.mkdir()
    site.identity.write_text(content)
    site.identity.chmod(0o600)
    error = refused(site, words(site), 8, "PITR-8002")
    assert "never written over" in error["next"]
    assert site.identity.read_text() == content


def test_a_repository_is_never_made_over_another_nor_joined_with_a_wrong_identity(site: Site) -> None:
    site.program(*words(site))
    own = read_identity(site.identity)
    other = site.folder / "other"
    base = ["init", "--pg", site.server.dsn, "--quorum", 2, "--non-interactive", "--json", "--metrics", "off"]
    base += ["--dir", other]
    for region in site.regions:
        base += ["--region", f"{region.name}={region.url}"]
    error = refused(site, base, 8, "PITR-8002")
    assert "hold a repository already" in error["message"]
    assert own.repository in error["why"]
    assert "--identity FILE" in error["next"]

    stranger = Identity.generate(lambda count: bytes([7]) * count)
    for repository in ("f" * 32, own.repository):
        path = site.folder / f"{repository}.toml"
        write_secret(path, IdentityFile(stranger, repository, stranger.root_signer().public).render())
        error = refused(site, [*base, "--identity", path], 8, "PITR-8002")
        assert str(path) in error["message"]
        assert own.repository in error["why"]
        # Commands that read say the same, and not that something is damaged.
        sources: list[object] = ["--identity", path]
        for region in site.regions:
            sources += ["--from", region.url]
        for line in (["plan", "latest"], ["restore", "--to", "latest", "--into", other, "--yes"]):
            error = refused(site, [*line, *sources, "--json"], 8, "PITR-8002")
            assert str(path) in error["message"]
            assert "check the regions' URLs" in error["next"]
    assert not other.exists()


def test_an_identity_is_not_joined_where_nothing_is(site: Site) -> None:
    site.program(*words(site))
    line = words(site, "--identity", site.identity)
    line[line.index("--identity-out") + 1] = site.folder / "elsewhere.toml"
    line[line.index("--dir") + 1] = site.folder / "second"
    line = [str(word).replace("/regions/", "/wrong/") for word in line]
    error = refused(site, line, 10, "PITR-0001")
    assert "check the regions' URLs" in error["next"]


def asked_words(site: Site) -> list[object]:
    """Return a command that says neither the server nor the regions."""
    line: list[object] = ["init", "--dir", site.config.parent, "--identity-out", site.identity]
    return [*line, "--metrics", "off", "--create-directories"]


def test_a_person_is_asked_for_the_server_and_the_regions(site: Site) -> None:
    (site.folder / "vault").mkdir()
    regions = [f"{region.name}={region.path}" for region in site.regions]
    # The first region cannot be left out: it is asked for again.
    answers = "\n".join([site.server.dsn, "", *regions, "", ""])
    exit_code, shown = on_a_terminal(site.program, asked_words(site), answers)
    assert exit_code == 0, shown
    asked = re.findall(r"(PostgreSQL|Region \d) (\[.*?\]|as NAME=URL(?: \(.*?\))?): ", shown)
    first = ("Region 1", "as NAME=URL")
    assert asked[:3] == [("PostgreSQL", "[host=/var/run/postgresql dbname=postgres]"), first, first]
    assert asked[3:6] == [(f"Region {number}", "as NAME=URL (empty: no more)") for number in (2, 3, 4)]
    assert "RECOVERY SHEET" in shown
    settings = load_settings(site.config)
    assert settings.cluster.dsn == site.server.dsn
    assert [(one.name, one.url) for one in settings.regions] == [(one.name, one.url) for one in site.regions]
    assert settings.repository.quorum == 2
    assert "slot pitr" in made(site)


@pytest.mark.parametrize(
    ("answers", "exit_code", "told"),
    [
        ("host=/nonexistent user=postgres\neu\n\n", 2, "NAME=URL"),
        # Ctrl-D in the midst of the questions.
        ("host=/nonexistent user=postgres\n\x04", 130, "Region 1"),
    ],
    ids=["mistake", "end"],
)
def test_who_answers_wrongly_or_goes_away_has_made_nothing(
    site: Site, answers: str, exit_code: int, told: str
) -> None:
    before = made(site)
    ended, shown = on_a_terminal(site.program, asked_words(site), answers)
    assert ended == exit_code, shown
    assert told in shown
    assert "Traceback" not in shown
    assert made(site) == before


@pytest.mark.parametrize("option", ["--non-interactive", "--json"])
def test_a_program_on_a_terminal_is_asked_nothing(site: Site, option: str) -> None:
    before = made(site)
    exit_code, shown = on_a_terminal(site.program, [*asked_words(site), option], "")
    assert exit_code == 2, shown
    assert "--pg DSN is missing" in shown
    assert made(site) == before


@pytest.mark.few_seeds(2)
def test_killed_at_any_step_and_repeated_it_ends_as_if_nothing_had_been(site: Site, seed: int) -> None:
    # Every step is some seed's; all of them in one run take a minute.
    words = [
        sys.executable,
        str(CHILD),
        str(site.folder),
        site.server.dsn,
        str(seed % STRIDE + 1),
        str(STRIDE),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    # Directories, two keys, three regions, their records and epochs, the configuration.
    assert int(done.stdout) > 30


def test_what_incremental_backups_need_of_the_server_is_said(make_site: MakeSite) -> None:
    """A server without WAL summaries is no mistake, but each of its backups reads all."""
    site = make_site(settings={"summarize_wal": "off"}, init=False)
    assert "next: ALTER SYSTEM SET summarize_wal = on" in site.init().stdout
