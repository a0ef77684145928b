"""THE DOMAIN: WAL, backups, sealing, catalogue, planning and restore.  No click, no print, no clock."""
