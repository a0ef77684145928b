"""What people type: sizes, rates, durations and pairs."""

from __future__ import annotations

import pytest

from cli.errors import ExitCode, UsageRefused, describe
from cli.units import parse_duration, parse_pair, parse_rate, parse_size, read_duration_option
from pitr.errors import MalformedValue


def test_a_rate_out_of_bounds_says_which_bound_it_breaks() -> None:
    assert parse_rate("16 KiB/s") == 16 * 1024
    assert parse_rate("1024 TiB/s") == 1 << 50
    with pytest.raises(MalformedValue, match="at least 16 KiB/s"):
        parse_rate("15 KiB/s")
    with pytest.raises(MalformedValue, match="at most 1024 TiB/s, or none"):
        parse_rate("1025 TiB/s")


def test_a_duration_has_a_unit() -> None:
    assert [parse_duration(text) for text in ("200ms", "60s", "5 min", "1.5h", "2d")] == [
        0.2,
        60,
        300,
        5400,
        172_800,
    ]
    for text in ("", "60", "-1s", "1 week", "soon"):
        with pytest.raises(MalformedValue, match="not a duration"):
            parse_duration(text)


def test_absurd_numbers_are_refused_in_words() -> None:
    for text in ("9" * 400 + "KiB", "1." + "9" * 400 + " GiB"):
        with pytest.raises(MalformedValue, match="not a size"):
            parse_size(text)
    with pytest.raises(MalformedValue, match="not a duration"):
        parse_duration("9" * 400 + "d")
    with pytest.raises(MalformedValue, match="at most a hundred years"):
        parse_duration("40000d")


def test_a_pair_has_two_sides_and_its_value_may_hold_an_equals_sign() -> None:
    assert parse_pair("eu=s3://b/p?region=x", "--region NAME=URL") == ("eu", "s3://b/p?region=x")
    for text in ("eu", "=file", "eu=", ""):
        with pytest.raises(UsageRefused, match="not --region NAME=URL"):
            parse_pair(text, "--region NAME=URL")


def test_a_duration_on_the_command_line_is_refused_as_wrong_usage_with_its_form() -> None:
    assert read_duration_option("--due", "14d") == 14 * 86_400.0
    with pytest.raises(UsageRefused, match="--due: not a duration: 'soon'") as caught:
        read_duration_option("--due", "soon")
    assert describe(caught.value).exit_code is ExitCode.USAGE
    assert describe(caught.value).why == "write a number with ms, s, min, h or d, such as 60s"
