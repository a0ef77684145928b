"""The entry point: dispatch, the global options, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

WAL_FETCH = ("wal", "fetch")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``pitr`` and leave with its exit code (docs/exit-codes.md)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # PostgreSQL runs this once per WAL segment and reads the exit code in its own way: it must not
    # pay for importing click, nor ever see click's exit code 2, which it would take for the end of WAL.
    at = next((at for at in range(len(words)) if tuple(words[at : at + 2]) == WAL_FETCH), None)
    if at is not None and not {"-h", "--help"} & set(words):
        from cli.wal_fetch import run

        sys.exit(run([*(word for word in words[:at] if word == "--json"), *words[at + 2 :]]))
    _leave(run_cli(words))


def run_cli(words: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    from cli.memory import settle_memory

    settle_memory()
    import click

    from cli.commands import pitr
    from cli.context import App
    from cli.ends_with import end_with_starter
    from cli.errors import ExitCode, UsageRefused, describe
    from cli.output import Output

    app = App(output=Output(is_json="--json" in words))
    _die_like_interrupted()
    end_with_starter()
    try:
        result = pitr.main(list(words), prog_name="pitr", standalone_mode=False, obj=app)
        # Outside its stand-alone mode click returns the code of ctx.exit(), as after --help.
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        if not app.output.is_json:
            error.show()
            return int(ExitCode.USAGE)
        failure = describe(UsageRefused("no command is given", hint=f"{error.ctx.command_path} --help"))
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "pitr"
        app.output.command = path.removeprefix("pitr").strip()
        failure = describe(UsageRefused(error.format_message().rstrip("."), hint=f"{path} --help"))
    except (click.Abort, KeyboardInterrupt):
        failure = describe(KeyboardInterrupt())
    except click.ClickException as error:
        failure = describe(UsageRefused(error.format_message()))
    except BrokenPipeError:
        # The reader of our output went away (| head): nobody is left to tell.
        sys.stderr.close()
        return 1
    except Exception as error:  # noqa: BLE001 — the top of the program: every error becomes an exit code
        if app.verbosity:
            import traceback

            traceback.print_exc(file=sys.stderr)
        failure = describe(error)
    app.output.fail(failure, app.partial_result)
    return int(failure.exit_code)


def _leave(code: int) -> NoReturn:
    """Leave with ``code``, also where standard output cannot be written: Python would make that 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _die_like_interrupted() -> None:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that commands clean up; the daemon replaces this."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


if __name__ == "__main__":
    main()
