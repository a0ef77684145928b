"""The configuration: read into settings, and all its mistakes told at once."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.config import CONFIG_BYTES_MAX, line_of, load_settings
from cli.config_template import NewConfig, NewRegion, render_config
from cli.errors import ConfigRefused
from pitr.pipeline.keys import Identity, best_suite

IDENTITY = Identity(bytes(range(32)))
RECIPIENT = str(IDENTITY.recipient(best_suite()))
ROOT = str(IDENTITY.root_signer().public)
ID = "0123456789abcdef0123456789abcdef"
GOOD = f"""
[cluster]
dsn = "host=/run/postgresql user=postgres"

[repository]
id = "{ID}"
quorum = 2

[[region]]
name = "eu"
url = "file:///srv/eu"

[[region]]
name = "us"
url = "s3://bucket/main?region=us-east-1"
credentials_file = "us.credentials"

[keys]
signing_key_file = "signing.key"
root = "{ROOT}"
recipients = ["{RECIPIENT}"]

[daemon]
state_dir = "/var/lib/pitr"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write_config(text: str | bytes) -> Path:
        path = tmp_path / "pitr.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_config


def _mistakes(path: Path) -> str:
    with pytest.raises(ConfigRefused) as caught:
        load_settings(path)
    assert str(path) in caught.value.message
    return caught.value.detail or ""


def test_a_short_configuration_gets_the_defaults(write: Callable[[str], Path], tmp_path: Path) -> None:
    settings = load_settings(write(GOOD))
    assert settings.cluster.slot == "pitr"
    assert settings.repository.quorum == 2
    assert settings.regions[1].credentials_file == tmp_path / "us.credentials"
    assert settings.keys.signing_key_file == tmp_path / "signing.key"
    assert settings.keys.recipients == (RECIPIENT,)
    assert settings.wal.piece_age_s == 1.0
    assert settings.backup.full_every_s == 86_400
    assert (settings.daemon.metrics_host, settings.daemon.metrics_port) == ("127.0.0.1", 9187)
    assert settings.timezone is None


def test_durations_are_numbers_with_units(write: Callable[[str], Path]) -> None:
    text = GOOD + 'metrics_listen = "off"\ndrain = 5\n[backup]\nfull_every = "never"\ndeadline = "90 min"\n'
    settings = load_settings(write(text))
    assert settings.daemon.metrics_port is None
    assert settings.daemon.drain_s == 5
    assert settings.backup.full_every_s is None
    assert settings.backup.deadline_s == 5400


def test_all_mistakes_are_in_one_message_with_their_lines(write: Callable[[str], Path]) -> None:
    text = (
        GOOD.replace("quorum = 2", "quorum = 5\nqorum = 2")
        .replace('name = "us"', 'name = "eu"')
        .replace("s3://bucket/main?region=us-east-1", "ftp://x")
        .replace(
            'dsn = "host=/run/postgresql user=postgres"', 'dsn = "host=x password=geheim"\nslot = "No Slot"'
        )
        .replace("[daemon]", "[wal]\npiece_age_s = 0\n[daemon]\nmetrics_listen = '0.0.0.0:9187'")
    )
    detail = _mistakes(write(text))
    expected = {
        "cluster.dsn": "a password must not stand here",
        "cluster.slot": "expected text that matches",
        "repository.qorum": "there is no such setting",
        "region[1].url": "a region URL begins with",
        "wal.piece_age_s": "greater than or equal to 0.05",
        "daemon.metrics_listen": "loopback",
    }
    lines = text.splitlines()
    for name, words in expected.items():
        (line,) = [line for line in detail.splitlines() if f" {name}: " in line]
        assert words in line
        number = int(line.split(":")[0].removeprefix("line "))
        assert name.rpartition(".")[2] in lines[number - 1]
    assert len(detail.splitlines()) == len(expected)
    assert "geheim" not in detail


