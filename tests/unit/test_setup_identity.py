"""Whose repository ``pitr init`` makes, and which identities it refuses."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.errors import UsageRefused
from cli.key_files import read_identity, remove_staged, write_secret
from cli.setup_identity import KnownIdentity, RegionLook, check_identity
from pitr.catalogue.records import RepositoryRecord
from pitr.errors import KeyMissing, NotAuthentic, NotInitialised, PitrError
from pitr.layout import REPOSITORY_KEY
from pitr.pipeline.keys import Identity, IdentityFile
from pitr.repository import Repository
from pitr.repository_record import find_repository_record
from storage.local import DirectoryStore
from storage.memory import MemoryStore
from storage.store import StoreRefused

NOW = datetime(2026, 11, 23, tzinfo=UTC)
PATH = Path("/vault/identity.toml")


def _file(number: int, repository: str = "a" * 32) -> IdentityFile:
    identity = Identity(bytes([number]) * 32)
    return IdentityFile(identity, repository, identity.root_signer().public)


def _record(file: IdentityFile) -> RepositoryRecord:
    return RepositoryRecord(file.repository, NOW, str(file.root), ())


OURS, OTHER, OTHER_ROOT = _file(1), _file(2, "b" * 32), _file(2)
EMPTY = RegionLook("ap")
HOLDS = RegionLook("eu", _record(OURS), has_epochs=True, has_objects=True)
HOLDS_TOO = RegionLook("us", _record(OURS), has_epochs=True, has_objects=True)
HALF_MADE = RegionLook("eu", _record(OURS), has_objects=True)
STRANGE = RegionLook("ap", has_objects=True)
JOINED = KnownIdentity(PATH, OURS)
LEFT = KnownIdentity(PATH, OURS, is_given=False, is_left=True)
BOTH = KnownIdentity(PATH, OURS, is_given=True, is_left=True)


@pytest.mark.parametrize(
    ("known", "looks"),
    [
        (None, [EMPTY, EMPTY]),
        (JOINED, [HOLDS, HOLDS_TOO]),
        (JOINED, [HOLDS, HOLDS_TOO, EMPTY]),
        (JOINED, [HOLDS, HOLDS_TOO, STRANGE]),
        (LEFT, [EMPTY, EMPTY]),
        (LEFT, [HALF_MADE, EMPTY, EMPTY]),
        (LEFT, [HOLDS, HOLDS_TOO, EMPTY]),
        (BOTH, [EMPTY, EMPTY]),
        (BOTH, [HALF_MADE, EMPTY, EMPTY]),
        (BOTH, [HOLDS, HOLDS_TOO]),
    ],
)
def test_what_fits_is_gone_on_with(known: KnownIdentity | None, looks: list[RegionLook]) -> None:
    check_identity(known, looks, 2, has_signing_key=True)


def test_a_repository_in_use_is_not_taken_for_a_half_made_one() -> None:
    """Another --dir with the same --identity-out would make the next epoch, and end the first host's."""
    with pytest.raises(UsageRefused, match="is in use already") as caught:
        check_identity(LEFT, [HOLDS, HOLDS_TOO], 2, has_signing_key=False)
    assert f"--identity {PATH}" in (caught.value.hint or "")
    check_identity(LEFT, [HALF_MADE, EMPTY], 2, has_signing_key=False)
    for known in (JOINED, BOTH):
        check_identity(known, [HOLDS, HOLDS_TOO], 2, has_signing_key=False)


def _foreign(file: IdentityFile) -> RegionLook:
    return RegionLook("us", _record(file), has_objects=True)


@pytest.mark.parametrize(
    ("known", "looks", "error", "words"),
    [
        (None, [EMPTY, HOLDS], KeyMissing, "region eu holds a repository already"),
        (None, [HOLDS, HOLDS_TOO], KeyMissing, "regions eu, us hold a repository already"),
        (None, [EMPTY, STRANGE], UsageRefused, "region ap holds objects, and no repository"),
        (LEFT, [EMPTY, STRANGE], UsageRefused, "region ap holds objects, and no repository"),
        (JOINED, [HOLDS, _foreign(OTHER)], KeyMissing, "belongs to another repository than region us holds"),
        (LEFT, [EMPTY, _foreign(OTHER)], KeyMissing, "belongs to another repository than region us holds"),
        (JOINED, [HOLDS, _foreign(OTHER_ROOT)], KeyMissing, "not the identity of the repository in us"),
        (JOINED, [EMPTY, EMPTY], NotInitialised, "no region holds the repository"),
        (JOINED, [HOLDS, EMPTY, EMPTY], UsageRefused, "the repository is not in ap, ap"),
        (LEFT, [HOLDS, EMPTY, EMPTY], UsageRefused, "the repository is not in ap, ap"),
        (BOTH, [HOLDS, EMPTY, EMPTY], UsageRefused, "the repository is not in ap, ap"),
        (BOTH, [HOLDS, _foreign(OTHER)], KeyMissing, "belongs to another repository than region us holds"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_found(
    known: KnownIdentity | None, looks: list[RegionLook], error: type[PitrError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        check_identity(known, looks, 2, has_signing_key=True)
    assert type(caught.value) is error
    assert caught.value.hint
    found = next((look.record for look in looks if look.record and look.record.root != str(OURS.root)), None)
    if found is not None:
        assert f"{found.repository}, root {found.root}" in (caught.value.detail or "")
        assert f"{OURS.repository}, root {OURS.root}" in (caught.value.detail or "")


def test_whoever_made_a_repository_is_found_and_a_damaged_record_is_not_believed() -> None:
    store = MemoryStore()
    assert find_repository_record(store) is None
    Repository.create(store, _record(OTHER), OTHER.identity.root_signer())
    assert find_repository_record(store) == _record(OTHER)
    body = store.get(REPOSITORY_KEY)
    for damaged in (body[:-1], b"", b"x" * 100, body.replace(b'"sig":"', b'"sig":"A')[:-1]):
        other = MemoryStore()
        other.put(REPOSITORY_KEY, damaged or b"-")
        with pytest.raises(NotAuthentic):
            find_repository_record(other)


def test_a_key_appears_whole_and_once_and_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    left, other = tmp_path / "signing.key.part-abc", tmp_path / "other.key.part-abc"
    for file in (left, other):
        file.write_text("half a k")
    write_secret(path, "whole")
    assert (path.read_text(), path.stat().st_mode & 0o777, path.stat().st_nlink) == ("whole", 0o600, 1)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])
    left.write_text("a copy of it")
    with pytest.raises(UsageRefused, match="exists already"):
        write_secret(path, "another")
    assert path.read_text() == "whole"
    left.write_text("a copy of it")
    remove_staged(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


def test_a_directory_is_judged_as_a_region_without_being_changed(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "region"
    assert DirectoryStore.is_region(root) is False
    assert list(tmp_path.iterdir()) == []
    (root / "objects").mkdir(parents=True)
    assert DirectoryStore.is_region(root) is False
    DirectoryStore.create(root)
    assert DirectoryStore.is_region(root) is True
    file = tmp_path / "file"
    file.write_text("x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "photo").write_text("x")
    for place, words in ((file, "not a directory"), (file / "below", "not a directory"), (full, "not empty")):
        with pytest.raises(StoreRefused, match=words):
            DirectoryStore.is_region(place)


def test_an_identity_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyMissing, match="is not a file"):
        read_identity(tmp_path / "pipe")
