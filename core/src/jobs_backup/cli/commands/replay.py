"""`jobs-backup replay`: events back from the bucket, as NDJSON."""

from __future__ import annotations

import difflib
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import click
import msgspec

from jobs_backup.cli.options import INCOMPLETE, MISUSED, check_text, echo_message, one_option, with_environment
from jobs_backup.cli.process import read_settings, stopping, summarize_failures
from jobs_backup.cli.replay_output import OutputFile, Stdout
from jobs_backup.cli.streams import can_output, print_json
from jobs_backup.errors import ConfigurationError, JobsBackupError
from jobs_backup.format.keys import clean_prefix
from jobs_backup.format.lines import microseconds
from jobs_backup.model import Kind
from jobs_backup.replay import (
    Knowledge,
    Query,
    Replay,
    Selection,
    from_catalog,
    from_listing,
    read_cursor,
    sources_in,
    split_cursor,
    write_cursor,
)
from jobs_backup.replay import knowledge as find_knowledge
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.values import Duration
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.util.logs import plural, printable

_REPORTED: Final = 20


def _time(option: str, text: str | None) -> int | None:
    """Parse a time, into microseconds since 1970."""
    if text is None:
        return None
    if text[-1:].isalpha() and not text.endswith("Z"):  # without a unit it may mean a date, or seconds since 1970
        with suppress(ValueError):
            return int((time.time() - Duration.parse(text)) * 1_000_000)
    try:
        when = datetime.fromisoformat(text)
        return microseconds(when if when.tzinfo else when.replace(tzinfo=UTC))
    except ValueError:
        raise ConfigurationError(
            f"{option}: invalid time {text!r}", hint="write 2026-11-24, 2026-11-24T09:30:00Z, or 2h for two hours ago"
        ) from None