def test_contradictions_are_told_when_each_setting_alone_is_right(write: Callable[[str], Path]) -> None:
    text = GOOD.replace("quorum = 2", "quorum = 3").replace('name = "us"', 'name = "eu"')
    text += "spool_bytes_max = 8388608\n[wal]\npiece_bytes = 8388608\n"
    detail = _mistakes(write(text))
    assert "daemon.spool_bytes_max: expected at least 16777216: room for two pieces" in detail
    assert "3 regions are wanted, but there are only 2" in detail
    assert "region[1].name: 'eu' is given twice" in detail


def test_what_is_missing_is_named(write: Callable[[str], Path]) -> None:
    detail = _mistakes(write("[cluster]\nname = 'main'\n"))
    for name in ("cluster.dsn", "repository", "region", "keys", "daemon"):
        assert f"{name}: this is required" in detail


def test_recipients_may_lie_in_a_file(write: Callable[[str], Path], tmp_path: Path) -> None:
    text = GOOD.replace(f'recipients = ["{RECIPIENT}"]', 'recipients_file = "recipients"')
    assert "recipients_file: No such file" in _mistakes(write(text))
    (tmp_path / "recipients").write_text(f"# who can read\n{RECIPIENT}  # the vault\n\n")
    assert load_settings(write(text)).keys.recipients == (RECIPIENT,)
    (tmp_path / "recipients").write_text("nonsense\n")
    assert "line 1" in _mistakes(write(text))


def test_nobody_to_read_the_backups_is_a_mistake(write: Callable[[str], Path]) -> None:
    assert "nobody could read" in _mistakes(write(GOOD.replace(f'recipients = ["{RECIPIENT}"]', "")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "this is required"),
        (b"\xff\xfe", "not UTF-8"),
        (GOOD[: GOOD.index("[[region]]")].encode(), "keys: this is required"),
        (GOOD[:-10].encode(), "not TOML"),
        (hashlib.shake_256(b"garbage").digest(4096), "not UTF-8"),
        (b"a = 1\na = 2\n", "not TOML"),
        (b"x = " + b"[" * 100_000, "not"),
        (b"#" * (CONFIG_BYTES_MAX + 1), "more than"),
    ],
    ids=["empty", "utf16", "cut", "cut-in-a-string", "garbage", "twice", "deep", "huge"],
)
def test_a_damaged_file_is_refused_in_words(
    write: Callable[[bytes], Path], content: bytes, words: str
) -> None:
    assert words in _mistakes(write(content))


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    assert "not a file" in _mistakes(tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_are_settings_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigRefused):
        load_settings(path)


@given(st.integers(0, len(GOOD)), st.integers(0, 40))
def test_any_cut_out_part_gives_settings_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.toml"
    path.write_text(GOOD[:start] + GOOD[start + length :])
    try:
        load_settings(path)
    except ConfigRefused:
        return


def test_what_init_writes_reads_back(tmp_path: Path) -> None:
    new = NewConfig(
        cluster="main",
        dsn='host=/run/x user="odd name"',
        slot="pitr",
        repository=ID,
        root=ROOT,
        recipients=(RECIPIENT,),
        quorum=2,
        regions=(
            NewRegion("eu", "file:///srv/e%20u"),
            NewRegion("us", "s3://bucket", tmp_path / 'odd "name"'),
        ),
        signing_key_file=tmp_path / "signing.key",
        state_dir=tmp_path / "state",
        timezone="Europe/Berlin",
    )
    path = tmp_path / "pitr.toml"
    path.write_text(render_config(new))
    settings = load_settings(path)
    assert settings.cluster.dsn == new.dsn
    assert settings.regions[1].credentials_file == tmp_path / 'odd "name"'
    assert settings.keys.recipients == new.recipients
    assert settings.timezone == "Europe/Berlin"
    assert settings.daemon.state_dir == tmp_path / "state"


def test_lines_are_found_in_arrays_of_tables() -> None:
    text = '[[region]]\nname = "a"\n[[region]]\nname = "b"\n[keys]\nroot = "x"\n'
    assert line_of(text, ("region", 1, "name")) == 4
    assert line_of(text, ("region", 0, "url")) == 1
    assert line_of(text, ("keys", "root")) == 6
    assert line_of(text, ("daemon",)) is None
    assert tomllib.loads(text)["region"][1] == {"name": "b"}
