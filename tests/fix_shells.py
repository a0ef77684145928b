"""The shells that may be a database host's /bin/sh: those that are here, in ``make test-all`` all of them."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from fix_apt import apt_program

_OTHERS = {"dash": "dash", "bash": "bash --posix", "busybox": "busybox sh"}


def shell_params() -> list[Any]:
    """Return parameters for a fixture, a shell's words each; one that is not here fails in ``needs_apt``."""
    params = [pytest.param("sh", id="sh")]
    for name, words in _OTHERS.items():
        marks = () if shutil.which(name) else (pytest.mark.needs_apt,)
        params.append(pytest.param(words, id=name, marks=marks))
    return params


def shell_words(words: str) -> list[str]:
    """Return a parameter as a command that is found whatever the path is then; fail where it is missing."""
    program, *rest = words.split()
    return [apt_program(program, program).path, *rest]
