"""A spool in PostgreSQL, which any number of hosts share."""
