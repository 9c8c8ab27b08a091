"""From the spool to the store: uploads, multipart uploads, and deletes."""
