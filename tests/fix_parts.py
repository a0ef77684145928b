"""Which tests one worker takes together: a file's, since they share servers; a long file is cut in parts.

A test with ``partN`` in its id is of the N-th part of its file.  Another worker may take that, and starts
servers of its own.
"""

from __future__ import annotations

import re

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

PART = re.compile(r"[\[-]part\d+[\]-]")


class PartScheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        found = PART.search(nodeid)
        return file + found.group().strip("[]-") if found else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> PartScheduling:
    return PartScheduling(config, log)
