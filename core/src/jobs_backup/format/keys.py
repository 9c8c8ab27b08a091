"""Object keys, written and parsed: the place of a batch in the bucket, in RudderStack's layout for backups."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Final, NamedTuple

from jobs_backup.errors import ConfigurationError
from jobs_backup.model import Kind, Stream
from jobs_backup.util.disclosure import shown

FAILED: Final = "rudder-proc-err-logs"
"""Directory for keys of failures."""
MAX_KEY_BYTES: Final = 1024
"""Of UTF-8; the limit of S3 and GCS."""
MAX_FORMATS_BYTES: Final = 16
"""Maximum that wrappers may add to a key."""

# Ids are limited so that every file name stays within 255 bytes (the limit of file systems) and every key within MAX_KEY_BYTES.
_MAX_ID_BYTES: Final = 96
_MAX_INSTANCE_BYTES: Final = 43
_MAX_PREFIX_BYTES: Final = 512

# Characters that XML cannot contain (S3 deletes by XML), and C1 controls, which cause trouble in tools.
_CONTROL: Final = r"\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff"
# Could leave its place in a key, or break a tool that reads keys line by line; `%` and `~` because they mark changes.
_UNSAFE: Final = re.compile(rf"[{_CONTROL}\u2028\u2029/\\%~]")
# Looks like the job ids and the uuid in the key of a failure, where an id precedes them. The hyphen marks it.
_JOBS_HYPHEN: Final = re.compile(r"(?<=[0-9])-(?=[0-9]{1,19}\.[0-9a-f-]{32})")


def clean_prefix(prefix: str) -> str:
    """JOBS_BACKUP_PREFIX without surrounding slashes.

    Raises:
        ConfigurationError: it has empty parts, `.` or `..`, control characters, or more than 512 bytes.
    """
    prefix = prefix.strip("/")
    parts = prefix.split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts) or re.search(rf"[{_CONTROL}\\]", prefix):
        raise ConfigurationError(
            f"JOBS_BACKUP_PREFIX={shown(prefix)} has an empty part, '.', '..' or a control character",
            hint="use a prefix such as backups/events",
        )
    if len(prefix.encode()) > _MAX_PREFIX_BYTES:
        raise ConfigurationError(f"JOBS_BACKUP_PREFIX has more than {_MAX_PREFIX_BYTES} bytes", hint="use a shorter prefix")
    return prefix


def safe_id(text: str, max_bytes: int = _MAX_ID_BYTES) -> str:
    """Turn an external id into one part of a key. Different ids give different parts.

    Slashes, backslashes, control characters, characters invalid in XML, `%` and `~` are percent-encoded. So is a leading dot, which
    would hide the object from many tools, or lead out of its place. So is the hyphen of what looks like job ids before a uuid. Ids
    longer than `max_bytes` of UTF-8 are cut, and end in `~` and a hash of the whole.
    """
    safe = _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")), text)
    safe = _JOBS_HYPHEN.sub("%2D", safe)
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    encoded = safe.encode()
    if len(encoded) > max_bytes:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        safe = encoded[: max_bytes - 25].decode("utf-8", "ignore") + "~" + digest
    return safe


def object_key(
    *,
    prefix: str,
    instance_id: str,
    stream: Stream,
    first_at: int,
    last_at: int,
    first_job: int,
    last_job: int,
    uuid: str,
    suffix: str,
) -> str:
    """Build a batch's key. `first_at` and `last_at` are the times of its first and last event, in microseconds since 1970.

    - raw: `<prefix>/<source>/gw/<YYYY-MM-DD>/<H>/<instance>/<first>_<last>_<workspace>_<uuid><suffix>`, H without a leading zero
    - failed: `<prefix>/rudder-proc-err-logs/<MM-DD-YYYY>/<first>.<instance>.<first job>-<last job>.<uuid>.<workspace><suffix>`

    Days and hours are UTC. `suffix` is the compression's, `.json.gz` or `.json.zst`, with the formats of the wrappers, for example
    `.json.gz.enc`.
    """
    first, last = first_at // 1_000_000, last_at // 1_000_000
    at = time.gmtime(first)
    instance = safe_id(instance_id, _MAX_INSTANCE_BYTES)
    workspace = safe_id(stream.workspace_id)
    if stream.kind is Kind.RAW:
        day = f"{at.tm_year:04}-{at.tm_mon:02}-{at.tm_mday:02}"
        key = f"{safe_id(stream.source_id)}/gw/{day}/{at.tm_hour}/{instance}/{first}_{last}_{workspace}_{uuid}{suffix}"
    else:
        day = f"{at.tm_mon:02}-{at.tm_mday:02}-{at.tm_year:04}"
        key = f"{FAILED}/{day}/{first}.{instance}.{first_job}-{last_job}.{uuid}.{workspace}{suffix}"
    return f"{prefix}/{key}" if prefix else key


FORMAT: Final = re.compile(r"(?!(json|gz|zst)$)[a-z0-9]+")
"""Valid names for a wrapper's format."""
ENDING: Final = r"(?:\.(?!(?:json|gz|zst)\b)[a-z0-9]+)*"
"""A regular expression for the formats at the end of a key, where `.json` precedes the compression."""


