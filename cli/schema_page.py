"""docs/schema/: the published JSON Schemas of reports, made from the shapes that the program checks.

python -m cli.schema_page > docs/schema/restore-verification-v2.schema.json
python -m cli.schema_page period > docs/schema/period-report-v1.schema.json
"""

from __future__ import annotations

import sys

from verifiers.period_shape import render_period_schema
from verifiers.report_shape import render_schema

if __name__ == "__main__":
    sys.stdout.write(render_period_schema() if sys.argv[1:] == ["period"] else render_schema())
