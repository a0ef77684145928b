"""docs/controls.md, made from the table of controls.

python -m cli.controls_page > docs/controls.md
"""

from __future__ import annotations

import sys

from verifiers.controls import render_page

if __name__ == "__main__":
    sys.stdout.write(render_page())
