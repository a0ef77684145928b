"""DOUBT: reads what the others made, and reports.  Changes nothing but its own scratch place."""
