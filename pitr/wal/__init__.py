"""WAL as values: positions, timelines, segment names, and the pure walk over records."""
