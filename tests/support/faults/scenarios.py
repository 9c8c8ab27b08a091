"""The commands of the sweep, each with a small spool and bucket, and the promises that each must keep."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import urlsplit

from buckets import FAST_RETRY, events, file_environment

ARCHIVE: Final = ("archive", "--once", "--json")
_TOKEN: Final = "token-of-the-fault-sweep"
_SETTINGS: Final = {
    **FAST_RETRY,
    "JOBS_BACKUP_UPLOAD_CONCURRENCY": "2",
    "JOBS_BACKUP_SHUTDOWN_GRACE": "5s",
    "JOBS_BACKUP_REQUEST_TIMEOUT": "2s",
    "JOBS_BACKUP_MULTIPART_THRESHOLD": "2000",
    "JOBS_BACKUP_PART_SIZE": "1500",
    "JOBS_BACKUP_SERVER_TOKEN": _TOKEN,
}
_DELETED_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 20.0

_DEAD: Final = """
    import os, signal
    from jobs_backup import Backup
    from jobs_backup.backup.backup import session_of

    name = os.environ["NAME"]
    number = 0

    def record(backup, source, count, **more):
        global number
        jobs = []
        for _ in range(count):
            jobs.append(int(backup.record({"messageId": f"{name}{number}", **more}, source_id=source)))
            number += 1
        return jobs

    backup = Backup.from_env(archive=False)
"""
_OPEN_AND_SEALED: Final = """
    record(backup, "web", 3)
    record(backup, "large", 1, noise=os.urandom(2500).hex())
    session_of(backup).spool.seal()
    record(backup, "web", 2)
    record(backup, "ios", 2)
    os.kill(os.getpid(), signal.SIGKILL)
"""
_OPEN: Final = """
    record(backup, "web", 3)
    record(backup, "ios", 2)
    os.kill(os.getpid(), signal.SIGKILL)
