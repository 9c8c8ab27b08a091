"""Event backups into your own bucket."""