@click.command()
@one_option("--since", help="Start of the time range: 2026-11-24, 2026-11-24T09:30:00Z (UTC), or 2h for two hours ago.")
@one_option("--until", help="Exclusive end of the time range.")
@click.option("--source-id", "source_ids", multiple=True, help="Only events of this source. May be repeated.")
@click.option("--workspace-id", "workspace_ids", multiple=True, help="Only events of this workspace. May be repeated.")
@one_option(
    "--kind",
    type=click.Choice([kind.value for kind in Kind]),
    default="raw",
    show_default=True,
    help="Raw events, or delivery failures.",
)
@one_option("--limit", type=click.IntRange(min=1), help="Maximum number of events.")
@click.option("--payload-only", is_flag=True, help="Print only the payloads, byte for byte as recorded.")
@click.option("--list", "lists", is_flag=True, help="Find objects by listing the bucket instead of using the spool's catalog.")
@click.option(
    "--wrapped-only", is_flag=True, help="Skip objects that were not written through the wrappers of JOBS_BACKUP_WRAPPERS."
)
@one_option(
    "--after", default="", help="Resume after this cursor, printed by an earlier run of the same selection.", metavar="CURSOR"
)
@one_option(
    "--output",
    type=click.Path(path_type=Path),
    help="Output file. It gets its name once complete; the same command resumes it.",
)
@click.option("--dry-run", is_flag=True, help="Print only the number of objects and bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; requires --dry-run or --output.")
@with_environment
def replay(
    since: str | None,
    until: str | None,
    source_ids: tuple[str, ...],
    workspace_ids: tuple[str, ...],
    kind: str,
    limit: int | None,
    payload_only: bool,
    lists: bool,
    wrapped_only: bool,
    after: str,
    output: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Read events (or failures) back from the bucket, as NDJSON on standard output.

    Objects come in the order of their first events (with --list, those of the same second in the order of their keys), lines in the
    order in which they were recorded. Each object is verified before any of it is output. A damaged or missing one is reported, and
    the rest continues (exit code 1). Needs permission to read: `jobs-backup policy --with-replay`.

    \b
    Example:
      jobs-backup replay --source-id web --since 2h --dry-run --env-file docker.env
    """
    _check_texts(("--source-id", source_ids), ("--workspace-id", workspace_ids), ("--after", (after,)))
    _check_output(as_json=as_json, to_stdout=not (dry_run or output))
    summarize_failures()
    settings = read_settings()
    query = Query(
        kind=Kind(kind),
        since=_time("--since", since),
        until=_time("--until", until),
        source_ids=source_ids,
        workspace_ids=workspace_ids,
    )
    if query.since is not None and query.until is not None and query.since >= query.until:
        raise ConfigurationError(f"--since {since} is not before --until {until}", hint="swap them, or correct one")
    began = time.monotonic()
    with stopping() as stop:
        store = ObjectStore.from_settings(settings, os.environ, stop=stop)
        if wrapped_only and not store.wrappers.applied:
            raise ConfigurationError(
                "--wrapped-only needs a wrapper in JOBS_BACKUP_WRAPPERS that changes objects", hint="add it there"
            )
        place = clean_prefix(settings.prefix) if lists else None
        chosen = [store.location, place, kind, since, until, sorted(source_ids), sorted(workspace_ids), lists, wrapped_only]
        selection = msgspec.json.encode(chosen)
        begin, query = read_cursor(after, selection, query) if after else ("", query)
        asked = msgspec.json.encode([*chosen, payload_only, limit, after]).decode()
        target = OutputFile(output, asked, query) if output and not dry_run else Stdout(query, stop)
        begin, query = target.begin or begin, target.query
        found = Replay(
            store,
            query,
            payload_only=payload_only,
            wrapped_only=wrapped_only,
            limit=limit,
            window=settings.upload_concurrency,
        )
        knowledge, objects = _find(settings, store, query, "" if dry_run else begin, found.seen, stop, lists=lists)
        if dry_run:
            gaps = Gaps.of(query, knowledge, None if query.kind is Kind.FAILED else found.seen)
            _print_totals(objects, store.location, gaps, stop, as_json=as_json)
        begin, query, late = _resume(objects, target, found, begin, query, lists=lists)
        problem = _error_of(lambda: found.run(objects, target.write, stop, lambda: target.reached(found), begin))
        objects.close()
    gaps = Gaps.of(query, knowledge, found.seen if found.finished else None, late)
    complete = found.finished and problem is None and not found.damaged and not gaps
    if (unfinished := _error_of(target.finish if complete else target.leave)) is not None:
        problem, complete = problem or unfinished, False
    seconds = time.monotonic() - began
    cursor = write_cursor(found.cursor, selection, query) if found.cursor else ""
    if as_json:
        _print_summary(found, cursor, seconds, gaps, complete=complete)
    if target.is_closed:
        problem = None  # a reader such as `head` has what it wants
        echo_message("output closed early", "Incomplete", level=logging.INFO)
    _report(found, cursor, store.location, seconds, problem, target.part, gaps)
    if problem is not None:
        sys.exit(INCOMPLETE if problem.retryable else MISUSED)
    sys.exit(INCOMPLETE if found.damaged or stop.is_set() or gaps else 0)


def _check_texts(*given: tuple[str, Collection[str]]) -> None:
    for option, texts in given:
        for text in texts:
            check_text(option, text)


def _find(
    settings: CoreSettings,
    store: ObjectStore,
    query: Query,
    after: str,
    seen: set[str],
    stop: threading.Event,
    *,
    lists: bool,
) -> tuple[Knowledge | None, Selection]:
    """The objects, and what the catalog knows about the query; None with --list."""
    try:
        if lists:
            knowledge = None
            prefix = clean_prefix(settings.prefix)
            if query.kind is Kind.FAILED:  # sources may have none, and their keys do not name the source
                seen.update(sources_in(store, prefix, query), query.workspace_ids)
            each = from_listing(store, prefix, query, after, seen)
        else:
            knowledge = find_knowledge(settings.spool_place, store.location, query)
            if knowledge.elsewhere:
                echo_message(f"{plural(knowledge.elsewhere, 'object')} in other buckets skipped")
            each = from_catalog(settings.spool_place, store.location, query, after)
        return knowledge, Selection(itertools.takewhile(lambda _: not stop.is_set(), each))
    except JobsBackupError as error:
        echo_message(error.one_line(), error.code)
        sys.exit(INCOMPLETE if error.retryable else MISUSED)


def _resume(
    objects: Selection, target: OutputFile | Stdout, found: Replay, begin: str, query: Query, *, lists: bool
) -> tuple[str, Query, str]:
    """Where to begin, the query, and what this run misses because it was uploaded after an earlier run had passed its place."""
    late = _late(objects, begin, query, lists=lists)
    if late and target.restart():
        echo_message(f"{target.part} is rewritten from the start: {late}")
        begin, late = "", ""
    target.query = msgspec.structs.replace(query, looked_at=None if lists else objects.last_stored())
    target.restore(found)
    return begin, target.query, late


def _late(objects: Selection, begin: str, query: Query, *, lists: bool) -> str:
    """Objects uploaded since the cursor was written that belong before it, in words; empty if none."""
    if lists and begin:
        echo_message("--list cannot detect objects uploaded since that hold events from before the cursor: they are left out")
    if lists or query.looked_at is None:
        return ""
    count, first, last = objects.stored_late(split_cursor(begin)[0], query.looked_at)
    if not count:
        return ""
    times = " to ".join(datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for at in (first, last))
    return f"{plural(count, 'object')} uploaded since the cursor was written, with events from before it ({times})"


def _error_of(step: Callable[[], object]) -> JobsBackupError | None:
    try:
        step()
    except JobsBackupError as error:
        return error
    return None


def _check_output(*, as_json: bool, to_stdout: bool) -> None:
    if as_json and to_stdout:
        raise ConfigurationError("--json and the events both go to standard output", hint="add --dry-run or --output")
    if to_stdout and not can_output():
        raise ConfigurationError("events go to standard output, which is closed", hint="open it, or give --output")


class Gaps(NamedTuple):
    """Why a replay is incomplete although it wrote everything it found.

    Attributes:
        unseen: requested ids that were never seen.
        missing: why not everything can be found.
        late: what was uploaded too late for an earlier part of this replay.
    """

    unseen: tuple[str, ...]
    missing: str
    hint: str
    late: str = ""
    known_since: str = ""
    """When the catalog was created; empty with --list."""

    def __bool__(self) -> bool:
        return bool(self.unseen or self.missing or self.late)

    @classmethod
    def of(cls, query: Query, knowledge: Knowledge | None, seen: Collection[str] | None, late: str = "") -> Gaps:
        """`knowledge` is the catalog's. With --list it is None, and `seen` has the ids found, or None if that is unknown."""
        if knowledge is None:
            given = [("source", query.source_ids), ("workspace", query.workspace_ids)]
            unseen = [] if seen is None else [f"{what} {one!r}" for what, ids in given for one in ids if one not in seen]
            return cls(tuple(unseen), "", "correct it", late)
        return cls(knowledge.unseen, knowledge.missing, _meant(knowledge), late, knowledge.since)

    def report(self) -> None:
        if self.unseen:
            echo_message(f"{', '.join(self.unseen)} was never seen: {self.hint}", "UnknownSource")
        if self.missing:
            echo_message(f"this spool's catalog is incomplete: {self.missing}: --list finds the rest in the bucket", "Forgotten")
        if self.late:
            echo_message(f"{self.late}: replay these times in a separate run", "Incomplete")


def _meant(knowledge: Knowledge) -> str:
    names = [one.partition(" ")[2].strip("'\"") for one in knowledge.unseen]
    meant = [close for name in names for close in difflib.get_close_matches(name, knowledge.seen, 1)]
    if meant:
        return f"did you mean {', '.join(map(repr, meant))}?"
    return f"this spool knows {', '.join(map(repr, knowledge.seen[:_REPORTED])) or 'none'}; --list searches the bucket"


def _print_totals(selection: Selection, location: str, gaps: Gaps, stop: threading.Event, *, as_json: bool) -> NoReturn:
    if stop.is_set():
        sys.exit(INCOMPLETE)
    objects, size, events = selection.totals()
    if as_json:
        print_json({"objects": objects, "bytes": size, "events": events, "unseen": gaps.unseen, "missing": gaps.missing})
    else:
        known_events = "" if events is None else f", with up to {plural(events, 'event')}"
        click.echo(printable(f"{plural(objects, 'object')} ({plural(size, 'byte')}{known_events}) in {location}"))
    gaps.report()
    sys.exit(INCOMPLETE if gaps else 0)


def _print_summary(found: Replay, cursor: str, seconds: float, gaps: Gaps, *, complete: bool) -> None:
    summary = {
        "complete": complete,
        "events": found.events,
        "objects": found.objects,
        "bytes": found.bytes,
        "after": cursor,
        "damaged": [one.key for one in found.damaged],
        "unwrapped": found.unwrapped,
        "unseen": gaps.unseen,
        "missing": gaps.missing,
        "late": gaps.late,
        "known_since": gaps.known_since,
        "seconds": round(seconds, 3),
    }
    print_json(summary)


def _report(
    found: Replay, cursor: str, location: str, seconds: float, error: JobsBackupError | None, part: Path | None, gaps: Gaps
) -> None:
    for one in found.damaged[:_REPORTED]:
        echo_message(one.error.one_line(), "DamagedObject")
    if len(found.damaged) > _REPORTED:
        echo_message(f"and {plural(len(found.damaged) - _REPORTED, 'more object')}", "DamagedObject")
    if error is not None:
        echo_message(error.one_line(), error.code)
    for format_, count in found.unwrapped.items():
        echo_message(
            f"{plural(count, 'object')} without .{format_}: recorded without it, or written by something else",
        )
    given = f"{plural(found.events, 'event')} of {plural(found.objects, 'object')} ({plural(found.bytes, 'byte')})"
    known_to = f", as known to this spool since {gaps.known_since}" if gaps.known_since else ""
    echo_message(f"{given} from {location}{known_to}; {seconds:.1f} s")
    gaps.report()
    if part is not None and found.damaged:
        lacks = f"{part} lacks {plural(len(found.damaged), 'object')}"
        echo_message(f"{lacks}: repair them and run the same command again, or use the file as it is", "Incomplete")
    elif part is not None and not found.finished:
        echo_message("the output is incomplete: the same command resumes it", "Incomplete")
    elif part is not None and gaps:
        echo_message(f"{part} has what was found, and keeps this name because it is incomplete", "Incomplete")
    elif (found.limited or not found.finished) and cursor:
        echo_message(f"the output is incomplete: resume with the same options and --after '{cursor}'", "Incomplete")
