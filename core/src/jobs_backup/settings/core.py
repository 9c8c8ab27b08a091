"""The settings of core itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from jobs_backup.errors import ConfigurationError
from jobs_backup.format.compression import GZIP, Compression
from jobs_backup.settings.base import Count, Settings, Variable
from jobs_backup.settings.values import Duration, Size


class CoreSettings(Settings, frozen=True, kw_only=True):
    """Core's own settings. The provider reads its own variables, see `jobs-backup providers NAME`."""

    storage_provider: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_STORAGE_PROVIDER", "Which provider stores the objects, for example S3, GCS, MINIO or FILE.", example="S3"
        ),
    ]
    prefix: Annotated[
        str, Variable("JOBS_BACKUP_PREFIX", "Stands before every key. Leading and trailing slashes are trimmed.", basic=True)
    ] = ""
    workspace_id: Annotated[
        str,
        Variable("JOBS_BACKUP_WORKSPACE_ID", "The workspace of what `jobs-backup run` records, where --workspace-id is not given."),
    ] = ""
    instance_id: Annotated[str, Variable("INSTANCE_ID", "Names this installation; part of every key.")] = "1"
    spool_dir: Annotated[
        Path | None,
        Variable(
            "JOBS_BACKUP_SPOOL_DIR",
            "Directory on a local, durable disk where events wait for their upload. Default: `jobs-backup` in RUDDER_TMPDIR if that"
            " is set, else in the user's state directory (XDG_STATE_HOME, ~/.local/state).",
            example="/var/lib/jobs-backup",
            basic=True,
        ),
    ] = None
    rudder_tmpdir: Annotated[
        Path | None,
        Variable("RUDDER_TMPDIR", "RudderStack's directory: the spool's parent where JOBS_BACKUP_SPOOL_DIR is not set."),
    ] = None
    state_home: Annotated[
        Path | None, Variable("XDG_STATE_HOME", "The user's state directory: the spool's parent where neither of the two is set.")
    ] = None
    spool_durability: Annotated[
        Literal["full", "process"],
        Variable(
            "JOBS_BACKUP_SPOOL_DURABILITY",
            "What a recorded event survives: `full`: power loss (each commit waits for the disk); `process`: a killed process, not"
            " a power loss.",
        ),
    ] = "full"
    spool_max_bytes: Annotated[
        Size | None,
        Variable(
            "JOBS_BACKUP_SPOOL_MAX_BYTES",
            "Recording stops when the spool holds so many bytes of events (as they are stored, mostly compressed), and goes on when"
            " some are sent. Default: as many as the disk has room for.",
            example="20GB",
            minimum=1,
        ),
    ] = None
    spool_min_free: Annotated[
        Size, Variable("JOBS_BACKUP_SPOOL_MIN_FREE", "Recording stops when the spool's disk has less free space than this.")
    ] = Size.parse("128MiB")
    spool_full_timeout: Annotated[
        Duration,
        Variable("JOBS_BACKUP_SPOOL_FULL_TIMEOUT", "So long a full spool makes recording wait; then it fails with SpoolFull."),
    ] = Duration(30)
    batch_events: Annotated[
        int, msgspec.Meta(ge=1, le=2**21), Variable("JOBS_BACKUP_BATCH_EVENTS", "An object is closed when it has so many events.")
    ] = 100_000
    batch_bytes: Annotated[
        Size,
        Variable("JOBS_BACKUP_BATCH_BYTES", "An object is closed when its lines have so many bytes before compression.", minimum=1),
    ] = Size.parse("1GB")
    upload_frequency: Annotated[
        Duration, Variable("JOBS_BACKUP_UPLOAD_FREQUENCY", "An object is closed when its first event is so old.")
    ] = Duration(300)
    upload_concurrency: Annotated[
        int,
        msgspec.Meta(ge=1, le=256),
        Variable("JOBS_BACKUP_UPLOAD_CONCURRENCY", "So many objects are sent at once; and so many parts of large objects."),
    ] = 4
    multipart_threshold: Annotated[
        Size, Variable("JOBS_BACKUP_MULTIPART_THRESHOLD", "Objects larger than this are sent in parts, where the provider can.")
    ] = Size.parse("64MiB")
    part_size: Annotated[
        Size,
        Variable(
            "JOBS_BACKUP_PART_SIZE", "Bytes in a part; more where an object would have too many parts for the store.", minimum=1
        ),
    ] = Size.parse("16MiB")
    compression: Annotated[
        Compression,
        Variable(
            "JOBS_BACKUP_COMPRESSION",
            "`gzip`, which RudderStack's tools read, or `zstd`, which is smaller; also with a level, for example `zstd:3`. The"
            " higher it is, the smaller the objects, and the slower: 1 to 9 of gzip, 1 to 19 of zstd; 1 if none is given.",
        ),
    ] = GZIP
    wrappers: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_WRAPPERS",
            "What stands between this and the store, in this order, separated by commas; see `jobs-backup wrappers`. Set it for all"
            " processes of a spool.",
            example="opentelemetry,encryption",
        ),
    ] = ""
    conditional_writes: Annotated[
        bool,
        Variable("JOBS_BACKUP_CONDITIONAL_WRITES", "Write only where no object stands yet. Turn it off for stores that can't."),
    ] = True
    shutdown_grace: Annotated[
        Duration,
        Variable("JOBS_BACKUP_SHUTDOWN_GRACE", "On SIGTERM so much time is left for sending; the rest waits in the spool."),
    ] = Duration(25)
    raw: Annotated[bool, Variable("JOBS_BACKUP_RAW", "Back up raw events. If not, `record` gives ids and keeps nothing.")] = True
    failed: Annotated[bool, Variable("JOBS_BACKUP_FAILED", "Back up delivery failures. If not, `failed` keeps nothing.")] = True
    delete_after: Annotated[
        Literal["delivered", "settled", "never"],
        Variable(
            "JOBS_BACKUP_DELETE_AFTER",
            "When an object of raw events is deleted: `delivered`: all of its events were delivered; `settled`: each of them was"
            " delivered, or its failure is in the bucket; `never`. Set it for all processes of a spool.",
        ),
    ] = "delivered"
    skip_delivered: Annotated[
        bool,
        Variable(
            "JOBS_BACKUP_SKIP_DELIVERED",
            "Do not even write objects whose events were all delivered before. Without effect where nothing is ever deleted.",
        ),
    ] = False
    catalog_days: Annotated[
        int,
        msgspec.Meta(ge=0),
        Variable(
            "JOBS_BACKUP_CATALOG_DAYS",
            "So long the spool knows of an object that is not to be deleted; then its events' ids are unknown. 0: for ever.",
        ),
    ] = 90
    retry_attempts: Annotated[
        Count, Variable("JOBS_BACKUP_RETRY_ATTEMPTS", "How often a request is tried before the store is paused.")
    ] = 6
    retry_max_wait: Annotated[Duration, Variable("JOBS_BACKUP_RETRY_MAX_WAIT", "The longest wait between two attempts.")] = (
        Duration(30)
    )
    retry_deadline: Annotated[Duration, Variable("JOBS_BACKUP_RETRY_DEADLINE", "No further attempt is begun after this time.")] = (
        Duration(120)
    )
    request_timeout: Annotated[
        Duration,
        Variable("JOBS_BACKUP_REQUEST_TIMEOUT", "A request without progress for so long has failed.", minimum=0.001, maximum=1800),
    ] = Duration(60)
    metrics_port: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=65_535)] | None,
        Variable(
            "JOBS_BACKUP_METRICS_PORT",
            "`archive` and `serve` answer /metrics (for Prometheus; needs `jobs-backup[metrics]`), /healthz and /readyz there, to"
            " everybody. 0: any free port. Default: none.",
            example="9464",
        ),
    ] = None
    metrics_host: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_METRICS_HOST",
            "Address to open JOBS_BACKUP_METRICS_PORT on. `localhost`: both loopbacks; `::`: all of IPv6 and IPv4; `0.0.0.0`: all"
            " of IPv4.",
        ),
    ] = "localhost"
    metrics_file: Annotated[
        Path | None,
        Variable(
            "JOBS_BACKUP_METRICS_FILE",
            "`run`, `archive` and `serve` write their metrics into this file, every 15 s and at their end, for the textfile"
            " collector of Prometheus' node exporter. Needs `jobs-backup[metrics]`; the name ends in `.prom`.",
            example="/var/lib/node_exporter/jobs_backup.prom",
        ),
    ] = None
    log_format: Annotated[
        Literal["text", "json"],
        Variable("JOBS_BACKUP_LOG_FORMAT", "How the command logs: lines of text, or a JSON object a line."),
    ] = "text"

    @property
    def spool_path(self) -> Path:
        """Path of the spool.

        Raises:
            ConfigurationError: it is not set, and the user has no home directory.
        """
        return _spool_path(self.spool_dir, self.rudder_tmpdir, self.state_home)

    @classmethod
    def find_spool(cls, environment: Mapping[str, str]) -> Path:
        """Path of the spool, for callers that need no other setting. Raises as `from_environment` and `spool_path` do."""
        fields = ("spool_dir", "rudder_tmpdir", "state_home")
        values = cls._read(environment, (setting for setting in cls.describe() if setting.field in fields))
        return _spool_path(*map(values.get, fields))


def _spool_path(spool_dir: Path | None, rudder_tmpdir: Path | None, state_home: Path | None) -> Path:
    if spool_dir is not None:
        return spool_dir.absolute()
    try:
        parent = rudder_tmpdir or state_home or Path.home() / ".local/state"
    except RuntimeError as error:
        raise ConfigurationError("there is no place for the spool", hint="set JOBS_BACKUP_SPOOL_DIR to a directory") from error
    return parent.absolute() / "jobs-backup"
