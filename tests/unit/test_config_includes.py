"""What configuration files name, and what they are called in a backup."""

from __future__ import annotations

from pathlib import Path

import pytest

from pitr.backup_config import FILE_BYTES_MAX, TOTAL_BYTES_MAX, read_config, without_config
from pitr.config_includes import Include, includes_of, is_included_name, parents_of, stored_path
from pitr.pipeline.packs import check_path
from pitr.postgres.datadir import DataDirectory, DataFile
from pitr.restore_config import config_steps

HERE = "/etc/pg/main/postgresql.conf"


@pytest.mark.parametrize(
    ("line", "path", "is_directory"),
    [
        ("include 'more.conf'", "/etc/pg/main/more.conf", False),
        ("  INCLUDE_IF_EXISTS = '../other.conf' # why", "/etc/pg/other.conf", False),
        ("include_dir 'conf.d'", "/etc/pg/main/conf.d", True),
        ("include_dir='/srv/it''s here'", "/srv/it's here", True),
        ("include_dir '/a\\\\b\\'c'", "/a\\b'c", True),
        ("include plain.conf", "/etc/pg/main/plain.conf", False),
    ],
)
def test_an_include_of_settings_is_found(line: str, path: str, is_directory: bool) -> None:
    assert list(includes_of(f"port = 1\n{line}\n", "settings", HERE)) == [Include(path, is_directory)]


@pytest.mark.parametrize("line", ["# include 'a'", "included 'a'", "x = 'include ''a'''", "include", ""])
def test_what_is_no_include_of_settings_is_none(line: str) -> None:
    assert not list(includes_of(line, "settings", HERE))


def test_access_files_include_files_directories_and_lists() -> None:
    text = (
        'include_dir "more rules"\ninclude other # a comment\n'
        'local all,@databases @"some users",me trust\n# host @nobody\nlocal all a@b trust'
    )
    assert list(includes_of(text, "access", "/etc/pg/pg_hba.conf")) == [
        Include("/etc/pg/more rules", is_directory=True),
        Include("/etc/pg/other", is_directory=False),
        Include("/etc/pg/databases", is_directory=False),
        Include("/etc/pg/some users", is_directory=False),
    ]


def test_a_directory_gives_its_conf_files_that_are_not_hidden() -> None:
    assert [name for name in ("a.conf", ".b.conf", "c.conf~", "conf") if is_included_name(name)] == ["a.conf"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/a",
        "/../../etc/passwd",
        "/a/../../../b",
        "/a//b/./c",
        "/\udcff",
        "/a/..",
        "//net/a",
        "/",
        "",
        "a",
        "/a\0b",
    ],
)
def test_whatever_a_file_is_called_its_place_is_below_the_data_directory(path: str) -> None:
    stored = stored_path(path)
    if stored is None:
        assert path in {"/a/..", "//net/a", "/", "", "a", "/a\0b"}
        return
    assert check_path(stored).startswith(b"pitr-config/")
    assert parents_of(stored)[0] == b"pitr-config"


def read(tmp_path: Path, files: dict[str, str | bytes]) -> tuple[dict[str, bytes], list[str]]:
    """Write files, and return those that are read beginning at etc/postgresql.conf, and the notes."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "data").mkdir(exist_ok=True)
    notes: list[str] = []
    settings = {"config_file": str(tmp_path / "etc/postgresql.conf"), "hba_file": str(tmp_path / "etc/hba")}
    found = read_config(settings, [str(tmp_path / "etc/source")], bytes(tmp_path / "data"), notes.append)
    top = f"pitr-config{tmp_path}/"
    return {file.path.decode().removeprefix(top): file.content for file in found}, notes


def test_what_lies_outside_is_read_with_all_that_it_includes(tmp_path: Path) -> None:
    found, notes = read(
        tmp_path,
        {
            "etc/postgresql.conf": "include_dir 'conf.d'\ninclude '../data/inner.conf'\ninclude 'no'",
            "etc/conf.d/b.conf": "include '../postgresql.conf'",
            "etc/conf.d/.c.conf": "",
            "data/inner.conf": "include '../far/outer.conf'",
            "far/outer.conf": "port = 1",
            "etc/hba": "local all @admins trust",
            "etc/admins": "me",
            "etc/source": "x = 1",
            "etc/other": "",
        },
    )
    wanted = [
        "etc/admins",
        "etc/conf.d/b.conf",
        "etc/hba",
        "etc/postgresql.conf",
        "etc/source",
        "far/outer.conf",
    ]
    assert sorted(found) == wanted
    assert not notes


def test_what_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    found, notes = read(
        tmp_path,
        {
            "etc/postgresql.conf": "include 'large.conf'\ninclude 'folder'\ninclude_dir 'no'\ninclude 'loop'",
            "etc/large.conf": "#" * (FILE_BYTES_MAX + 1),
            "etc/folder/x": "",
        },
    )
    assert sorted(found) == ["etc/postgresql.conf"]
    assert len(notes) == 3
    (tmp_path / "etc/loop").symlink_to("loop")
    (tmp_path / "etc/folder/x").unlink()
    assert len(read(tmp_path, {})[1]) == 4


def test_there_is_a_limit_to_all_together(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"etc/postgresql.conf": "include_dir 'conf.d'"}
    files |= {f"etc/conf.d/{number}.conf": "#" * FILE_BYTES_MAX for number in range(20)}
    found, notes = read(tmp_path, files)
    assert sum(map(len, found.values())) <= TOTAL_BYTES_MAX
    assert any("too much" in note for note in notes)


def test_what_an_earlier_restore_left_under_the_same_names_gives_way(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/postgresql.conf").write_text("")
    settings = {"config_file": str(tmp_path / "etc/postgresql.conf")}
    files = read_config(settings, [], bytes(tmp_path / "data"), lambda _note: None)
    (file,) = files
    entries = [DataDirectory(folder, 0o700) for folder in parents_of(file.path)]
    other = DataFile(file.path + b".old", 1, None)
    left = without_config(
        iter([*entries, DataFile(file.path, 1, None), other, DataFile(b"base/1", 1, None)]), files
    )
    assert [entry.path for entry in left] == [other.path, b"base/1"]
    # A directory where a file comes takes along what is in it.
    inner = [DataDirectory(file.path, 0o700), DataFile(file.path + b"/x", 1, None)]
    assert not list(without_config(iter(inner), files))


def test_the_next_step_names_only_copies_that_are_there_and_are_files(tmp_path: Path) -> None:
    settings = {"config_file": "/etc/it's/a.conf", "hba_file": "/etc/hba", "ident_file": "/../../etc/passwd"}
    # Where no copies are, that is said.
    (lost,) = config_steps(settings, tmp_path)
    assert "no copy of the configuration (config_file /etc/it's/a.conf, hba_file /etc/hba" in lost
    inside = {name: f"{tmp_path}/{name}" for name in settings}
    for path in inside.values():
        Path(path).touch()
    assert config_steps(inside, tmp_path) == ()
    place = tmp_path / "pitr-config/etc/it's/a.conf"
    place.parent.mkdir(parents=True)
    place.touch()
    (tmp_path / "pitr-config/etc/hba").symlink_to(place)
    step, lost = config_steps(settings, tmp_path)
    assert "config_file /etc/it's/a.conf" in step
    assert "config_file" not in lost
    assert "hba_file" not in step
    assert "passwd" not in step
