"""Prove that the sweep finds faults: remove one guard of the code at a time, and expect a violation."""

from __future__ import annotations
import __future__

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final

import msgspec
from faults.injector import Fault
from faults.runner import Call, Violation, Worker
from faults.scenarios import SCENARIOS
from faults.sweep import ERRORS

_RUNS: Final = 60
_ALL: Final = 1000
"""Consecutive faults, so that retries fail, too."""


@dataclass(frozen=True)
class Sabotage:
    """A guard to remove.

    Attributes:
        place: module:qualified.name of the function.
        guard, instead: text in its source, dedented, and the replacement.
        scenario, calls: which calls to fail. `calls` is a regular expression, matched against "name path site".
        found: kinds of violations, at least one of which must follow.
        kind, count: see `Fault`.
        also: further (place, guard, instead): other guards of the same promise, which would make up for this one.
    """

    name: str
    place: str
    guard: str
    instead: str
    scenario: str
    calls: str
    found: frozenset[str]
    kind: str = "calls"
    count: int = 1
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        """All changes: (place, guard, instead)."""
        return ((self.place, self.guard, self.instead), *self.also)


class GuardIsGone(LookupError):
    """The code has changed: rewrite the sabotage."""


def commit(sabotage: Sabotage) -> None:
    """Remove the guards in this process, wherever the functions are imported.

    Raises:
        GuardIsGone: a guard is missing, or not unique.
    """
    for place, guard, instead in sabotage.edits:
        function, source = guarded(place, guard)
        flags = __future__.annotations.compiler_flag
        compiled = compile(source.replace(guard, instead), function.__code__.co_filename, "exec", flags, dont_inherit=True)
        codes = [one for one in compiled.co_consts if isinstance(one, CodeType) and one.co_name == function.__name__]
        function.__code__ = codes[0]


def guarded(place: str, guard: str) -> tuple[FunctionType, str]:
    """Find the function with the guard at a place (module:qualified.name); return it and its source.

    Raises:
        GuardIsGone: the guard is missing, or not unique.
    """
    module, _, name = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = inspect.getattr_static(found, part)
    except (ImportError, AttributeError) as error:
        raise GuardIsGone(f"{place} does not exist") from error
    found = found.fget if isinstance(found, property) else found
    function = inspect.unwrap(found)
    source = textwrap.dedent(inspect.getsource(function))
    if not isinstance(function, FunctionType) or source.count(guard) != 1:
        raise GuardIsGone(f"{place} has {guard!r} {source.count(guard)} times")
    return function, source


def find(sabotage: Sabotage, directory: Path, library: Path, *, limit: float, tell: Callable[[str], None]) -> Violation | None:
    """The first violation that the sabotage causes; None if there is none."""
    with ExitStack() as stack:
        scenario = SCENARIOS[sabotage.scenario]
        spoiled = stack.enter_context(Worker(directory / "spoiled", library, scenario, limit=limit, sabotage=sabotage.name))
        sound = stack.enter_context(Worker(directory / "sound", library, scenario, limit=limit))
        calls, harm = spoiled.look(sabotage.kind)
        for violation in harm:
            if violation.kind in sabotage.found:  # the unchanged code has none: `survey` raises
                sound.survey(sabotage.kind)
                tell(f"{sabotage.name}: found without a fault: {violation.line()}")
                return violation
        chosen = _chosen(sabotage, calls)
        for number, fault in enumerate(chosen[:_RUNS], 1):
            for violation in spoiled.run(fault).violations:
                if violation.kind not in sabotage.found:
                    continue
                if violation.kind in {one.kind for one in sound.run(fault).violations}:
                    tell(f"{sabotage.name}: not counted, since the sound code fails as well: {violation.line()}")
                    continue
                tell(f"{sabotage.name}: found by run {number}: {violation.line()}")
                return violation
        tell(f"{sabotage.name}: NOT FOUND by {min(len(chosen), _RUNS)} runs")
    return None


