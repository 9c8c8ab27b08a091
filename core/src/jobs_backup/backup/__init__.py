"""What applications call: `Backup`, `AsyncBackup`, events and jobs."""
