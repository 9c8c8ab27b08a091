"""The settings of core itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from jobs_backup.errors import ConfigurationError
from jobs_backup.format.compression import GZIP, Compression
from jobs_backup.settings.base import Count, Settings, Variable
from jobs_backup.settings.values import DatabaseUrl, Duration, Size


class DatabaseSpool(msgspec.Struct, frozen=True):
    """A spool in PostgreSQL: where it is, and how to get the password if the URL has none.

    Attributes:
        password_file: see PGPASSFILE.
        password_command: a command that prints the password; empty for none.
    """

    url: DatabaseUrl
    password_file: Path | None = None
    password_command: str = ""

    def __str__(self) -> str:
        return self.url.shown


class Move(msgspec.Struct, frozen=True):
    """Settings of a move into a shared spool."""

    source: Path
    target: DatabaseSpool
    instance_id: str
    max_bytes: int | None


SpoolPlace = Path | DatabaseSpool
"""Where a spool is: a directory, or a database."""


class CoreSettings(Settings, frozen=True, kw_only=True):
    """Core's own settings. The provider reads its own variables, see `jobs-backup providers NAME`."""

    storage_provider: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_STORAGE_PROVIDER", "Provider that stores the objects, for example S3, GCS, MINIO or FILE.", example="S3"
        ),
    ]
    prefix: Annotated[
        str, Variable("JOBS_BACKUP_PREFIX", "Prefix for every object key. Leading and trailing slashes are trimmed.", basic=True)
    ] = ""
    workspace_id: Annotated[
        str,
        Variable("JOBS_BACKUP_WORKSPACE_ID", "Workspace of the events that `jobs-backup run` records without --workspace-id."),
    ] = ""
    instance_id: Annotated[str, Variable("INSTANCE_ID", "Name of this installation; part of every object key.")] = "1"
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
    spool: Annotated[
        DatabaseUrl | None,
        Variable(
            "JOBS_BACKUP_SPOOL",
            "PostgreSQL database for a spool that any number of hosts share, instead of a directory; needs"
            " `jobs-backup[postgresql]`. TLS is `sslmode=verify-full` unless the URL says otherwise or names a socket. Default: the"
            " directory of JOBS_BACKUP_SPOOL_DIR.",
            example="postgresql://jobs_backup@db.example.com/jobs_backup",
        ),
    ] = None
    spool_password_file: Annotated[
        Path | None,
        Variable("PGPASSFILE", "Password file for JOBS_BACKUP_SPOOL, in the format of libpq.", credential=True),
    ] = None
    spool_password_command: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_SPOOL_PASSWORD_COMMAND",
            "Command that prints the password for JOBS_BACKUP_SPOOL, for example a short-lived token. It runs without a shell, for"
            " each connection.",
            example="aws rds generate-db-auth-token --hostname db.example.com --port 5432 --username jobs_backup",
            credential=True,
        ),
    ] = ""
    spool_lease: Annotated[
        Duration,
        Variable(
            "JOBS_BACKUP_SPOOL_LEASE",
            "Time without a sign of life after which other hosts take over from a process. For a spool in PostgreSQL.",
            minimum=1,
            maximum=600,
        ),
    ] = Duration(15)
    rejects_dir: Annotated[
        Path | None,
        Variable(
            "JOBS_BACKUP_REJECTS_DIR",
            "Directory for rejected lines of inputs. Default: `rejects` in the directory of the spool; with a spool in PostgreSQL,"
            " `jobs-backup-rejects` in the working directory.",
            example="/var/lib/jobs-backup/rejects",
        ),
    ] = None
    rudder_tmpdir: Annotated[
        Path | None,
        Variable("RUDDER_TMPDIR", "RudderStack's temporary directory: parent of the spool if JOBS_BACKUP_SPOOL_DIR is not set."),
    ] = None
    state_home: Annotated[
        Path | None, Variable("XDG_STATE_HOME", "The user's state directory: parent of the spool if neither of the two is set.")
    ] = None
    spool_durability: Annotated[
        Literal["full", "process"],
        Variable(
            "JOBS_BACKUP_SPOOL_DURABILITY",
            "What a recorded event survives: `full`: power loss (each commit waits for the disk); `process`: a killed process, not"
            " a power loss. PostgreSQL always has `full`.",
        ),
    ] = "full"
    spool_max_bytes: Annotated[
        Size | None,
        Variable(
            "JOBS_BACKUP_SPOOL_MAX_BYTES",
            "Recording stops when the spool holds so many bytes of events (as they are stored, mostly compressed), and goes on when"
            " some are sent. Default: as many as the disk has room for; in PostgreSQL 10GB.",
            example="20GB",
            minimum=1,
        ),
    ] = None
    spool_min_free: Annotated[
        Size, Variable("JOBS_BACKUP_SPOOL_MIN_FREE", "Minimum free space on the spool's disk. Recording stops when less is free.")
    ] = Size.parse("128MiB")
    spool_full_timeout: Annotated[
        Duration,
        Variable(
            "JOBS_BACKUP_SPOOL_FULL_TIMEOUT",
            "Maximum time that recording waits for room, or for PostgreSQL; then it fails with SpoolFull, or SpoolError.",
        ),
    ] = Duration(30)
    batch_events: Annotated[
        int, msgspec.Meta(ge=1, le=2**21), Variable("JOBS_BACKUP_BATCH_EVENTS", "Maximum events in an object.")
    ] = 100_000
    batch_bytes: Annotated[
        Size,
        Variable("JOBS_BACKUP_BATCH_BYTES", "Maximum bytes in an object, before compression.", minimum=1),
    ] = Size.parse("1GB")
    upload_frequency: Annotated[
        Duration,
        Variable(
            "JOBS_BACKUP_UPLOAD_FREQUENCY", "Maximum age of an object's first event before the object is sealed and uploaded."
        ),
    ] = Duration(300)
    upload_concurrency: Annotated[
        int,
        msgspec.Meta(ge=1, le=256),
        Variable("JOBS_BACKUP_UPLOAD_CONCURRENCY", "Maximum objects uploaded at once, and maximum parts of large objects."),
    ] = 4
    multipart_threshold: Annotated[
        Size,
        Variable(
            "JOBS_BACKUP_MULTIPART_THRESHOLD",
            "Maximum size of an object uploaded in one request. Larger ones are uploaded in parts, if the provider can.",
        ),
    ] = Size.parse("64MiB")
    part_size: Annotated[
        Size,
        Variable(
            "JOBS_BACKUP_PART_SIZE",
            "Size of a part. Parts are larger if the object would otherwise have more parts than the store allows.",
            minimum=1,
        ),
    ] = Size.parse("16MiB")
    compression: Annotated[
        Compression,
        Variable(
            "JOBS_BACKUP_COMPRESSION",
            "Compression of the objects: `gzip`, which RudderStack's tools read, or `zstd`, which is smaller. A level may"
            " follow, for example `zstd:3`: 1 to 9 for gzip, 1 to 19 for zstd, 1 by default. Higher levels are smaller and"
            " slower.",
        ),
    ] = GZIP
    wrappers: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_WRAPPERS",
            "Wrappers between jobs-backup and the store, in this order, separated by commas; see `jobs-backup wrappers`. Set it"
            " for all processes of a spool.",
            example="opentelemetry,encryption",
        ),
    ] = ""
    conditional_writes: Annotated[
        bool,
        Variable(
            "JOBS_BACKUP_CONDITIONAL_WRITES",
            "Conditional writes: write an object only if its key does not exist yet. Turn it off for stores without them.",
        ),
    ] = True
    shutdown_grace: Annotated[
        Duration,
        Variable("JOBS_BACKUP_SHUTDOWN_GRACE", "Maximum time for uploads after SIGTERM; the rest waits in the spool."),
    ] = Duration(25)
    raw: Annotated[bool, Variable("JOBS_BACKUP_RAW", "Backup of raw events. If false, `record` returns ids and keeps nothing.")] = (
        True
    )
    failed: Annotated[bool, Variable("JOBS_BACKUP_FAILED", "Backup of delivery failures. If false, `failed` keeps nothing.")] = True
    delete_after: Annotated[
        Literal["delivered", "settled", "never"],
        Variable(
            "JOBS_BACKUP_DELETE_AFTER",
            "Condition for deleting an object of raw events. `delivered`: all of its events were delivered. `settled`: each was"
            " delivered, or its failure is in the bucket. `never`: objects are kept. Set it for all processes of a spool.",
        ),
    ] = "delivered"
    skip_delivered: Annotated[
        bool,
        Variable(
            "JOBS_BACKUP_SKIP_DELIVERED",
            "Skipping of objects whose events were all delivered before the upload. No effect if nothing is ever deleted.",
        ),
    ] = False
    catalog_days: Annotated[
        int,
        msgspec.Meta(ge=0),
        Variable(
            "JOBS_BACKUP_CATALOG_DAYS",
            "Days to remember an uploaded object that is not deleted; after that, the ids of its events are unknown. 0: forever.",
        ),
    ] = 90
    retry_attempts: Annotated[
        Count, Variable("JOBS_BACKUP_RETRY_ATTEMPTS", "Maximum attempts of a request before uploads pause.")
    ] = 6
    retry_max_wait: Annotated[Duration, Variable("JOBS_BACKUP_RETRY_MAX_WAIT", "Maximum wait between two attempts.")] = Duration(30)
    retry_deadline: Annotated[
        Duration, Variable("JOBS_BACKUP_RETRY_DEADLINE", "Maximum time for all attempts: no further one starts after it.")
    ] = Duration(120)
    request_timeout: Annotated[
        Duration,
        Variable(
            "JOBS_BACKUP_REQUEST_TIMEOUT",
            "Maximum time without progress before a request counts as failed.",
            minimum=0.001,
            maximum=1800,
        ),
    ] = Duration(60)
    metrics_port: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=65_535)] | None,
        Variable(
            "JOBS_BACKUP_METRICS_PORT",
            "Port on which `archive` and `serve` answer /metrics (for Prometheus; needs `jobs-backup[metrics]`), /healthz and"
            " /readyz, without authentication. 0: any free port. Default: none.",
            example="9464",
        ),
    ] = None
    metrics_host: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_METRICS_HOST",
            "Address for JOBS_BACKUP_METRICS_PORT. `localhost`: both loopbacks; `::`: all of IPv6 and IPv4; `0.0.0.0`: all of"
            " IPv4.",
        ),
    ] = "localhost"
    metrics_file: Annotated[
        Path | None,
        Variable(
            "JOBS_BACKUP_METRICS_FILE",
            "File into which `run`, `archive` and `serve` write their metrics, every 15 s and at exit, for the textfile"
            " collector of Prometheus' node exporter. Needs `jobs-backup[metrics]`; its name must end in `.prom`.",
            example="/var/lib/node_exporter/jobs_backup.prom",
        ),
    ] = None
    log_format: Annotated[
        Literal["text", "json"],
        Variable("JOBS_BACKUP_LOG_FORMAT", "Format of the command's log: lines of text, or one JSON object per line."),
    ] = "text"

    def __post_init__(self) -> None:
        _spool_place(self.spool_dir, self.spool, self.spool_password_file, self.spool_password_command, None, Path("/"))

    @property
    def spool_place(self) -> SpoolPlace:
        """Path of the spool.

        Raises:
            ConfigurationError: it is not set, and the user has no home directory.
        """
        return _spool_place(
            self.spool_dir,
            self.spool,
            self.spool_password_file,
            self.spool_password_command,
            self.rudder_tmpdir,
            self.state_home,
        )

    @property
    def spool_path(self) -> Path:
        """The directory of the spool.

        Raises:
            ConfigurationError: there is none: as `spool_place`, or the spool is in a database.
        """
        if not isinstance(place := self.spool_place, Path):
            raise ConfigurationError(f"the spool is in {place}, not in a directory")
        return place

    @property
    def rejects_path(self) -> Path:
        """Where rejected lines are. Raises as `spool_place` does."""
        return _rejects_path(self.rejects_dir, self.spool_place)

    @classmethod
    def find_move(cls, environment: Mapping[str, str], to: DatabaseUrl | None) -> Move:
        """The spool of this machine, and the database it is moved to: `to`, or else JOBS_BACKUP_SPOOL.

        Raises as `from_environment` and `spool_place` do, or ConfigurationError if no database is given.
        """
        fields = (
            *("spool_dir", "spool", "spool_password_file", "spool_password_command", "rudder_tmpdir", "state_home"),
            *("instance_id", "spool_max_bytes"),
        )
        values = cls._read(environment, (setting for setting in cls.describe() if setting.field in fields))
        spool_dir, url, file, command, tmpdir, home, instance_id, max_bytes = map(values.get, fields)
        source = _spool_place(spool_dir, None, None, "", tmpdir, home)
        if (target := to or url) is None:
            raise ConfigurationError(
                "no spool to move to", hint="set JOBS_BACKUP_SPOOL to the PostgreSQL URL of the fleet, or give it by --to"
            )
        assert isinstance(source, Path)
        return Move(source, DatabaseSpool(target, file, command or ""), instance_id or "1", max_bytes)

    @classmethod
    def find_spool(cls, environment: Mapping[str, str]) -> tuple[SpoolPlace, Path]:
        """Where the spool and the rejected lines are, for those who need nothing else.

        Raises as `from_environment` and `spool_place` do.
        """
        fields = (
            "spool_dir",
            "spool",
            "spool_password_file",
            "spool_password_command",
            "rudder_tmpdir",
            "state_home",
            "rejects_dir",
        )
        values = cls._read(environment, (setting for setting in cls.describe() if setting.field in fields))
        spool_dir, url, file, command, tmpdir, home, rejects = map(values.get, fields)
        place = _spool_place(spool_dir, url, file, command or "", tmpdir, home)
        return place, _rejects_path(rejects, place)


