"""Forking programs with real servers and workers, and the tools to count their events one by one."""
