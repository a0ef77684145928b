"""The catalogue: a cache and an index of the store in SQLite, which can always be rebuilt."""
