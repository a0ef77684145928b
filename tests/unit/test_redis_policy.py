"""What is declared of Redis' namespaces, and what comes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.derived.policy import (
    After,
    Matcher,
    Namespace,
    Policy,
    Treatment,
    is_stale,
    next_epoch,
    plan_digest,
    treat,
)
from pitr.errors import MalformedValue

CACHE = Namespace("cache:", Policy.DROP)
PAGE = Namespace("page:", Policy.EPOCH, counter="pitr:epoch:page")
SESSION = Namespace("session:", Policy.KEEP, is_sessions=True)
TOKEN = Namespace("session:token:", Policy.RESTORE, is_sessions=True)
SETTING = Namespace("setting:", Policy.KEEP)
ALL = (CACHE, PAGE, SESSION, TOKEN, SETTING)


def policies(after: After, *keep: str) -> dict[str, Policy]:
    return {one.namespace.prefix: one.policy for one in treat(ALL, after, frozenset(keep))}


def test_after_ransomware_every_namespace_of_sessions_goes_but_those_that_are_named() -> None:
    declared = {one.prefix: one.policy for one in ALL}
    assert policies(After.RESTORE) == declared
    gone = {"session:": Policy.DROP, "session:token:": Policy.DROP}
    assert policies(After.RANSOMWARE) == {**declared, **gone}
    assert policies(After.RANSOMWARE, "session:")["session:"] is Policy.KEEP
    assert policies(After.RANSOMWARE, "session:")["session:token:"] is Policy.DROP
    assert policies(After.RESTORE, "cache:")["cache:"] is Policy.KEEP
    with pytest.raises(MalformedValue, match="sesion:"):
        policies(After.RANSOMWARE, "sesion:")


def test_a_key_belongs_to_the_longest_prefix_and_an_epoch_stands_before_it() -> None:
    matcher = Matcher(treat(ALL, After.RESTORE))

    def place(key: bytes) -> tuple[str, int | None] | None:
        found = matcher.place(key)
        return None if found is None else (found.treatment.namespace.prefix, found.epoch)

    assert place(b"session:token:1") == ("session:token:", None)
    assert place(b"session:1") == ("session:", None)
    assert place(b"v42:page:1") == ("page:", 42)
    assert place(b"page:1") == ("page:", None)
    # Only namespaces with epochs have them in their names.
    assert place(b"v42:cache:1") is None
    assert place(b"v:page:1") is None
    assert place(b"cach") is None
    assert place(b"\xff\xfe") is None


def test_the_counter_is_never_dropped_whatever_its_name_begins_with() -> None:
    namespaces = (Namespace("pitr:", Policy.DROP), PAGE)
    matcher = Matcher(treat(namespaces, After.RANSOMWARE))
    assert matcher.is_own(b"pitr:epoch:page")
    assert matcher.is_own(b"{pitr:epoch:page}:run")
    assert not matcher.is_own(b"pitr:epoch:other")


def test_only_what_is_older_than_the_new_epoch_is_stale_and_nothing_before_it_was_raised() -> None:
    treatments = treat(ALL, After.RESTORE)
    matcher = Matcher(treatments)
    raised = {"page:": 10}

    def stale(key: bytes, epochs: dict[str, int]) -> bool:
        place = matcher.place(key)
        assert place is not None
        return is_stale(place, epochs)

    assert [stale(key, raised) for key in (b"page:1", b"v9:page:1", b"v10:page:1", b"v11:page:1")] == [
        True,
        True,
        False,
        False,
    ]
    assert not stale(b"v9:page:1", {})
    assert stale(b"cache:1", {})
    assert not stale(b"session:1", raised)


@given(st.none() | st.integers(0, 10**12), st.integers(0, 10**10))
def test_an_epoch_is_above_the_counter_and_not_below_the_clock(current: int | None, now_s: int) -> None:
    new = next_epoch(current, now_s)
    assert new > (current or 0) or (current is None and new == max(1, now_s))
    assert new >= now_s
    # A counter that was evicted does not begin again below what applications have had.
    assert next_epoch(None, now_s + 1) > next_epoch(None, now_s) or now_s == 0


@given(
    st.dictionaries(st.text(min_size=1, max_size=6), st.sampled_from(list(Policy)), max_size=8), st.binary()
)
def test_the_namespace_found_is_the_longest_that_begins_the_key(
    declared: dict[str, Policy], tail: bytes
) -> None:
    namespaces = [
        Namespace(prefix, policy, counter=f"c{at}" if policy is Policy.EPOCH else None)
        for at, (prefix, policy) in enumerate(declared.items())
    ]
    matcher = Matcher(treat(namespaces, After.RESTORE))
    for prefix in [*declared, ""]:
        key = prefix.encode() + tail
        found = matcher.place(key)
        fitting = [one for one in declared if key.startswith(one.encode())]
        if found is not None and found.epoch is None:
            assert found.treatment.namespace.prefix == max(fitting, key=lambda one: len(one.encode()))
        elif found is None:
            assert not fitting


def test_a_plan_is_the_same_whatever_the_order_and_another_with_another_policy() -> None:
    treatments = treat(ALL, After.RESTORE)
    assert plan_digest("a", treatments) == plan_digest("a", treatments[::-1])
    assert plan_digest("a", treatments) != plan_digest("b", treatments)
    assert plan_digest("a", treatments) != plan_digest("a", treat(ALL, After.RANSOMWARE))


def test_a_namespace_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(MalformedValue):
        Namespace("", Policy.DROP)
    with pytest.raises(MalformedValue):
        Namespace("a:", Policy.DROP, counter="c")
    with pytest.raises(MalformedValue):
        Namespace("a:", Policy.EPOCH)
    with pytest.raises(MalformedValue):
        Namespace("a:", Policy.EPOCH, counter="no{braces}")
    with pytest.raises(MalformedValue):
        Matcher([Treatment(CACHE, Policy.DROP), Treatment(CACHE, Policy.KEEP)])
