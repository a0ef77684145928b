"""The page of exit codes: docs/exit-codes.md's tables, made from the table of errors."""

from __future__ import annotations

from cli.errors import EXIT_MEANINGS, RULES


def exit_code_table() -> str:
    """Return docs/exit-codes.md's two tables in Markdown."""
    lines = ["| code | meaning |", "|---|---|"]
    lines += [f"| {code.value} | {meaning} |" for code, meaning in EXIT_MEANINGS.items()]
    lines += [
        "",
        "| error | exit code | meaning | next, if the message names nothing better |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| PITR-{rule.number:04d} | {rule.exit_code.value} | {rule.meaning} | {rule.next} |"
        for rule in sorted(RULES, key=lambda rule: (rule.exit_code, rule.number))
    ]
    return "\n".join(lines) + "\n"
