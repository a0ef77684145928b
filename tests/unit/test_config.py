"""The configuration: read into settings, and all its mistakes told at once."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.config import (
    CONFIG_BYTES_MAX,
    find_config,
    find_config_or_none,
    line_of,
    load_settings,
)
from cli.config_mistakes import MISTAKES_MAX
from cli.config_template import NewConfig, NewRegion, render_config, without_schedule
from cli.errors import ConfigRefused, UsageRefused
from pitr.errors import NotInitialised
from pitr.pipeline.keys import Identity, best_suite
from pitr.priority import Priority
from pitr.strain import StrainBounds

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
    assert (settings.wal.piece_bytes, settings.wal.piece_age_s) == (4 << 20, 1.0)
    assert 2 <= settings.wal.puts_in_flight <= 4
    assert settings.backup.full_every_s == 86_400
    assert (settings.retention.window_s, settings.retention.minimum_backups) == (35 * 86_400, 2)
    assert (settings.daemon.metrics_host, settings.daemon.metrics_port) == ("127.0.0.1", 9187)
    assert settings.timezone is None


def test_durations_are_numbers_with_units(write: Callable[[str], Path]) -> None:
    text = GOOD + 'metrics_listen = "off"\ndrain = 5\n[backup]\nfull_every = "never"\ndeadline = "90 min"\n'
    settings = load_settings(write(text))
    assert settings.daemon.metrics_port is None
    assert settings.daemon.drain_s == 5
    assert settings.backup.full_every_s is None
    assert settings.backup.deadline_s == 5400


def test_a_window_is_ten_seconds_at_least_and_some_full_backup_always_stays(
    write: Callable[[str], Path],
) -> None:
    settings = load_settings(write(GOOD + '[retention]\npitr_window = "400d"\nminimum_backups = 1\n'))
    assert settings.retention.window_s == 400 * 86_400
    with pytest.raises(ConfigRefused) as caught:
        load_settings(write(GOOD + '[retention]\npitr_window = "5s"\nminimum_backups = 0\n'))
    assert "retention.pitr_window" in str(caught.value.detail)
    assert "retention.minimum_backups" in str(caught.value.detail)


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
        "repository.quorum": "5 regions are wanted, but there are only 2",
        "repository.qorum": "there is no such setting; did you mean 'quorum'?",
        "region[1].name": "'eu' is given twice",
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
    assert [int(line.split(":")[0].removeprefix("line ")) for line in detail.splitlines()] == sorted(
        int(line.split(":")[0].removeprefix("line ")) for line in detail.splitlines()
    )
    assert "geheim" not in detail


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("quorum = 2", "quorum = 3", "repository.quorum: 3 regions are wanted"),
        ('name = "us"', 'name = "eu"', "region[1].name: 'eu' is given twice"),
        (
            "s3://bucket/main?region=us-east-1",
            "file:///srv/eu/",
            "region[1].url: 'file:///srv/eu' is given twice",
        ),
        (f'recipients = ["{RECIPIENT}"]', "", "keys: give either recipients or recipients_file"),
        (
            f'recipients = ["{RECIPIENT}"]',
            'recipients_file = "none"',
            "keys.recipients_file: No such file",
        ),
        ("[daemon]", "[daemon]\nspool_bytes_max = 8388608\n[daemon.x]", "daemon.spool_bytes_max"),
    ],
    ids=["quorum", "name", "url", "nobody", "recipients-file", "spool"],
)
def test_no_mistake_hides_what_settings_say_together(
    write: Callable[[str], Path], old: str, new: str, name: str
) -> None:
    other = 'dsn = ""'
    text = GOOD.replace('dsn = "host=/run/postgresql user=postgres"', other).replace(old, new)
    # A piece of the largest size, so that a small spool is no place for two.
    detail = _mistakes(write(text + "[wal]\npiece_bytes = 8388608\nputs_in_flight = 0\n"))
    assert "cluster.dsn: " in detail
    assert "wal.puts_in_flight: " in detail
    assert name in detail


def test_a_value_that_is_wrong_itself_contradicts_nothing(write: Callable[[str], Path]) -> None:
    detail = _mistakes(write(GOOD.replace("quorum = 2", 'quorum = "2"').replace('name = "us"', "name = 5")))
    assert detail.splitlines() == [
        "line 7: repository.quorum: expected a whole number",
        "line 14: region[1].name: expected text in quotes",
    ]
    assert "recipients" not in _mistakes(write(GOOD.replace(f'["{RECIPIENT}"]', "5"))).replace(
        "keys.recipients: expected a list: [...]", ""
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[daemon]", "[damon]\nx = 1\n[daemon]", "damon: there is no such setting; did you mean 'daemon'?"),
        (
            "quorum = 2",
            "quorum = 2\nslot = 'x'",
            "repository.slot: there is no such setting here; it stands under [cluster]",
        ),
        ("[daemon]", "[daemon]\ntimezone = 'UTC'", "it stands at the top of the file"),
        ("quorum = 2", "quorum = 2\nzzz = 1", "repository.zzz: there is no such setting"),
        ("quorum = 2", 'quorum = 2\n"\\u001b[2Jx" = 1', "repository.'\\x1b[2Jx': there is no such setting"),
        ("[cluster]", "[[cluster]]", "line 2: cluster: expected a table with settings of its own: [cluster]"),
        (
            '[[region]]\nname = "us"',
            '[postgres]\nbin_dir = "x"\n[wal]\nname = "us"',
            "wal.name: there is no such setting here",
        ),
    ],
)
def test_a_setting_that_is_not_known_is_told_with_what_is_probably_meant(
    write: Callable[[str], Path], old: str, new: str, told: str
) -> None:
    assert told in _mistakes(write(GOOD.replace(old, new)))


def test_one_region_in_single_brackets_is_told_how_to_write_it(write: Callable[[str], Path]) -> None:
    first, second = GOOD.index("[[region]]"), GOOD.rindex("[[region]]")
    text = GOOD[:second] + GOOD[GOOD.index("[keys]") :]
    text = text[:first] + text[first:].replace("[[region]]", "[region]")
    assert "region: expected [[region]], in two brackets" in _mistakes(write(text))


def test_so_many_mistakes_are_counted_and_the_first_are_told(write: Callable[[str], Path]) -> None:
    text = GOOD + "".join(f"x{number} = 1\n" for number in range(20_000))
    with pytest.raises(ConfigRefused) as caught:
        load_settings(write(text))
    assert "has 20000 mistakes" in caught.value.message
    assert (caught.value.detail or "").splitlines()[-1] == f"and {20_000 - MISTAKES_MAX} more"


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
        (GOOD.encode().replace(b"main", b"m\xe4in"), "line 15: this is not UTF-8"),
        (b"\x00" * 100, "not TOML"),
        (b"x = " + b"9" * 5000, "not TOML"),
        (b"a." * 20_000 + b"b = 1", "dots"),
    ],
    ids=[
        "empty",
        "utf16",
        "cut",
        "cut-in-a-string",
        "garbage",
        "twice",
        "deep",
        "huge",
        "latin-1",
        "zeros",
        "digits",
        "dots",
    ],
)
def test_a_damaged_file_is_refused_in_words(
    write: Callable[[bytes], Path], content: bytes, words: str
) -> None:
    assert words in _mistakes(write(content))


def test_what_is_no_file_is_no_configuration(tmp_path: Path) -> None:
    assert "it is a directory" in _mistakes(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "it is not a file" in _mistakes(pipe)
    assert "File name too long" in _mistakes(find_config(tmp_path / ("x" * 5000)))


@contextmanager
def _without_rights() -> Iterator[None]:
    """Be nobody for a while, if we are root: root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_told_as_such_and_not_as_missing(
    server_tmp_path: Path, closed: str
) -> None:
    folder = server_tmp_path / "etc"
    folder.mkdir()
    path = folder / "pitr.toml"
    path.write_text(GOOD)
    (path if closed == "file" else folder).chmod(0)
    with _without_rights():
        assert "Permission denied" in _mistakes(find_config(path))
    folder.chmod(0o755)


