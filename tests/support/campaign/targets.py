"""The campaign's buckets: S3 over a failing network, or a directory on a failing disk."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from buckets import objects
from campaign.points import FAILURES
from campaign.worker import Moment
from s3_client import refusal
from servers import Store, operation

from jobs_backup.testing.fault_proxy import ALWAYS, Answer, Cut, Delay, Fault, FaultProxy, Swallow

MAX_DELAY: Final = 1.0
_GRANTED: Final = {
    "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload", "DeleteObjects",
}  # fmt: skip


class OpenUpload(NamedTuple):
    """A multipart upload that was neither completed nor aborted, and its number of parts."""

    id: str
    parts: int


class Target(Protocol):
    """A bucket, and the failures on the way to it."""

    provider: str
    bulk_bytes: int
    """Incompressible bytes that make an object of more than one part."""
    threshold: int
    """Larger objects are uploaded in parts."""
    faults: Counter[str]
    """Faults besides the workers' own, and how often each occurred."""

    def environment(self) -> dict[str, str]:
        """The provider's settings, and those of the parts."""
        ...

    def fail(self, rng: random.Random) -> None:
        """Choose which failures occur from now on, if any."""
        ...

    def failures(self, rng: random.Random) -> tuple[Moment, ...]:
        """The failures within one worker."""
        ...

    def heal(self) -> None:
        """Stop all failures."""
        ...

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """Every object: its key and its bytes."""
        ...

    def open_uploads(self) -> list[OpenUpload]:
        """The open uploads."""
        ...

    def drafts(self) -> list[str]:
        """Leftovers of killed writes, besides uploads."""
        ...

    def not_granted(self) -> set[str]:
        """Operations that were called without permission."""
        ...


class S3Target:
    """A bucket on a real S3 server behind a proxy."""

    provider = "S3"
    bulk_bytes = 7 << 20
    threshold = 5 << 20

    def __init__(self, store: Store, proxy: FaultProxy) -> None:
        self._store = store
        self._proxy = proxy
        self._bucket = store.bucket()
        self._operations: set[str] = set()
        self.faults: Counter[str] = Counter()

    def environment(self) -> dict[str, str]:
        parts = {"JOBS_BACKUP_MULTIPART_THRESHOLD": str(self.threshold), "JOBS_BACKUP_PART_SIZE": "5MiB"}
        return {**self._store.environment(self._bucket, "put-delete", url=self._proxy.url), **parts}

    def fail(self, rng: random.Random) -> None:
        self.heal()
        if rng.random() < 0.4:  # or hardly any upload would be lost and need an abort
            self._proxy.fail(rng.choice((_GONE, Swallow())), method="POST", target=_COMPLETE)
        for _ in range(rng.choice((0, 1, 2, 3, 5))):
            where, method, target = rng.choice(_WHERE)
            fault = rng.choice((*_ANYWHERE, *_SOMEWHERE.get(where, ())))
            times = ALWAYS if rng.random() < 0.1 else rng.randint(1, 6)
            self._proxy.fail(fault, method=method, target=target, skip=rng.choice((0, 0, 1, 3, 10)), times=times)

    def failures(self, rng: random.Random) -> tuple[Moment, ...]:
        return ()

    def heal(self) -> None:
        for request in self._proxy.requests:
            self._operations.add(operation(request))
            if request.fault is not None:
                self.faults[_name(request.fault)] += 1
        self._proxy.clear()

    def objects(self) -> Iterator[tuple[str, bytes]]:
        for key in self._store.keys(self._bucket):
            yield key, self._store.get(self._bucket, key)

    def open_uploads(self) -> list[OpenUpload]:
        admin = self._store.admin
        found = []
        for upload in admin.list_multipart_uploads(Bucket=self._bucket).get("Uploads", []):
            parts = admin.list_parts(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts", [])
            found.append(OpenUpload(upload["UploadId"], len(parts)))
        return found

    def drafts(self) -> list[str]:
        return []

    def not_granted(self) -> set[str]:
        return self._operations - _GRANTED


class FileTarget:
    """A directory as the bucket."""

    provider = "FILE"
    bulk_bytes = 400_000
    threshold = 200_000

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bucket = directory / "bucket"
        self._bucket.mkdir(exist_ok=True)
        self.faults: Counter[str] = Counter()

    def environment(self) -> dict[str, str]:
        return {
            "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
            "JOBS_BACKUP_BUCKET": str(self._bucket),
            "JOBS_BACKUP_MULTIPART_THRESHOLD": str(self.threshold),
            "JOBS_BACKUP_PART_SIZE": "100kB",
        }

    def fail(self, rng: random.Random) -> None:
        pass

    def failures(self, rng: random.Random) -> tuple[Moment, ...]:
        chosen = []
        for point in rng.sample(FAILURES, rng.choice((0, 1, 2, 3))):
            code = rng.choice((errno.ENOSPC, errno.EIO, errno.EACCES))
            chosen.append(Moment(point.name, rng.randint(1, point.often), rng.randint(1, 8), code))
        return tuple(chosen)

    def heal(self) -> None:
        pass

    def objects(self) -> Iterator[tuple[str, bytes]]:
        return iter(objects(self._directory).items())

    def open_uploads(self) -> list[OpenUpload]:
        work = self._bucket / ".jobs-backup"
        return [OpenUpload(path.name, len(list(path.iterdir()))) for path in work.glob("*") if path.is_dir()]

    def drafts(self) -> list[str]:
        return [path.name for path in (self._bucket / ".jobs-backup").glob("*") if path.is_file()]

    def not_granted(self) -> set[str]:
        return set()


_COMPLETE: Final = r"uploadId=[^&]*$"
_WHERE: Final = (
    ("any", "", ""),
    ("put", "PUT", r"^[^?]*(\?x-id=PutObject)?$"),
    ("create", "POST", r"\?uploads"),
    ("part", "PUT", r"partNumber="),
    ("complete", "POST", _COMPLETE),
    ("abort", "DELETE", r"uploadId="),
    ("delete", "POST", r"\?delete"),
)
_ERROR: Final = "<Error><Code>InternalError</Code><Message>at the very end</Message></Error>"
_ANYWHERE: Final[tuple[Fault, ...]] = (
    Cut(0),
    Cut(500),
    Cut(3 << 20),
    Delay(0.1),
    Delay(MAX_DELAY),
    Swallow(),
    Swallow(),
    refusal(500, "InternalError", "try again"),
    refusal(503, "SlowDown", "slow down", {"Retry-After": "1"}),
    refusal(403, "AccessDenied", "not now"),
)
_GONE: Final = refusal(404, "NoSuchUpload", "ended from outside")
_CONFLICT: Final = refusal(409, "ConditionalRequestConflict", "conflict")
_SOMEWHERE: Final[dict[str, tuple[Fault, ...]]] = {
    "put": (_CONFLICT,),
    "part": (_GONE, _GONE),
    "complete": (_GONE, _CONFLICT, Answer(200, _ERROR.encode(), {"Content-Type": "application/xml"}), Swallow(), Swallow()),
}


def _name(fault: Fault) -> str:
    match fault:
        case Answer(status):
            return f"{status}"
        case Cut() | Delay() | Swallow():
            return type(fault).__name__.lower()
        case _:
            return "scripted"
