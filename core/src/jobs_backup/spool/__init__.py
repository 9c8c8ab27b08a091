"""The durable local store between the application and the bucket.

`catalog.py` has all state, `blobs.py` the bytes, `sessions.py` tells which process is alive, `writer.py` records and seals, and
`spool.py` joins them.
"""

from jobs_backup.spool.spool import Spool, Waiting

__all__ = ["Spool", "Waiting"]
