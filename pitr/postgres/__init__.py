"""What talks to a PostgreSQL server, reads its data directory, or writes in its formats."""
