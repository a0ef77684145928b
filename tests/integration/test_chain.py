"""The signed chain of a real archive, checked; and seen through when somebody changed it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fix_cli import MakeSite, Site

from cli.key_files import read_signing_key
from pitr.layout import ArchiveId
from pitr.pipeline.headed import encode_headed, open_header, split_headed
from pitr.pipeline.keys import IdentityFile
from pitr.repository import Repository
from storage.local import DirectoryStore
from verifiers.base import Finding, Severity
from verifiers.chain import check_chain


@pytest.fixture(scope="module")
def site(module_make_site: MakeSite) -> Site:
    """An archive with some pieces, one whole segment and a few heads; nobody writes it any more."""
    site = module_make_site()
    site.start_daemon()
    for number in range(4):
        site.server.execute(f"CREATE TABLE t{number} AS SELECT generate_series(1, 1000) AS i")
        site.wait_durable()
    site.server.switch_wal()
    site.server.execute("CREATE TABLE last (i int)")
    site.wait_durable()
    assert site.daemon.stop() == 0
    return site


@pytest.fixture
def region(site: Site, tmp_path: Path) -> Path:
    """A copy of one region, to be changed."""
    copy = tmp_path / "region"
    shutil.copytree(site.regions[0].path, copy)
    return copy


def _check(site: Site, region: Path) -> list[Finding]:
    identity = IdentityFile.parse(site.identity.read_text())
    repository = Repository(DirectoryStore(region), identity.repository, identity.root)
    (archive,) = repository.archives()
    assert isinstance(archive, ArchiveId)
    return check_chain(repository, archive)


def _failed(findings: list[Finding]) -> set[str]:
    return {finding.id for finding in findings if finding.severity is Severity.FAIL}


def _objects(region: Path, pattern: str) -> list[Path]:
    found = sorted(path for path in (region / "objects").glob(pattern) if path.is_file())
    assert found, pattern
    return found


def test_an_untouched_archive_is_signed_and_linked(site: Site, region: Path) -> None:
    findings = _check(site, region)
    assert _failed(findings) == set()
    assert {finding.id for finding in findings} >= {"chain.pieces", "chain.head"}
    assert _objects(region, "wal/*/*/*/*/s-*")


def test_a_changed_header_is_found(site: Site, region: Path) -> None:
    piece = _objects(region, "wal/*/*/*/*/p-*")[-1]
    content = bytearray(piece.read_bytes())
    content[200] ^= 1
    piece.chmod(0o600)
    piece.write_bytes(content)
    assert "chain.signature" in _failed(_check(site, region))


def test_a_piece_under_another_ones_name_is_found(site: Site, region: Path) -> None:
    first, second = _objects(region, "wal/*/*/*/*/p-*")[-2:]
    second.chmod(0o600)
    second.write_bytes(first.read_bytes())
    assert "chain.signature" in _failed(_check(site, region))


def _signed_anew(site: Site, piece: Path, **changed: object) -> bytes:
    """Return a piece's object with another header, signed with the host's own key, as its thief could."""
    signer = read_signing_key(site.config.parent / "signing.key")
    whole = piece.read_bytes()
    header = open_header(whole, signer.public, "wal-piece")
    own = {name: value for name, value in header.items() if not name.startswith("body_")}
    return encode_headed({**own, **changed}, bytes(split_headed(whole).body), signer)


def test_a_second_piece_of_one_number_is_a_fork_even_with_the_right_signature(
    site: Site, region: Path
) -> None:
    piece = _objects(region, "wal/*/*/*/*/p-*")[-1]
    rival = piece.with_name(piece.name[:-8] + "00000000")
    rival.write_bytes(_signed_anew(site, piece, received_at="2026-01-01T00:00:00.000000Z"))
    assert "chain.fork" in _failed(_check(site, region))


def test_a_piece_that_does_not_follow_the_one_before_it_is_found(site: Site, region: Path) -> None:
    pieces = sorted(_objects(region, "wal/*/*/*/*/p-*"), key=lambda path: path.name.split("-")[3])
    content = _signed_anew(site, pieces[1], previous="00" * 32)
    pieces[1].chmod(0o600)
    pieces[1].write_bytes(content)
    assert "chain.link" in _failed(_check(site, region))


def test_a_missing_piece_that_no_segment_holds_is_found(site: Site, region: Path) -> None:
    for segment in _objects(region, "wal/*/*/*/*/s-*"):
        segment.unlink()
    pieces = sorted(_objects(region, "wal/*/*/*/*/p-*"), key=lambda path: path.name.split("-")[3])
    pieces[1].unlink()
    findings = _check(site, region)
    assert "chain.gap" in _failed(findings)
    assert "chain.coverage" in {finding.id for finding in findings}


def test_pieces_that_a_whole_segment_holds_may_be_retired(site: Site, region: Path) -> None:
    folder = _objects(region, "wal/*/*/*/*/s-*")[0].parent
    for piece in folder.glob("p-*"):
        piece.unlink()
    assert _failed(_check(site, region)) == set()


def test_a_missing_head_in_the_middle_is_found(site: Site, region: Path) -> None:
    heads = _objects(region, "heads/*/*/*")
    assert len(heads) >= 2
    heads[-1].unlink()
    assert "chain.head" in _failed(_check(site, region))


def test_a_region_without_heads_is_found(site: Site, region: Path) -> None:
    for head in _objects(region, "heads/*/*/*"):
        head.unlink()
    assert "chain.head" in _failed(_check(site, region))


def test_a_region_that_is_gone_is_one_finding(site: Site, region: Path) -> None:
    identity = IdentityFile.parse(site.identity.read_text())
    repository = Repository(DirectoryStore(region), identity.repository, identity.root)
    (archive,) = repository.archives()
    region.rename(region.with_name("away"))
    assert [finding.id for finding in check_chain(repository, archive)] == ["chain.read"]
