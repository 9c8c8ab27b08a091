"""An application that records with the library, into the spool that `jobs-backup archive` sends from. EVENTS: how many."""

from __future__ import annotations

import os
import uuid

from jobs_backup import Backup

with Backup.from_env(archive=False) as backup:  # archive=False: another process sends
    for n in range(int(os.environ.get("EVENTS", "100"))):
        backup.record({"messageId": str(uuid.uuid4()), "event": "Order Completed", "n": n}, source_id="web")
    # Each was on disk when record() returned. Nothing has to be sent before this process ends.
