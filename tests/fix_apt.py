"""Programs that only a distribution's packages give: found, or the test fails with the package's name."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

import pytest

TIMEOUT_S = 60.0
# A user's path often lacks the places of the administrator's programs.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


@dataclass(frozen=True, slots=True)
class AptProgram:
    """A program that was found; ``run`` waits for its end."""

    path: str

    def run(
        self, *words: object, stdin: str = "", timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; output and errors are one text, in the order in which they came."""
        return subprocess.run(
            [self.path, *map(str, words)],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def must(self, *words: object, stdin: str = "", timeout_s: float = TIMEOUT_S) -> str:
        """Run it and return what it said; fail with that unless it ended with 0."""
        done = self.run(*words, stdin=stdin, timeout_s=timeout_s)
        said = f"{self.path} {' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}"
        assert done.returncode == 0, said
        return done.stdout


def apt_program(name: str, package: str) -> AptProgram:
    """Return the program; fail, and say which package has it, where it is missing."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.fail(
            f"there is no {name} on this machine; on Debian and Ubuntu: apt-get install {package}",
            pytrace=False,
        )
    return AptProgram(found)


@pytest.fixture(scope="session")
def promtool() -> AptProgram:
    """Prometheus's own judge of metrics and rules."""
    return apt_program("promtool", "prometheus")


@pytest.fixture(scope="session")
def systemd_analyze() -> AptProgram:
    """systemd's own judge of units; systemd need not run."""
    return apt_program("systemd-analyze", "systemd")


@pytest.fixture(scope="session")
def openssl() -> AptProgram:
    """What an auditor verifies a signature with by hand."""
    return apt_program("openssl", "openssl")
