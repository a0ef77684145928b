"""Names of strangers in reports and on terminals: nothing in them is obeyed."""

from __future__ import annotations

import io

import pytest

from cli.errors import ExitCode, Failure
from cli.output import Output
from verifiers.check_maker import clean, clean_name

OBEYED = ["\x1b[2J", "\x9b2J", "\r", "\x07", "\x7f", "\u202e", "\u2066", "\u200f", "\u061c", "\x85", "\u2028"]


@pytest.mark.parametrize("sign", OBEYED, ids=ascii)
def test_no_sign_that_a_terminal_obeys_leaves_the_program(sign: str) -> None:
    name = f"shop{sign}copy"
    out, err = io.StringIO(), io.StringIO()
    output = Output(stdout=out, stderr=err, color="always")
    output.line(name)
    output.line(name, head="OK", color="32")
    output.table(["name"], [[name]], empty="none")
    output.note(name)
    output.warn(name)
    output.fail(Failure(7001, ExitCode.NOT_VERIFIED, name, name, name))
    written = out.getvalue().replace("\x1b[32mOK\x1b[0m", "") + err.getvalue().replace(
        "\x1b[1;31m", ""
    ).replace("\x1b[0m", "")
    assert sign[0] not in written
    assert written.count("shop?") == 8
    for cleaned in (clean(name), clean_name(name)):
        assert cleaned.startswith("shop?")
        assert sign[0] not in cleaned


def test_text_keeps_its_lines_and_tabs_and_a_name_has_none() -> None:
    assert clean("a\tb\nc") == "a\tb\nc"
    assert clean_name("a\tb\nc") == "a?b?c"
    assert clean_name("") == "?"
    assert len(clean_name("x" * 5000)) == 300
    out = io.StringIO()
    Output(stdout=out).table(["a", "b"], [["one\ttwo", "x\ny"]], empty="none")
    assert out.getvalue().splitlines()[1:] == ["one?two  x?y"]
