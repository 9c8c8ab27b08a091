"""`jobs-backup serve`: an HTTP server in front of a Backup, for applications in any language."""
