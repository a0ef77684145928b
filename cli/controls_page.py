"""docs/controls.md, made from the table of controls.

python -m cli.controls_page > docs/controls.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from verifiers.controls import CHECK_ID, CONTROLS, PERIOD_NEEDS, Control

_PAGE_HEAD: Final = """\
# Controls that a report is evidence for

This page is made from `verifiers/controls.py` (`python -m cli.controls_page > docs/controls.md`),
and a test compares the two. So does the group `mapping` of every report, and of every period
report: nobody types it.

A report is *evidence for* a control; it never says that anybody is compliant. Whether a control is
met also rests on people, contracts and rooms that no program sees, and is for an auditor to say.
The titles are short paraphrases, not the rules' words; a rule that is only proposed says so.

* *satisfied*: all that is listed below for the control is there. A check counts if it PASSED. A
  field counts if it is there, and not false. `recoverability.regions>=2`: each of two regions holds
  alone what this run restored, or a drill restored it while one was cut off (D11); a second region
  in the configuration shows nothing. `result.rpo_met` counts of the latest moment alone.
* *partial*: some of it is there, or some of it speaks against: a check that FAILED or was WARNED,
  an objective that was missed. A run that FAILED is at most partial, of every control.
* *not-tested*: nothing of the first group is there.

What only a period can show leaves the control partial in every single report. Over a period a
control is satisfied only if no report that touches it was short of anything and the period's own
needs hold; the period report gives the counts.
"""


def render_page() -> str:
    """Return docs/controls.md."""
    parts = [_PAGE_HEAD]
    for framework in dict.fromkeys(control.framework for control in CONTROLS):
        rows = [control for control in CONTROLS if control.framework == framework]
        rule = rows[0].rule
        parts.append(f"\n## {framework}\n\nRule: {rule}.\n\n")
        parts.append(
            "| control | about | report's fields | without these not tested | all of these for satisfied |\n"
        )
        parts.append("|---|---|---|---|---|\n")
        parts += [_page_row(control) for control in rows]
    parts.append("\n## What only a period can show\n\n")
    parts += [
        f"* `{name}`: {words.removeprefix('over a period: ')}\n" for name, words in PERIOD_NEEDS.items()
    ]
    return "".join(parts)


def _page_row(control: Control) -> str:
    more = [*_marked(control.more), *(f"*{need}* (period)" for need in control.over)]
    cells = [
        control.control,
        control.title,
        ", ".join(_marked(control.fields)),
        ", ".join(_marked(control.core)),
        ", ".join(more) or "–",
    ]
    return "| " + " | ".join(cells) + " |\n"


def _marked(names: Sequence[str]) -> list[str]:
    return [name if CHECK_ID.fullmatch(name) else f"`{name.replace('|', ' or ')}`" for name in names]


if __name__ == "__main__":
    sys.stdout.write(render_page())