def test_a_link_to_nothing_is_not_passed_over_for_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    other = tmp_path / ".config/pitr/pitr.toml"
    other.parent.mkdir(parents=True)
    other.write_text(GOOD)
    assert find_config_or_none(None) == other
    (tmp_path / "pitr.toml").symlink_to("gone.toml")
    found = find_config_or_none(None)
    assert found == Path("pitr.toml")
    assert "it is not a file" in _mistakes(found)


def test_a_named_file_that_is_missing_is_wrong_usage_and_none_at_all_is_not_initialised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageRefused, match="there is no configuration file"):
        find_config(tmp_path / "none.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if not Path("/etc/pitr/pitr.toml").exists():
        with pytest.raises(NotInitialised, match="no configuration was found"):
            find_config(None)


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
    assert (settings.backup.full_every_s, settings.backup.incr_every_s) == (86_400, 3_600)
    path.write_text(without_schedule(render_config(new)))
    alone = load_settings(path)
    assert (alone.backup.full_every_s, alone.backup.incr_every_s) == (None, None)
    unscheduled = replace(settings.backup, full_every_s=None, incr_every_s=None)
    assert alone == replace(settings, backup=unscheduled)


def test_lines_are_found_in_arrays_of_tables() -> None:
    text = '[[region]]\nname = "a"\n[[region]]\nname = "b"\n[keys]\nroot = "x"\n'
    assert line_of(text, ("region", 1, "name")) == 4
    assert line_of(text, ("region", 0, "url")) == 1
    assert line_of(text, ("keys", "root")) == 6
    assert line_of(text, ("daemon",)) is None
    assert tomllib.loads(text)["region"][1] == {"name": "b"}


def test_kindness_is_set_in_words_that_people_type(write: Callable[[str | bytes], Path]) -> None:
    text = GOOD + (
        '[backup]\nrate_limit = "50 MiB/s"\nnice = 0\nio_class = "idle"\npause_lag = "64MiB"\n'
        'pause_latency = "200ms"\n'
    )
    found = load_settings(write(text)).backup
    assert found.rate_limit == 50 << 20
    assert found.priority == Priority(0, "idle")
    assert found.strain == StrainBounds(64 << 20, None, 0.2)
    unset = load_settings(write(GOOD)).backup
    assert (unset.rate_limit, unset.priority) == (None, Priority(10, "best-effort"))
    assert not unset.strain.are_set
    assert load_settings(write(GOOD + '[backup]\npause_lag = "10s"\n')).backup.strain.lag_s == 10


def test_an_objective_for_recovery_is_off_unless_it_is_set(write: Callable[[str | bytes], Path]) -> None:
    assert load_settings(write(GOOD)).backup.rto_objective_s is None
    for text, seconds in (('"5m"', 300.0), ('"off"', None)):
        found = load_settings(write(GOOD + f"[backup]\nrto_objective = {text}\n")).backup
        assert found.rto_objective_s == seconds


@pytest.mark.parametrize(
    "line",
    [
        *('rto_objective = "8d"', "rto_objective = 0", 'rto_objective = "soon"'),
        *('rate_limit = "50 MiB"', 'rate_limit = "1 B/s"', "rate_limit = 5", 'rate_limit = "fast/s"'),
        *("nice = -5", "nice = 20", 'io_class = "realtime"', 'pause_lag = "64"', 'pause_lag = "much"'),
        *('pause_latency = "64 MiB"', 'pause_latency = "1h"', "pause_latency = 0.2"),
    ],
)
def test_a_slip_in_a_limit_is_told_with_its_line(write: Callable[[str | bytes], Path], line: str) -> None:
    assert line.split(" =", maxsplit=1)[0] in _mistakes(write(GOOD + f"[backup]\n{line}\n"))


def test_the_members_of_a_patroni_cluster_are_read(write: Callable[[str], Path]) -> None:
    lines = 'dsn = "user=postgres"\npatroni = ["http://pg1:8008", "https://pg2"]\npatroni_ca_file = "ca.pem"'
    path = write(GOOD.replace('dsn = "host=/run/postgresql user=postgres"', lines))
    cluster = load_settings(path).cluster
    assert cluster.patroni == ("http://pg1:8008", "https://pg2")
    assert cluster.patroni_ca_file == path.parent / "ca.pem"
    assert cluster.patroni_key_file is None


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('patroni = ["pg1:8008"]', "not a URL of Patroni's REST interface"),
        ('patroni = ["http://user:secret@pg1"]', "not a URL of Patroni's REST interface"),
        ('patroni_ca_file = "ca.pem"', "there are none"),
        ('patroni = ["https://a"]\npatroni_key_file = "k"', "which is not given"),
        (f"patroni = {['http://a'] * 33}", "at most 32"),
    ],
)
def test_what_cannot_be_meant_of_patroni_is_told(
    write: Callable[[str], Path], lines: str, words: str
) -> None:
    path = write(GOOD.replace("[repository]", f"{lines}\n[repository]"))
    with pytest.raises(ConfigRefused) as told:
        load_settings(path)
    assert words in str(told.value.detail)


@pytest.mark.parametrize(
    ("dsn", "is_good"),
    [
        ("host=a,b user=u", False),
        ("hostaddr='10.0.0.1,10.0.0.2'", False),
        ("postgresql://u@a:1,b:2/postgres", False),
        ("postgresql:///?host=a,b", False),
        ("host=a,b target_session_attrs=read-write", True),
        ("postgresql://a,b/?target_session_attrs=standby", True),
        ("host=a options='-c search_path=a,b'", True),
    ],
)
def test_several_hosts_need_a_word_on_which_is_meant(
    write: Callable[[str], Path], dsn: str, is_good: bool
) -> None:
    path = write(GOOD.replace("host=/run/postgresql user=postgres", dsn))
    if is_good:
        assert load_settings(path).cluster.dsn == dsn
        return
    with pytest.raises(ConfigRefused) as told:
        load_settings(path)
    assert "target_session_attrs" in str(told.value.detail)
