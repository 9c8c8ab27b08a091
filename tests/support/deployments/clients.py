"""Clients that post events, each with its own id, and note those that got a 200."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from deployments.counting import Receipts
from deployments.programs import wait_until

_CLIENTS = 6
_PAUSE_SECONDS = 0.02


class Clients:
    """Threads that post until stopped. A request without an answer is abandoned, and its id is not used again.

    Attributes:
        answered: number of acknowledged events.
    """

    def __init__(self, port: int, receipts: Receipts) -> None:
        self.answered = 0
        self._port = port
        self._receipts = receipts
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post_until_stopped, args=(number,)) for number in range(_CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _post_until_stopped(self, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            id_ = f"client-{client}-{number}"
            try:
                status = self._post(id_)
            except (OSError, http.client.HTTPException):  # its worker was killed
                time.sleep(_PAUSE_SECONDS)
                continue
            if status != 200:
                time.sleep(_PAUSE_SECONDS)
                continue
            self._receipts.add(id_)
            with self._lock:
                self.answered += 1

    def _post(self, id_: str) -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)) as connection:
            connection.request("POST", "/", json.dumps({"messageId": id_}))
            answer = connection.getresponse()
            answer.read()
            return answer.status


@contextmanager
def clients(port: int, receipts: Receipts) -> Iterator[Clients]:
    made = Clients(port, receipts)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def disturb(count: Callable[[], int], events: int, disturbances: int, disturb_once: Callable[[int], None]) -> None:
    """Run a disturbance at even intervals while `count()` grows to the number of events."""
    for number in range(1, disturbances + 1):
        wait_until(lambda number=number: count() >= events * number // (disturbances + 1), f"{events} events")  # type: ignore[misc]
        disturb_once(number)
    wait_until(lambda: count() >= events, f"{events} events")
