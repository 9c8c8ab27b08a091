"""What applications use: `Backup`, `AsyncBackup`, events and jobs."""
