"""Environment variables of GCS."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self, cast

from jobs_backup.errors import ConfigurationError
from jobs_backup.sdk import check_ambient, check_proxies, unreadable
from jobs_backup.settings import Endpoint, Settings, Variable, shown

VARIABLE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_KMS_KEY: Final = re.compile(r"projects/[^/\s]+/locations/[^/\s]+/keyRings/[\w-]{1,63}/cryptoKeys/[\w-]{1,63}", re.ASCII)
_TYPES: Final = (
    "service_account",
    "external_account",
    "impersonated_service_account",
    "authorized_user",
    "external_account_authorized_user",
)
"""Kinds of credentials that google-auth reads from a file (its `load_credentials_from_file`)."""
AMBIENT: Final[Mapping[str, str | tuple[str, ...]]] = {
    "GCE_METADATA_HOST": "host",
    "GCE_METADATA_ROOT": "host",
    "GCE_METADATA_IP": "host",
    "GCE_METADATA_TIMEOUT": "number",
    "GCE_METADATA_DETECT_RETRIES": "number",
    "GCE_METADATA_MTLS_MODE": ("strict", "none", "default"),
    "GOOGLE_API_USE_MTLS_ENDPOINT": ("never", "auto", "always"),
    "GOOGLE_API_USE_CLIENT_CERTIFICATE": ("true", "false"),
}
"""Variables that Google's libraries read by themselves, and whose values their errors may show if they are invalid."""
UNSHOWN: Final = (
    *AMBIENT, "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "GOOGLE_CLOUD_QUOTA_PROJECT", "CLOUDSDK_CONFIG",
    "GOOGLE_API_CERTIFICATE_CONFIG", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "API_VERSION_OVERRIDE",
)  # fmt: skip
"""Variables whose credentials are removed from messages."""


class Emulator(Endpoint):
    """URL of an emulator, or its host and port, as Google's other SDKs take them: they use http then."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Emulator:
        """Parse a URL or `host:port`. Raises ValueError."""
        return cls(Endpoint.parse(text if "://" in text else f"http://{text}"))


class GcsSettings(Settings, frozen=True, kw_only=True):
    """Settings of GCS."""

    bucket: Annotated[str, Variable("JOBS_BACKUP_BUCKET", "Bucket for the objects. It must exist.", example="my-events")]
    prefix: Annotated[
        str, Variable("JOBS_BACKUP_PREFIX", "Prefix for every object key. Leading and trailing slashes are trimmed.")
    ] = ""
    credentials: Annotated[
        Path | None,
        Variable(
            "GOOGLE_APPLICATION_CREDENTIALS",
            "File with the credentials (JSON) of a service account, workload identity federation or impersonation. Default: the"
            " environment's credentials (workload identity, the instance's service account, gcloud).",
            example="/etc/jobs-backup/credentials.json",
            basic=True,
            credential=True,
        ),
    ] = None
    kms_key: Annotated[
        str | None,
        Variable(
            "JOBS_BACKUP_GCS_KMS_KEY",
            "Resource name of the Cloud KMS key that encrypts the objects. Default: as the bucket is configured.",
        ),
    ] = None
    storage_class: Annotated[
        str | None,
        Variable("JOBS_BACKUP_GCS_STORAGE_CLASS", "Storage class of the objects, for example NEARLINE. Default: the bucket's."),
    ] = None
    endpoint: Annotated[
        Endpoint | None,
        Variable(
            "JOBS_BACKUP_GCS_ENDPOINT", "Endpoint to use instead of https://storage.googleapis.com, for example a private one."
        ),
    ] = None
    emulator: Annotated[
        Emulator | None,
        Variable(
            "STORAGE_EMULATOR_HOST", "URL, or host:port, of an emulator to use instead of Google's service, without credentials."
        ),
    ] = None

    @classmethod
    def from_environment(cls, environment: Any) -> Self:
        """See `Settings.from_environment`. Also raises if the credentials file cannot be read."""
        check_proxies(environment, socks=importlib.util.find_spec("socks") is not None, schemeless=False)
        check_ambient(environment, AMBIENT)
        found = super().from_environment(environment)
        if not _BUCKET.fullmatch(found.bucket):
            raise ConfigurationError(
                f"JOBS_BACKUP_BUCKET={shown(found.bucket)} is not a valid bucket name",
                hint="lower-case letters, digits, '-', '_' and '.'",
            )
        if found.kms_key is not None and not _KMS_KEY.fullmatch(found.kms_key):
            what = "a version of a key" if "/cryptoKeyVersions/" in found.kms_key else "not the name of a key"
            raise ConfigurationError(
                f"JOBS_BACKUP_GCS_KMS_KEY is {shown(found.kms_key)}, {what}",
                hint="write it as projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY",
            )
        if found.credentials is not None and found.emulator is None:
            read_credentials(found.credentials)
        return found

    @property
    def base(self) -> str:
        """The store's URL, without a trailing slash."""
        return self.emulator or self.endpoint or "https://storage.googleapis.com"

    @property
    def location(self) -> str:
        """The location in the contract's form."""
        return f"gs://{self.bucket}" + (f" at {self.base}" if self.is_own else "")

    @property
    def is_own(self) -> bool:
        """Whether the endpoint is not Google's own but a private one or an emulator."""
        return bool(self.emulator or self.endpoint)

    @property
    def resource(self) -> str:
        """The resource on which to grant permissions."""
        return f"gs://{self.bucket}"


def token_files(settings: GcsSettings) -> dict[str, str]:
    """Return credentials files by what names them: the file from the settings, and the token file that it names in turn."""
    if settings.credentials is None:
        return {}
    named = {VARIABLE: str(settings.credentials)}
    try:
        source = read_credentials(settings.credentials).get("credential_source")
    except ConfigurationError:
        return named
    inner = cast(dict[str, object], source).get("file") if isinstance(source, dict) else None
    return named | ({f"credential_source of {VARIABLE}": inner} if isinstance(inner, str) else {})


def read_credentials(path: Path) -> dict[str, Any]:
    """Return the content of a credentials file.

    Raises:
        ConfigurationError: the file cannot be used. The message shows none of its content, which is secret.
    """
    hint = "set GOOGLE_APPLICATION_CREDENTIALS to the credentials file (JSON), or unset it to use the environment's credentials"
    try:
        found: Any = json.loads(path.read_bytes())
    except OSError as error:
        found = unreadable("", error, files={VARIABLE: str(path)})
        raise ConfigurationError(found.message if found else str(error), hint=found.hint if found else hint) from None
    except ValueError:
        raise ConfigurationError(f"GOOGLE_APPLICATION_CREDENTIALS: {path} is not JSON", hint=hint) from None
    credentials = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    if credentials.get("type") not in _TYPES:
        raise ConfigurationError(f"GOOGLE_APPLICATION_CREDENTIALS: {path} has no known kind of credentials", hint=hint)
    return credentials