"""
_CLAIMED: Final = """
    record(backup, "ios", 2)
    record(backup, "backend", 2)
    session_of(backup).spool.seal()
    assert session_of(backup).spool.claim() is not None
    record(backup, "backend", 3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass
class World:
    """A directory with a spool, a bucket, inputs (`in`) and outputs (`out`), and the events that the bucket must end up with."""

    directory: Path
    must: set[str] = field(default_factory=set)
    """Acknowledged events: after a healthy run, each is in the bucket once."""
    may: set[str] = field(default_factory=set)
    """Events that were sent but not acknowledged: each is in the bucket once or not at all."""

    @property
    def environment(self) -> dict[str, str]:
        home = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TMPDIR": str(self.directory / "tmp")}
        return {**home, **file_environment(self.directory), **_SETTINGS}

    def found(self) -> Counter[str]:
        """Count each event in the bucket."""
        return Counter(event["payload"]["messageId"] for event in events(self.directory))

    def missing(self) -> list[str]:
        return sorted(self.must - self.found().keys())

    def quarantine(self) -> list[str]:
        place = self.directory / "spool" / "quarantine"
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else []

    def miscounted(self) -> list[str]:
        """Objects whose number of events differs from the catalog."""
        with closing(sqlite3.connect(self.directory / "spool" / "catalog.db")) as catalog:
            counts = catalog.execute("SELECT key, events FROM batches WHERE state='stored'").fetchall()
        bucket = self.directory / "bucket"
        lines = {key: gzip.decompress((bucket / key).read_bytes()).count(b"\n") for key, _ in counts if (bucket / key).exists()}
        return [f"{key}: {lines[key]} instead of {count}" for key, count in counts if lines.get(key, count) != count]

    def objects(self, source: str) -> list[Path]:
        return sorted((self.directory / "bucket" / source).rglob("*.json.gz"))

    def die(self, name: str, script: str) -> str:
        """Run a process that records and is killed. Returns its output."""
        environment = {**self.environment, "NAME": name, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        command = [sys.executable, "-c", textwrap.dedent(_DEAD) + textwrap.dedent(script)]
        done = subprocess.run(command, env=environment, check=False, stdout=subprocess.PIPE, text=True, timeout=120)
        if done.returncode != -signal.SIGKILL:
            raise RuntimeError(f"{name} ended with {done.returncode}")
        return done.stdout


class Running(ABC):
    """A running command, as `Scenario.drive` sees it."""

    world: World

    @abstractmethod
    def stderr(self) -> str: ...

    @abstractmethod
    def has_ended(self) -> bool: ...

    @abstractmethod
    def signal(self, number: int) -> None: ...


Heal = Callable[[Sequence[str]], None]
"""Runs a command without a fault. It must succeed."""


class Scenario(ABC):
    """One command in one situation."""

    name: ClassVar[str]
    network: ClassVar = False

    @abstractmethod
    def prepare(self, world: World, run: Heal) -> None:
        """Prepare the scenario in an empty directory."""

    @abstractmethod
    def arguments(self, world: World) -> tuple[str, ...]:
        """The command under test."""

    def drive(self, running: Running) -> None:  # noqa: B027 - most commands run by themselves
        """Act as its clients while the command runs. Adds acknowledged events to `World.must`."""

    def untrue(self, world: World, run: Heal) -> str:
        """Return the false claim behind an exit code 0; empty if all claims are true."""
        missing = world.missing()
        return f"{len(missing)} of {len(world.must)} events are not in the bucket: {missing}" if missing else ""

    def is_done(self, world: World) -> bool:
        """Whether exit code 0 would have been true; False if that cannot be known."""
        return not world.missing()

    def heal(self, world: World, run: Heal, code: int | None) -> None:
        """Act as an operator once the fault is fixed."""
        run(ARCHIVE)

    def wrong(self, world: World) -> Iterable[tuple[str, str]]:
        """The promises broken in the end, as kinds and texts."""
        found = world.found()
        if missing := world.missing():
            yield "lost", f"{len(missing)} of {len(world.must)}: {missing}"
        if twice := sorted(one for one, count in found.items() if count > 1):
            yield "twice", f"{len(twice)} of {len(world.must)}: {twice}"
        if unknown := sorted(found.keys() - world.must - world.may):
            yield "unknown", f"{unknown}"
        if damaged := world.quarantine():
            yield "quarantined", f"{damaged}, and nothing is damaged"
        if miscounted := world.miscounted():
            yield "miscounted", f"{miscounted}"


def dead(world: World) -> None:
    """Two killed processes: open and sealed batches, a large one (multipart), and one claimed for upload."""
    world.die("a", _OPEN_AND_SEALED)
    world.die("b", _CLAIMED)
    world.must |= {f"a{number}" for number in range(8)} | {f"b{number}" for number in range(7)}


class Archive(Scenario):
    name = "archive"

    def prepare(self, world: World, run: Heal) -> None:
        dead(world)

    def arguments(self, world: World) -> tuple[str, ...]:
        return ARCHIVE


class ArchiveOpen(Archive):
    """All events are in open batches of dead processes: the catalog counts none of them."""

    name = "archive-open"

    def prepare(self, world: World, run: Heal) -> None:
        for name in ("a", "b"):
            world.die(name, _OPEN)
        world.must |= {f"{name}{number}" for name in "ab" for number in range(5)}


class Run(Scenario):
    """Two files, one of them compressed, and the batches of dead processes."""

    name = "run"

    def prepare(self, world: World, run: Heal) -> None:
        dead(world)
        place = world.directory / "in"
        place.mkdir()
        for name, count in (("plain", 6), ("zipped", 4)):
            lines = "".join(f'{{"messageId":"{name}{number}"}}\n' for number in range(count)).encode()
            world.must |= {f"{name}{number}" for number in range(count)}
            path = place / f"{name}.ndjson"
            path.write_bytes(lines)
            if name == "zipped":
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(lines))
                path.unlink()

    def arguments(self, world: World) -> tuple[str, ...]:
        place = world.directory / "in"
        return ("run", str(place / "plain.ndjson"), str(place / "zipped.ndjson.gz"), "--source-id", "file", "--json")

    def heal(self, world: World, run: Heal, code: int | None) -> None:
        run(self.arguments(world))


class Serve(Scenario):
    """Three requests, each sent once, then SIGTERM."""

    name = "serve"
    network = True

    def prepare(self, world: World, run: Heal) -> None:
        dead(world)

    def arguments(self, world: World) -> tuple[str, ...]:
        return ("serve", "--port", "0", "--json")

    def drive(self, running: Running) -> None:
        while (found := re.search(r"listening on (\S+)", running.stderr())) is None:
            if running.has_ended():
                return
            time.sleep(0.005)
        for source in ("web", "android", "web"):
            self._post(running.world, found[1], source, len(running.world.may | running.world.must))
        running.signal(signal.SIGTERM)

    def _post(self, world: World, url: str, source: str, first: int) -> None:
        ids = {f"http{number}" for number in range(first, first + 3)}
        world.may |= ids
        body = "".join(f'{{"messageId":"{one}"}}\n' for one in sorted(ids))
        headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/x-ndjson"}
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("POST", f"/v1/events?source_id={source}", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                world.must |= ids
                world.may -= ids
        except (OSError, http.client.HTTPException):
            return  # without an answer there is no promise
        finally:
            connection.close()


class Delivered(Scenario):
    """All ids of source `all`, and some of sources `some` (in the bucket) and `open` (in a dead process's open batch)."""

    name = "delivered"

    def prepare(self, world: World, run: Heal) -> None:
        end = "os.kill(os.getpid(), signal.SIGKILL)"
        jobs = json.loads(world.die("s", f'print(record(backup, "all", 4) + record(backup, "some", 4)[:2], flush=True)\n{end}'))
        run(ARCHIVE)
        jobs += json.loads(world.die("o", f'print(record(backup, "open", 4)[:2], flush=True)\n{end}'))
        (world.directory / "in").mkdir()
        (world.directory / "in" / "ids.ndjson").write_text("".join(f'"{job}"\n' for job in jobs))
        world.may |= {f"s{number}" for number in range(4)}
        world.must |= {f"s{number}" for number in range(4, 8)} | {f"o{number}" for number in range(4)}

    def arguments(self, world: World) -> tuple[str, ...]:
        return ("delivered", str(world.directory / "in" / "ids.ndjson"), "--json")

    def untrue(self, world: World, run: Heal) -> str:
        self._until_deleted(world, run)
        return "not all ids were taken: the object of source 'all' is not deleted" if world.objects("all") else ""

    def is_done(self, world: World) -> bool:
        return False

    def heal(self, world: World, run: Heal, code: int | None) -> None:
        run(self.arguments(world))
        self._until_deleted(world, run)

    def wrong(self, world: World) -> Iterable[tuple[str, str]]:
        yield from super().wrong(world)
        if world.objects("all"):
            yield "undeleted", "all events of source 'all' were acknowledged, but its object remains"

    def _until_deleted(self, world: World, run: Heal) -> None:
        """An object is kept while an unconfirmed attempt to write it may still arrive."""
        until = time.monotonic() + _DELETED_SECONDS
        run(ARCHIVE)
        while world.objects("all") and time.monotonic() < until:
            time.sleep(0.2)
            run(ARCHIVE)


class Replay(Scenario):
    """Read all events back into a file. The catalog knows the objects."""

    name = "replay"

    def prepare(self, world: World, run: Heal) -> None:
        dead(world)
        run(ARCHIVE)
        (world.directory / "out").mkdir()
        run(self.arguments(world))
        self.result(world).rename(world.directory / "expected")
        lines = (world.directory / "expected").read_bytes().splitlines()
        given = Counter(json.loads(line)["payload"]["messageId"] for line in lines)
        if given != Counter(world.must):
            raise RuntimeError(f"a healthy replay returned {given}")

    def arguments(self, world: World) -> tuple[str, ...]:
        return ("replay", "--output", str(self.result(world)), "--json")

    def result(self, world: World) -> Path:
        return world.directory / "out" / "events.ndjson"

    def is_done(self, world: World) -> bool:
        return not self._incomplete(world)

    def untrue(self, world: World, run: Heal) -> str:
        return self._incomplete(world)

    def _incomplete(self, world: World) -> str:
        path = self.result(world)
        if not path.exists():
            return "there is no output"
        wanted, found = (world.directory / "expected").read_bytes(), path.read_bytes()
        return "" if wanted == found else f"the output has {len(found)} bytes, not the {len(wanted)} that were recorded"

    def heal(self, world: World, run: Heal, code: int | None) -> None:
        if code != 0:
            run(self.arguments(world))

    def wrong(self, world: World) -> Iterable[tuple[str, str]]:
        yield from super().wrong(world)
        if why := self._incomplete(world):
            yield "incomplete", why


class ReplayList(Replay):
    """Read all events back to standard output. A listing of the bucket finds the objects."""

    name = "replay-list"

    def arguments(self, world: World) -> tuple[str, ...]:
        return ("replay", "--list")

    def result(self, world: World) -> Path:
        return world.directory / "stdout"


SCENARIOS: Final = {one.name: one for one in (Archive(), ArchiveOpen(), Run(), Serve(), Delivered(), Replay(), ReplayList())}
