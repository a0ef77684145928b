"""A long suite goes on where it was stopped: what has passed is noted in a file, and is not run again.

`make test-all` gives each of its parts a file under the commit's name.  A test is noted once its teardown has
passed too; a test that is interrupted, fails or errs anywhere is not noted, and runs again.  How a test
failed stands at once in a second file beside it, ``FILE-not``: a run that is stopped prints nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("pitr").addoption(
        "--passed", type=Path, metavar="FILE", help="skip the tests noted in FILE, and note there what passes"
    )


def pytest_configure(config: pytest.Config) -> None:
    file: Path | None = config.getoption("passed")
    if file is None:
        return
    # Every worker must collect the same, also one that is started late: the controller reads once for all.
    workerinput: dict[str, object] | None = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.pluginmanager.register(_Deselect(frozenset(str(workerinput["passed"]).splitlines())))
        return
    text = file.read_text() if file.exists() else ""
    config.pluginmanager.register(_Note(file, text))
    config.pluginmanager.register(_Deselect(frozenset(text.splitlines())))


class _Deselect:
    def __init__(self, passed: frozenset[str]) -> None:
        self._passed = passed

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self._passed]
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item.nodeid not in self._passed]


class _Note:
    """Lives in the controller only, where the reports of every worker arrive."""

    def __init__(self, file: Path, text: str) -> None:
        self._file, self._text = file, text
        self._spoilt: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["passed"] = self._text

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._spoilt.add(report.nodeid)
            with self._file.with_name(self._file.name + "-not").open("a") as out:
                out.write(f"{report.nodeid} {report.outcome} in {report.when}\n{report.longreprtext}\n\n")
        elif report.when == "teardown" and report.nodeid not in self._spoilt:
            with self._file.open("a") as out:
                out.write(report.nodeid + "\n")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # Nothing left to run is what was wanted.
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._text:
            session.exitstatus = pytest.ExitCode.OK
