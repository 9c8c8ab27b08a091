"""Record events with the library, into the spool from which `jobs-backup archive` uploads. EVENTS: number of events."""

from __future__ import annotations

import os
import uuid

from jobs_backup import Backup

with Backup.from_env(archive=False) as backup:  # archive=False: another process uploads
    for n in range(int(os.environ.get("EVENTS", "100"))):
        backup.record({"messageId": str(uuid.uuid4()), "event": "Order Completed", "n": n}, source_id="web")
    # Each event was on disk when record() returned. This process can end before any upload.
