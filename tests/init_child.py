"""``pitr init`` killed at a step, and repeated: ``SIGKILL``, as a power cut does; at many steps in turn.

Arguments: a folder for all that is made, the server's DSN, the first step, and how many there are from one to
the next.  A step is whatever Python tells its audit hooks of that changes a file or a name (PEP 578).
The modules are loaded once and every run is a fork, for there are many runs.  Prints how many steps there
are; fails if a repeated run does not end as one that nothing happened to.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

_CHANGES = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.chmod", "shutil.rmtree", "tempfile.mkstemp"}
REGIONS = ("eu", "us", "ap")
_SHEET = "RECOVERY SHEET"


def _words(folder: Path, dsn: str) -> list[str]:
    words = ["init", "--pg", dsn, "--quorum", "2", "--non-interactive", "--create-directories", "--quiet"]
    words += ["--dir", str(folder / "pitr"), "--identity-out", str(folder / "vault" / "identity.toml")]
    words += ["--metrics", "off"]
    for name in REGIONS:
        words += ["--region", f"{name}={folder / 'regions' / name}"]
    return words


def _in_a_fork(run: Callable[[], int], log: Path) -> int:
    """Return the exit code of ``run``, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        code = 99
        try:
            code = run()
        except BaseException:  # noqa: BLE001 — a fork must never go on as its parent
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _dies_at(folder: Path, words: list[str], point: int) -> bool:
    """Run until the step ``point``; False if there are fewer."""
    from cli.main import run_cli

    left = point

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        is_change = event in _CHANGES and str(folder) in str(arguments)
        is_change = is_change or (
            event == "open" and arguments[1] in ("w", "wb") and str(folder) in str(arguments)
        )
        if is_change:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def run() -> int:
        sys.addaudithook(hook)
        return run_cli(words)

    code = _in_a_fork(run, folder.parent / "killed.log")
    assert code in (0, -signal.SIGKILL), (code, (folder.parent / "killed.log").read_text())
    return code != 0


def _check(folder: Path, point: int) -> None:
    """See that everything is there, once, and of one repository."""
    from cli.config import load_settings
    from cli.key_files import read_identity, read_signing_key
    from pitr.repository import Repository
    from storage.local import DirectoryStore

    settings = load_settings(folder / "pitr" / "pitr.toml")
    identity = read_identity(folder / "vault" / "identity.toml")
    assert settings.repository.repository == identity.repository, point
    assert settings.keys.root == str(identity.root), point
    writer = read_signing_key(settings.keys.signing_key_file).public
    for name in REGIONS:
        store = DirectoryStore(folder / "regions" / name)
        repository = Repository.open(store, identity.root, repository_id=identity.repository)
        archives = repository.archives()
        assert [archive.epoch for archive in archives] == [1], (point, archives)
        assert repository.verifier(archives[0]) == writer, point
    made = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "regions" not in path.parts)
    expected = ["pitr", "pitr/pitr.toml", "pitr/signing.key", "pitr/state", "vault", "vault/identity.toml"]
    assert made == expected, (point, made)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import psycopg

    import verifiers.store_probes  # noqa: F401 — loaded once, for all forks
    from cli.main import run_cli

    top, dsn, point, stride = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    folder, log = top / "site", top / "repeated.log"
    while True:
        folder.mkdir()
        words = _words(folder, dsn)
        is_killed = _dies_at(folder, words, point)
        code = _in_a_fork(partial(run_cli, words), log)
        text, killed_text = log.read_text(), (top / "killed.log").read_text()
        assert code == 0, f"killed at step {point}, repeated: exit {code}\n{text}"
        assert _SHEET in text + killed_text, f"killed at step {point}, the keys are never shown"
        if not is_killed:
            assert _SHEET not in text, "the keys are shown again"
            assert str(folder / "vault" / "identity.toml") in text, "where the keys are is not said"
        _check(folder, point)
        shutil.rmtree(folder)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_drop_replication_slot('pitr')")
        if not is_killed:
            break
        point += stride
    print(point)


if __name__ == "__main__":
    main()
