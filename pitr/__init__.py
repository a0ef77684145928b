"""THE DOMAIN: WAL, base backups, sealing, the catalogue, planning and restore.  No click, no print, no clock."""
