"""The end of commands that upload: upload as much as possible, report what is where, and choose the exit code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from jobs_backup.archive.archiver import Archiver
from jobs_backup.backup.session import Session
from jobs_backup.cli.options import INCOMPLETE, REJECTED, echo_message, machine_errors
from jobs_backup.cli.progress import Progress
from jobs_backup.cli.streams import print_json
from jobs_backup.errors import JobsBackupError, SpoolCorrupt, UnknownJob
from jobs_backup.inputs.rejects import rejected_lines
from jobs_backup.spool.interface import Waiting, WaitingDeletes
from jobs_backup.util.logs import logger_of, plural

log: Final = logger_of(__name__)

Counted = Literal["events", "ids", "failures"]
"""What a command counts, named as in the JSON summary."""

_LOOK: Final = 0.1
_REPORTED: Final = 20


class Unfinished(NamedTuple):
    """A last line without its end."""

    input: str
    line: int
    bytes: int


class Summary:
    """What a command has done."""

    def __init__(self, session: Session, counted: Counted, *, go_on: str = "", of_all: bool = False, records: bool = True) -> None:
        """`go_on` says how to read the rest of an input, empty if that is impossible.

        `of_all`: it is complete only once nothing is left in the spool, including other processes' events.
        `records`: whether the command counts anything, rather than only uploading.
        """
        self._session = session
        self._records = records
        self._of_all = of_all
        self._counted: Counted = counted
        self._go_on = go_on
        self._began = time.monotonic()
        self.count = 0
        self.rejected = 0
        self.rejects: list[Path] = []
        self._rejected_before: dict[Path, int] = {}
        self.unfinished: list[Unfinished] = []
        self.resumed = False
        self.problems: list[JobsBackupError] = []
        self._unknown = 0
        self._last: int | None = None
        self._waiting: list[Waiting] = []
        self._deletes: list[WaitingDeletes] = []
        self._open_uploads: list[tuple[str, str, str]] = []
        self._open_elsewhere = 0

    def problem(self, error: JobsBackupError) -> None:
        """Note an error, once."""
        if error.one_line() not in (one.one_line() for one in self.problems):
            self.problems.append(error)

    def remember_rejects(self, path: Path) -> None:
        """Count lines that earlier runs rejected, as long as their file exists. Raises SpoolError."""
        if path not in self._rejected_before and (lines := rejected_lines(path)):
            self._rejected_before[path] = lines

    def unknown(self, error: UnknownJob) -> None:
        """Report acknowledged jobs that are unknown."""
        for job in error.jobs[: max(0, _REPORTED - self._unknown)]:
            echo_message(f"job {job} is unknown to {self._session.spool.name}", "UnknownIds")
        self._unknown += error.count

    def finish(self, stop: threading.Event, shown: Progress) -> None:
        """Seal, upload until nothing more can be uploaded now, and close; once `stop` is set, within the grace period.

        A failure is a problem, but no reason to skip the rest: a full disk must not prevent uploads of sealed batches.
        """
        for step in (self._session.spool.seal, lambda: self._send(stop, shown), self._look):
            # Twice: the disk may only have been busy, and the second attempt may complete the step.
            if _error_of(step) is not None and (error := _error_of(step)) is not None:
                self.problem(error)
        if (error := _error_of(lambda: self._session.close(grace=0))) is not None:
            if self._is_complete:  # proven complete: the next start cleans up
                log.warning("the spool was not closed cleanly, the next start cleans up: %s", error.one_line())
            else:
                self.problem(error)

    def _send(self, stop: threading.Event, shown: Progress) -> None:
        archiver = self._session.archiver
        if archiver is None:
            return
        archiver.wake()
        self._note_last()
        until: float | None = None
        while not (drained := archiver.drain(_LOOK)) or self._is_sent_elsewhere():
            shown.look()
            if until is None and (drained or stop.is_set()):  # another uploading process may hang
                until = time.monotonic() + self._session.settings.shutdown_grace
            if until is not None and time.monotonic() > until:
                break
            if drained:
                archiver.wait(_LOOK)
        archiver.abort_abandoned()

    def _note_last(self) -> None:
        """Do not wait for what other processes record from now on, unless all is to be uploaded."""
        self._last = None if self._of_all else self._session.spool.last_batch()

    def _is_sent_elsewhere(self) -> bool:
        return self._counted != "ids" and any(one.sent_elsewhere for one in self._session.spool.waiting(self._last))

    def _look(self) -> None:
        """Prove that nothing is left, from what each session and file holds, not from the absence of errors."""
        try:
            account = self._session.spool.account()
        except JobsBackupError:
            account = None
        if account is None or account.problems:  # the disk may only have been busy, or another process may just have died
            self._session.spool.recover()
            self._note_last()
            if self._session.archiver is not None:
                self._session.archiver.wake()
                self._session.archiver.drain(self._session.settings.shutdown_grace)
            account = self._session.spool.account()
        for error in account.problems:
            self.problem(error)
        self._open_elsewhere = account.open_elsewhere
        if self._session.archiver is not None and (failure := self._session.archiver.claim_failure) is not None:
            self.problem(failure)
        self._waiting = self._session.spool.waiting(self._last)
        self._deletes = self._session.spool.waiting_deletes()
        if self._unknown:
            hint = "acknowledge them on the spool that recorded them, within JOBS_BACKUP_CATALOG_DAYS"
            self.problem(UnknownJob(f"{plural(self._unknown, 'job id')} unknown, all others were accepted", hint=hint))
        if damages := self._session.spool.quarantined():
            self.problem(
                SpoolCorrupt(
                    f"damaged in the spool and quarantined: {plural(sum(damage.events for damage in damages), 'event')} or more,"
                    f" in {self._session.spool.quarantine}",
                    hint="`jobs-backup status` lists them; check the disk; remove the files once you have dealt with them",
                )
            )
        self._open_uploads = self._session.spool.uploads.waiting()

    @property
    def _is_complete(self) -> bool:
        # Acknowledgments are complete, whatever others have still to upload.
        waits = (bool(self._waiting) and self._counted != "ids") or (self._of_all and self._open_elsewhere > 0)
        return not waits and not self.problems

    def show(self, *, as_json: bool, interrupted: bool, allow_rejects: bool = False) -> int:
        """Print the summary. Returns the exit code."""
        complete = self._is_complete and not interrupted
        if as_json:
            try:
                print_json(self._as_dict(complete=complete))
            except JobsBackupError as error:
                echo_message(error.one_line(), error.code)
                return INCOMPLETE
        else:
            self._print(interrupted=interrupted)
        if not complete:
            return INCOMPLETE
        return REJECTED if (self.rejected or self._rejected_before) and not allow_rejects else 0

    def _as_dict(self, *, complete: bool) -> dict[str, Any]:
        archiver = self._session.archiver
        sent = archiver.sent if archiver else None
        return {
            "complete": complete,
            "store": self._session.location,
            self._counted: self.count,
            **({"unknown": self._unknown} if self._counted == "ids" else {}),
            "resumed": self.resumed,
            "rejected": self.rejected,
            "rejects": [str(path) for path in dict.fromkeys([*self.rejects, *self._rejected_before])],
            "rejected_before": sum(self._rejected_before.values()),
            "unfinished": [one._asdict() for one in self.unfinished],
            "objects": sent.objects if sent else 0,
            "stored_events": sent.events if sent else 0,
            "stored_bytes": sent.bytes if sent else 0,
            "deleted": archiver.deleter.deleted if archiver else 0,
            "seconds": round(time.monotonic() - self._began, 3),
            "waiting": self._waiting,
            "open_elsewhere": self._open_elsewhere,
            "waiting_deletes": self._deletes,
            "open_uploads": [{"key": key, "error": error, "hint": hint} for key, error, hint in self._open_uploads],
            "problems": [f"{one.one_line()} [{one.code}]" for one in self.problems],
        }

    def _done(self, archiver: Archiver) -> Iterator[str]:
        """What this command has done, excluding other processes' work."""
        sent, deleted = archiver.sent, archiver.deleter.deleted
        resumed = ", resumed where the last run ended" if self.resumed else ""
        if self._counted == "ids":
            unknown = f", {self._unknown:,} unknown" if self._unknown else ""
            yield f"{plural(self.count - self._unknown, 'event')} acknowledged{unknown}"
        elif self._records:
            yield f"{plural(self.count, self._counted.removesuffix('s'))} recorded{resumed}"
        if self._counted != "ids" or sent.objects:
            objects = f"{plural(sent.events, 'event')} in {plural(sent.objects, 'object')}"
            yield f"{objects} ({plural(sent.bytes, 'byte')}) uploaded to {self._session.location}"
        if deleted:
            yield f"{plural(deleted, 'object')} deleted, all of whose events were delivered"

    def _print(self, *, interrupted: bool) -> None:
        session, seconds = self._session, time.monotonic() - self._began
        if session.archiver is not None:
            echo_message(f"{'; '.join(self._done(session.archiver))}; {seconds:.1f} s")
        if self.rejected:
            echo_message(f"{plural(self.rejected, 'line')} rejected, in {', '.join(map(str, self.rejects))}", "Rejected")
        for path, lines in self._rejected_before.items():
            echo_message(
                f"{plural(lines, 'line')} rejected by earlier runs, in {path}: remove it once you have dealt with them", "Rejected"
            )
        for problem in self.problems:
            echo_message(problem.one_line(), problem.code)
        if interrupted:
            rest = f"{self._go_on} to resume" if self._go_on else "what was read until then is recorded"
            echo_message(f"interrupted: {rest}", "Interrupted")
        alternative = f"{self._go_on} or" if self._go_on else "run"
        for one in self._waiting:
            why = f": {one.error}: {one.hint}" if one.hint else f": {one.error}" if one.error else ""
            lost = "" if session.spool.name in one.error else "nothing is lost: "  # otherwise a file of the spool is missing
            echo_message(
                f"{plural(one.events, 'event')} {_verb(one.events, 'wait')} in {session.spool.name} for {one.location}{why}"
                f" — {lost}to upload them, {alternative} `jobs-backup archive --once`",
                "Waiting",
            )
        if self._of_all and self._open_elsewhere:
            echo_message(
                f"{plural(self._open_elsewhere, 'event')} in open batches of running processes, which seal them within"
                " JOBS_BACKUP_UPLOAD_FREQUENCY or when they end",
                "Waiting",
            )
        for deletes in self._deletes:
            why = f"{deletes.error}: {deletes.hint}" if deletes.error else "a request that writes them may still arrive"
            echo_message(f"{plural(deletes.objects, 'object')} in {deletes.location} still to be deleted: {why}", "DeletesWaiting")
        for key, error, hint in self._open_uploads:
            echo_message(f"an unfinished upload of {key} is still to be aborted: {error}: {hint}", "UploadOpen")


def _verb(count: int, verb: str) -> str:
    return f"{verb}s" if count == 1 else verb


def _error_of(step: Callable[[], object]) -> JobsBackupError | None:
    try:
        with machine_errors():
            step()
    except JobsBackupError as error:
        return error
    return None
