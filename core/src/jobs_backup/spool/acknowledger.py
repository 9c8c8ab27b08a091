"""Acknowledgements of many threads, in common transactions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs_backup.errors import SpoolError
from jobs_backup.spool.group_commit import GroupCommit
from jobs_backup.spool.ids import JobSet


@dataclass
class Added:
    """The result of an acknowledgement: all jobs were acknowledged but these.

    Attributes:
        unknown: not raw events of this spool.
        unreadable: could not be looked up, because of `error`.
    """

    unknown: JobSet
    unreadable: JobSet
    error: SpoolError | None = None


class Acknowledger:
    """Acknowledge for many threads, which share a transaction because each of them waits for the disk."""

    def __init__(self, add: Callable[[JobSet], Added]) -> None:
        """`add` remembers in one transaction that jobs were delivered. It may be called again with the same ones."""
        self._add = add
        self._turns = GroupCommit[_Acknowledgement](self._commit)
        self.acknowledged = 0
        """Number of ids acknowledged, including repeated ones."""

    def add(self, jobs: JobSet) -> JobSet:
        """Mark jobs as delivered, durably. Returns the unknown ones. Raises SpoolError even if only some cannot be looked up."""
        this = _Acknowledgement(jobs)
        self._turns.commit(this)
        if this.added.error is not None and this.added.unreadable & jobs:
            raise copy.copy(this.added.error) from this.added.error
        return this.added.unknown & jobs

    def _commit(self, group: Sequence[_Acknowledgement]) -> None:
        jobs = JobSet()
        for one in group:
            jobs.update(one.jobs)
        added = self._add(jobs)
        self.acknowledged += len(jobs) - len(added.unknown) - len(added.unreadable)
        for one in group:
            one.added = added


class _Acknowledgement:
    def __init__(self, jobs: JobSet) -> None:
        self.jobs = jobs
        self.added = Added(JobSet(), JobSet())