def _chosen(sabotage: Sabotage, calls: list[Call]) -> list[Fault]:
    """Every place with the first error, then every place with the next."""
    matching = [call for call in calls if re.search(sabotage.calls, f"{call.name} {call.path} {' < '.join(call.site)}")]
    places = {(call.where, call.part): call for call in reversed(matching)}
    errors = ERRORS if sabotage.kind == "calls" else (0,)
    return [
        msgspec.structs.replace(call.fault(sabotage.kind), error=error, count=sabotage.count)
        for error in errors
        for call in reversed(places.values())
    ]


def _suppressed(statement: str, errors: str, *, indent: int) -> str:
    margin = " " * indent
    return f"{margin}try:\n{margin}    {statement}\n{margin}except {errors}:\n{margin}    pass"


ALL: Final = {
    one.name: one
    for one in (
        Sabotage(
            name="a directory that could not be synced passes for synced",
            place="jobs_backup.util.fsync:sync_directory",
            guard="        sync_file(descriptor)",
            instead=_suppressed("sync_file(descriptor)", "OSError", indent=8),
            scenario="archive",
            calls="^fsync bucket/.*_publish",
            found=frozenset({"unsynced"}),
        ),
        Sabotage(
            name="a link that fails passes for an object that exists",
            place="jobs_backup.store.file_provider:FileProvider._publish",
            guard="except FileExistsError:\n            exists = True",
            instead="except OSError as error:\n            raise AlreadyExists(key) from error",
            scenario="archive",
            calls="^linkat bucket/.*_publish",
            found=frozenset({"false success", "lost"}),
        ),
        Sabotage(
            name="a batch is marked as stored before it is written",
            place="jobs_backup.archive.archiver:Archiver._upload",
            guard="    if batch.wrappers:",
            instead="    self._spool.stored(batch)\n    if batch.wrappers:",
            scenario="archive",
            calls="^linkat bucket/.*_publish",
            count=_ALL,
            found=frozenset({"false success", "lost"}),
        ),
        Sabotage(
            name="a provider that is unavailable passes for one that has stored",
            place="jobs_backup.archive.archiver:Archiver._upload",
            guard="except AlreadyExists:",
            instead="except (AlreadyExists, Unavailable):",
            scenario="archive",
            calls="^linkat bucket/.*_publish",
            count=_ALL,
            found=frozenset({"false success", "lost"}),
        ),
        Sabotage(
            name="a batch that failed is not given back",
            place="jobs_backup.archive.archiver:Archiver._failed",
            guard="    self._release(batch, error, delay)",
            instead="    pass",
            scenario="archive",
            calls="^linkat bucket/.*_publish",
            count=_ALL,
            found=frozenset({"silent failure", "false success", "hang", "not healed"}),
        ),
        Sabotage(
            name="run goes on where lines could not be kept",
            place="jobs_backup.cli.commands.run:EventHandler.keep",
            guard="    self._session.keep([recording])",
            instead=_suppressed("self._session.keep([recording])", "Exception", indent=4),
            scenario="run",
            calls="group_commit.py",
            found=frozenset({"false success", "lost"}),
        ),
        Sabotage(
            name="acknowledgements that could not be kept pass for taken",
            place="jobs_backup.cli.commands.delivered:DeliveryHandler.keep",
            guard="except UnknownJob as error:\n        self._summary.unknown(error)",
            instead="except Exception:\n        pass",
            scenario="delivered",
            calls="delivered.py.* keep",
            found=frozenset({"false success"}),
        ),
        Sabotage(
            name="serve answers 200 to what it could not keep",
            place="jobs_backup.inputs.http.app:App._record",
            guard="    await self._async.keep(recording)",
            instead=_suppressed("await self._async.keep(recording)", "JobsBackupError", indent=4),
            scenario="serve",
            calls="group_commit.py",
            found=frozenset({"false success", "lost"}),
        ),
        Sabotage(
            name="replay forgets an object that could not be read",
            place="jobs_backup.replay.replay:Replay.run",
            guard="            self.damaged.append(Damaged(found.key, error))",
            instead="            pass",
            scenario="replay",
            calls="^(stat64|open64) bucket/ios",
            count=_ALL,
            found=frozenset({"false success", "silent failure"}),
        ),
        Sabotage(
            name="an error of the spool ends the command as it is",
            place="jobs_backup.cli.options:with_environment",
            guard="except (ConfigurationError, SpoolError) as error:",
            instead="except ConfigurationError as error:",
            also=(("jobs_backup.cli:_run", "except JobsBackupError as error:", "except click.exceptions.Exit as error:"),),
            scenario="archive",
            calls="^open64 spool/catalog.db .*catalog.py:[0-9]* __init__",
            found=frozenset({"traceback"}),
        ),
        Sabotage(
            name="recorded events are not synced",
            place="jobs_backup.spool.sqlite.database:Database.__init__",
            guard='f"PRAGMA synchronous={_SYNCHRONOUS[durability]}"',
            instead='"PRAGMA synchronous=OFF"',
            scenario="run",
            calls="^fdatasync spool/blobs",
            found=frozenset({"unsynced"}),
        ),
        Sabotage(
            name="events whose commit failed pass for recorded",
            place="jobs_backup.spool.sqlite.blobs:Changes.make",
            guard='            connection.execute("COMMIT")',
            instead=_suppressed('connection.execute("COMMIT")', "Exception", indent=12),
            scenario="run",
            calls="^(pwrite64|fdatasync) spool/blobs.*group_commit.py",
            found=frozenset({"false success", "lost"}),
        ),
        Sabotage(
            name="what is known of open batches is kept after a failure",
            place="jobs_backup.spool.sqlite.writer:Writer._in_step",
            guard="    self._known = False\n",
            instead="",
            scenario="serve",
            calls="^(pwrite64|fdatasync) spool/blobs.*group_commit.py",
            found=frozenset({"miscounted", "lost", "false success"}),
        ),
        Sabotage(
            name="a dead file that could not be read passes for damaged",
            place="jobs_backup.spool.sqlite.spool:SqliteSpool._take_over",
            guard="        self._files.confirm_damage(name)\n",
            instead="",
            scenario="archive-open",
            calls="^pread64 spool/blobs.*_take_over",
            found=frozenset({"quarantined", "lost"}),
        ),
        Sabotage(
            name="blob files that cannot be listed pass for none",
            place="jobs_backup.spool.sqlite.blobs:BlobFiles.names",
            guard="with database_errors(self._directory), os.scandir(self._directory) as entries:",
            instead="for entries in [list(self._directory.glob('*'))]:",  # treats EACCES as an empty directory
            scenario="archive-open",
            calls="^opendir spool/blobs",
            found=frozenset({"quarantined", "lost"}),
        ),
        Sabotage(
            name="what cannot be taken over is not in the account",
            place="jobs_backup.spool.sqlite.spool:SqliteSpool.account",
            guard="            if session in self._catalog.blob_files():  # else it has ended meanwhile",
            instead="            if False:",
            also=(("jobs_backup.spool.sqlite.spool:SqliteSpool._recover", "        self._unreadable[session] = error\n", ""),),
            scenario="archive-open",
            calls="^(open64|stat64) spool/blobs.*_recover",
            count=_ALL,
            found=frozenset({"false success"}),
        ),
        Sabotage(
            name="a file is removed although batches in it wait",
            place="jobs_backup.spool.sqlite.catalog:Catalog.is_needed",
            guard="return found.fetchone() is not None",
            instead="return False",
            also=(
                (
                    "jobs_backup.spool.sqlite.spool:SqliteSpool._clean_up",
                    "if unsent := self._catalog.unsent_of(self._batches_in(name)):",
                    "if unsent := []:",
                ),
            ),
            scenario="archive",
            calls="^linkat bucket/.*_publish",
            count=_ALL,
            found=frozenset({"lost", "quarantined", "not healed"}),
        ),
        Sabotage(
            name="the proof is not asked",
            place="jobs_backup.cli.summary:Summary._look",
            guard="        self.problem(error)\n    self._open_elsewhere",
            instead="        pass\n    self._open_elsewhere",
            scenario="archive-open",
            calls="^(open64|stat64) spool/blobs.*_recover",
            count=_ALL,
            found=frozenset({"false success"}),
        ),
    )
}
