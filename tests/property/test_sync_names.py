"""``synchronous_standby_names`` as PostgreSQL reads it, which is asked itself."""

from __future__ import annotations

import psycopg
import pytest
from fix_postgres import PostgresFactory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pitr.errors import MalformedValue
from pitr.postgres.sync_names import NOBODY, SyncMethod, SyncNames

_names = st.one_of(
    st.sampled_from(["pitr", "PITR", "*", "any", "first", "replica1", "", 'a"b', "a b", "7"]),
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\n"), max_size=8),
)
_values = st.builds(
    SyncNames,
    st.sampled_from(SyncMethod),
    st.integers(1, 4),
    st.lists(_names, min_size=1, max_size=4).map(tuple),
)
_pieces = st.sampled_from(
    [
        *("any", "ANY", "First", "1", "0", "02", "(", ")", ",", "*", "pitr", '"pitr"', '"a""b"', '"', '""'),
        *(" ", "\t", "a-b", "_x$1", "1a", "ü", "anyone", ";"),
    ]
)
_texts = st.lists(_pieces, max_size=9).map("".join)


@pytest.mark.parametrize(
    ("text", "method", "count", "names"),
    [
        ("pitr", "FIRST", 1, ("pitr",)),
        ('a, "B"', "FIRST", 1, ("a", "B")),
        ("2(a,b)", "FIRST", 2, ("a", "b")),
        ("FIRST 2 (a, b)", "FIRST", 2, ("a", "b")),
        ("any 1 (pitr, replica1)", "ANY", 1, ("pitr", "replica1")),
        ("*", "FIRST", 1, ("*",)),
        ("7", "FIRST", 1, ("7",)),
        ("7, x", "FIRST", 1, ("7", "x")),
        ('"a"",b"', "FIRST", 1, ('a",b',)),
        ("anyone", "FIRST", 1, ("anyone",)),
    ],
)
def test_a_value_means_what_the_manual_says(
    text: str, method: str, count: int, names: tuple[str, ...]
) -> None:
    assert SyncNames.parse(text) == SyncNames(SyncMethod(method), count, names)


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "a b",
        "any",
        "any 1",
        "any 1 ()",
        "0 (a)",
        "first 0 (a)",
        "a,",
        ",a",
        "1a",
        '"a',
        "a-b",
        "2 (a) b",
    ],
)
def test_what_postgresql_refuses_is_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        SyncNames.parse(text)


@given(_values)
def test_a_value_is_read_as_it_was_written(value: SyncNames) -> None:
    assert SyncNames.parse(str(value)) == value


@given(_values, st.lists(st.sampled_from(["replica1", "other", "7", "PITR"]), max_size=5))
def test_without_us_commits_never_hang_for_us(value: SyncNames, others: list[str]) -> None:
    left = value.without("pitr")
    if "*" not in value.names:
        assert not left.names_standby("pitr")
    # Whoever had enough others before has enough of them after.
    strangers = [name for name in others if name != "PITR"]
    if value.names_standby("pitr") and not value.hang_without("pitr", strangers):
        assert sum(map(left.names_standby, strangers)) >= left.count
    if value.names_nobody_but("pitr"):
        assert value.hang_without("pitr", strangers)
        assert left == NOBODY


def test_one_of_several_is_asked_less_of_the_others() -> None:
    assert str(SyncNames.parse("ANY 2 (pitr, r1, r2)").without("pitr")) == 'ANY 1 ("r1", "r2")'
    assert str(SyncNames.parse("ANY 1 (pitr, r1)").without("pitr")) == ""
    assert str(SyncNames.parse("r1, Pitr").without("pitr")) == ""
    assert SyncNames.parse("ANY 1 (pitr, r1)").hang_without("pitr", [])
    assert not SyncNames.parse("ANY 1 (pitr, r1)").hang_without("pitr", ["R1"])
    assert SyncNames.parse("2 (*)").hang_without("pitr", ["r1"])
    assert not SyncNames.parse("r1").hang_without("pitr", [])


@pytest.mark.parametrize("major", [17, 18])
def test_a_server_refuses_and_takes_the_same_texts(postgres_factory: PostgresFactory, major: int) -> None:
    server = postgres_factory(major)
    taken = []
    with psycopg.connect(server.dsn, autocommit=True) as session:

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.one_of(_texts, _values.map(str)))
        def agree(text: str) -> None:
            change = sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(text))
            try:
                session.execute(change)
            except (psycopg.errors.InvalidParameterValue, psycopg.errors.SyntaxError):
                with pytest.raises(MalformedValue):
                    SyncNames.parse(text)
            else:
                taken.append(SyncNames.parse(text))

        agree()
    assert len(taken) > 50