_SUFFIX: Final = rf"(?P<suffix>\.json\.(?:gz|zst){ENDING}|\.(?:gz|zst))"
# Seconds, including the year 9999: anything longer is not a time.
_TIME: Final = r"-?[0-9]{1,12}"
_KEYS: Final = {
    Kind.RAW: re.compile(
        rf"(?P<source>[^/]+)/gw/[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}/[0-9]{{1,2}}/(?P<instance>[^/]+)/"
        rf"(?P<first>{_TIME})_(?P<last>{_TIME})_(?P<workspace>[^/]*)_(?P<uuid>[^/_.]+){_SUFFIX}"
    ),
    Kind.FAILED: re.compile(
        rf"{FAILED}/[0-9]{{2}}-[0-9]{{2}}-[0-9]{{4}}/(?P<first>{_TIME})\.(?P<instance>[^/]+)"
        rf"\.(?P<first_job>[0-9]{{1,19}})-(?P<last_job>[0-9]{{1,19}})\.(?P<uuid>[0-9a-f-]{{32,36}})"
        rf"(?:\.(?!json\.[a-z]+$)(?P<workspace>[^/]*?))?{_SUFFIX}"
    ),
}
_MAX_JOB: Final = (1 << 63) - 1


class ParsedKey(NamedTuple):
    """The parts of an object's key. Ids are as `safe_id` made them; None for what this kind of key lacks.

    Attributes:
        workspace: None in the keys of RudderStack's failures.
        first, last: seconds since 1970.
    """

    kind: Kind
    source: str | None
    workspace: str | None
    instance: str
    first: int
    last: int | None
    first_job: int | None
    last_job: int | None
    uuid: str
    suffix: str


def parse_key(key: str, prefix: str = "") -> ParsedKey | None:
    """The inverse of `object_key`, also for RudderStack's own keys. None for any other key."""
    below = f"{prefix}/" if prefix else ""
    if not key.startswith(below):
        return None
    for kind, pattern in _KEYS.items():
        if (match := pattern.fullmatch(key, len(below))) is not None:
            found = match.groupdict()
            first_job, last_job = (_number(found.get(name)) for name in ("first_job", "last_job"))
            if max(first_job or 0, last_job or 0) > _MAX_JOB:
                return None
            return ParsedKey(
                kind=kind,
                source=found.get("source"),
                workspace=found["workspace"],
                instance=found["instance"],
                first=int(found["first"]),
                last=_number(found.get("last")),
                first_job=first_job,
                last_job=last_job,
                uuid=found["uuid"],
                suffix=found["suffix"],
            )
    return None


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def formats_of(key: str) -> list[str]:
    """The formats of the wrappers that made an object, in order; none if it is not ours."""
    match = re.search(rf"\.json\.(?:gz|zst)({ENDING})$", key)
    return match[1].split(".")[1:] if match else []
