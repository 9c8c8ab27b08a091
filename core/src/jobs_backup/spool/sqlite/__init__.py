"""A spool in a directory: SQLite files on a local disk."""
