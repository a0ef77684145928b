"""docs/schema/: the published JSON Schema of a report, made from the shape that the program checks.

python -m cli.schema_page > docs/schema/restore-verification-v2.schema.json
"""

from __future__ import annotations

import sys

from verifiers.report_shape import render_schema

if __name__ == "__main__":
    sys.stdout.write(render_schema())
