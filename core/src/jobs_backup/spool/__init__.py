"""The durable local store between the application and the bucket.

`writer.py` records and seals; `blobs.py` has the bytes, `catalog.py` all state, with `uploads.py` the journal of uploads in it and
`deliveries.py` what was delivered; `locks.py` tells which process is alive; `spool.py` joins them.
"""

from jobs_backup.spool.sqlite.deliveries import DueObject, WaitingDeletes
from jobs_backup.spool.sqlite.rows import Waiting
from jobs_backup.spool.sqlite.spool import Claim, Spool

__all__ = ["Claim", "DueObject", "Spool", "Waiting", "WaitingDeletes"]
