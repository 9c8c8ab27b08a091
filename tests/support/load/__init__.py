"""The sidecar under load from a second process, and killed meanwhile."""
