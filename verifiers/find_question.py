"""Whether a text is a query: an empty server of the same version reads it, before anything is restored."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from pitr.postgres.instance import Instance
from pitr.postgres.server_user import hand_over
from pitr.postgres.yes_no import Question, check_syntax
from pitr.restore_journal import remove_tree
from verifiers.find_stage import StageSetting

_PORT: Final = 5432
_SETTINGS: Final = {"fsync": "off", "autovacuum": "off", "shared_buffers": "8MB", "max_connections": "10"}


def check_question(setting: StageSetting, question: Question) -> None:
    """Refuse what is no query; whether what it names exists is seen later.  Raises QuestionRefused."""
    folder = Path(tempfile.mkdtemp(prefix="pitr-find-"))
    hand_over(folder, setting.user)
    instance = Instance(
        setting.installation,
        # Where the scratch place looks for a server that a killed run left.
        setting.place.data_dir,
        user=setting.user,
        socket_dir=folder,
        port=_PORT,
        log_path=setting.place.path / "question.log",
    )
    try:
        instance.init(["--no-sync"])
        instance.start(_SETTINGS)
        check_syntax(instance.dsn, question, superuser="postgres")
    finally:
        instance.kill()
        remove_tree(setting.place.data_dir)
        remove_tree(folder)
