"""Counts of the requests to the server, for the metrics."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Final

from jobs_backup.backup.session import Session
from jobs_backup.monitoring import health as monitoring
from jobs_backup.util.histogram import Histogram

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Requests:
    """Counts requests.

    Attributes:
        answered: (path, status) -> count; the status is 0 if the client was gone.
        seconds: path -> time until the answer was sent.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}

    def add(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.answered[path, status] += 1
        if path not in self.seconds:
            self.seconds[path] = Histogram(SECONDS)
        self.seconds[path].observe(seconds)

    def show(self, session: Session) -> None:
        """Add the counts to a Session's metrics, if installed: they need an extra."""
        if importlib.util.find_spec("prometheus_client") is not None:
            from jobs_backup.monitoring.metrics import RequestMetrics  # an extra

            monitoring.registry(session).register(RequestMetrics(self.answered, self.seconds))