def _spool_place(
    spool_dir: Path | None,
    url: DatabaseUrl | None,
    password_file: Path | None,
    password_command: str,
    rudder_tmpdir: Path | None,
    state_home: Path | None,
) -> SpoolPlace:
    if url is not None:
        if spool_dir is not None:
            raise ConfigurationError(
                "JOBS_BACKUP_SPOOL and JOBS_BACKUP_SPOOL_DIR are both set",
                hint="set one: a PostgreSQL URL for a fleet, or a directory for one machine",
            )
        return DatabaseSpool(url, password_file, password_command)
    if spool_dir is not None:
        return spool_dir.absolute()
    try:
        parent = (rudder_tmpdir or state_home or Path.home() / ".local/state").absolute()
    except (RuntimeError, OSError) as error:  # there is no home directory, or it is relative and the working directory is gone
        raise ConfigurationError("no directory found for the spool", hint="set JOBS_BACKUP_SPOOL_DIR to a directory") from error
    return parent / "jobs-backup"


def _rejects_path(rejects_dir: Path | None, place: SpoolPlace) -> Path:
    if rejects_dir is not None:
        return rejects_dir.absolute()
    if isinstance(place, Path):
        return place / "rejects"
    try:
        return Path.cwd() / "jobs-backup-rejects"
    except OSError as error:
        raise ConfigurationError(
            f"no directory found for rejected lines: the working directory is gone: {error.strerror}",
            hint="set JOBS_BACKUP_REJECTS_DIR to a directory",
        ) from None
