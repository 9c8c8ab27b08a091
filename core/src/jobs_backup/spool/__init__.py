"""The durable local store between the application and the bucket.

`catalog.py` has all state, `blobs.py` the bytes, `locks.py` tells which process is alive, `writer.py` records and seals, and
`spool.py` joins them.
"""

from jobs_backup.spool.catalog import Waiting
from jobs_backup.spool.spool import Spool

__all__ = ["Spool", "Waiting"]
