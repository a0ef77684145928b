-- The catalogue: a cache of what the store's signed objects say, and an index over it.
-- Losing it costs a listing (`pitr catalogue rebuild`).  A change here needs a new user_version,
-- and no migration: an older file is refused and rebuilt.
-- LSNs are 16 hexadecimal digits, so that text order is their order and 2**64 - 1 fits.
-- Columns named regions, and the table regions, say where copies were seen; they are no content (see dump).

CREATE TABLE epochs (
    system_identifier TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (system_identifier, epoch)
) STRICT;

CREATE TABLE histories (
    system_identifier TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    timeline TEXT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (system_identifier, epoch, timeline)
) STRICT;

CREATE TABLE backups (
    system_identifier TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    backup TEXT NOT NULL,
    object_sha256 TEXT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (system_identifier, epoch, backup)
) STRICT;

-- One row for each stored piece, until a whole segment holds the same WAL: then one for the segment.
CREATE TABLE wal_units (
    key TEXT NOT NULL PRIMARY KEY,
    system_identifier TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    timeline TEXT NOT NULL,
    segment TEXT NOT NULL,
    segment_bytes INTEGER NOT NULL,
    start_lsn TEXT NOT NULL,
    end_lsn TEXT NOT NULL,
    first_piece INTEGER NOT NULL,
    last_piece INTEGER NOT NULL,
    is_segment INTEGER NOT NULL,
    min_at TEXT,
    max_at TEXT,
    is_exact INTEGER,
    regions TEXT NOT NULL
) STRICT;

CREATE INDEX wal_units_by_place ON wal_units (system_identifier, epoch, timeline, start_lsn);
CREATE INDEX wal_units_by_piece ON wal_units (system_identifier, epoch, is_segment, first_piece);

-- The newest signed end of each archive.
CREATE TABLE heads (
    system_identifier TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    payload_sha256 TEXT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (system_identifier, epoch)
) STRICT;

CREATE TABLE regions (
    name TEXT NOT NULL PRIMARY KEY,
    is_healthy INTEGER NOT NULL,
    pending_objects INTEGER NOT NULL,
    seen_at TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

PRAGMA user_version = 1;
