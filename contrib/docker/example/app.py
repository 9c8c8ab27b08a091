"""Post events to `jobs-backup serve`, and continue once they are on disk. An application in any language would do the same.

Variables: BACKUP_URL, BACKUP_TOKEN, EVENTS (number of events), SOURCE_ID.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

URL = os.environ.get("BACKUP_URL", "http://127.0.0.1:8080")
TOKEN = os.environ.get("BACKUP_TOKEN", "")
SOURCE_ID = os.environ.get("SOURCE_ID", "web")
RETRIED = (429, 503)  # too many requests, or the spool is full or still opening; all others mean an invalid request


def post(path: str, events: list[dict[str, Any]], attempts: int = 10) -> dict[str, Any]:
    """Post events and return the response. It arrives once they are on disk: until then, the application must keep them."""
    body = "".join(json.dumps(event) + "\n" for event in events).encode()
    headers = {"Content-Type": "application/x-ndjson"}
    if TOKEN:
        headers["Authorization"] = f"Bearer {TOKEN}"
    request = urllib.request.Request(f"{URL}{path}", data=body, headers=headers, method="POST")  # noqa: S310 - the URL is the operator's
    for attempt in range(1, attempts + 1):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in RETRIED or attempt == attempts:
                raise
        except urllib.error.URLError:  # not started yet, or restarting
            if attempt == attempts:
                raise
        time.sleep(min(0.2 * 2**attempt, 5))
    raise AssertionError("not reached")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    count = int(os.environ.get("EVENTS", "100"))
    for first in range(0, count, 20):
        events = [
            # A unique id: readers of the archive can find an event that was posted twice because a response was lost.
            {"messageId": str(uuid.uuid4()), "type": "track", "event": "Order Completed", "userId": f"user-{n}", "n": n}
            for n in range(first, min(first + 20, count))
        ]
        post(f"/v1/events?source_id={SOURCE_ID}", events)
        logging.info("%d events are recorded", len(events))
    return 0


if __name__ == "__main__":
    sys.exit(main())
