"""`jobs-backup serve`: an HTTP server before a Backup, for applications in any language."""
