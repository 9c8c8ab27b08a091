-- The user of the recorders owns the database, so the first recorder creates the tables. In production, an administrator runs
-- `jobs-backup policy --spool`, and the user gets the role jobs_backup_archiver: docs/fleet.md.
CREATE USER recorder PASSWORD 'trial-database-secret';
ALTER DATABASE events OWNER TO recorder;
