"""Programs that fork, with real servers and workers, and what they need to be counted event by event."""
