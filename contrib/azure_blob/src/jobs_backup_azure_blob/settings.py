"""Environment variables of Azure Blob Storage."""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from jobs_backup.errors import ConfigurationError
from jobs_backup.sdk import check_ambient, check_proxies, unreadable
from jobs_backup.settings import Endpoint, Secret, Settings, Variable, shown

_CONTAINER: Final = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_KEY, _SAS, _STRING = "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING"
_KEY_FILE, _SAS_FILE = f"{_KEY}_FILE", f"{_SAS}_FILE"
_ENDPOINT: Final = "AZURE_STORAGE_BLOB_ENDPOINT"
_SWITCH: Final = ("true", "false", "yes", "no", "on", "off", "1", "0")
AMBIENT: Final[Mapping[str, str | tuple[str, ...]]] = {
    "AZURE_AUTHORITY_HOST": "https host",
    "AZURE_POD_IDENTITY_AUTHORITY_HOST": "url",
    "AZURE_REGIONAL_AUTHORITY_NAME": "name",
    "AZURE_TENANT_ID": "name",
    "AZURE_CLIENT_ID": "name",
    "AZURE_TOKEN_CREDENTIALS": "name",
    "AZURE_KUBERNETES_TOKEN_PROXY": "url",
    "AZURE_LOG_LEVEL": ("critical", "error", "warning", "info", "debug"),
    "AZURE_TRACING_ENABLED": _SWITCH,
    "AZURE_SDK_TRACING_IMPLEMENTATION": "name",
    "AZURE_SDK_CLOUD_CONF": "name",
    "IDENTITY_ENDPOINT": "url",
    "IMDS_ENDPOINT": "url",
    "MSI_ENDPOINT": "url",
}
"""Variables that Azure's libraries read by themselves, and whose values their errors may show if they are invalid."""
UNSHOWN: Final = (
    *AMBIENT, "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_PASSWORD", "AZURE_USERNAME", "IDENTITY_HEADER",
    "MSI_SECRET", "IDENTITY_SERVER_THUMBPRINT", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_CERTIFICATE_PATH",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
"""Variables whose credentials are removed from messages."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """The container's location and its credentials: a key, a SAS, or, without either, those of the environment.

    Attributes:
        base: the endpoint's URL, without a trailing slash.
        is_own: whether `base` is not Azure's own endpoint for this account.
    """

    account: str
    base: str
    is_own: bool
    key: Secret | None = None
    sas: Secret | None = None


class AzureBlobSettings(Settings, frozen=True, kw_only=True):
    """Settings of AZURE_BLOB."""

    bucket: Annotated[str, Variable("JOBS_BACKUP_BUCKET", "Container for the objects. It must exist.", example="my-events")]
    prefix: Annotated[
        str, Variable("JOBS_BACKUP_PREFIX", "Prefix for every object key. Leading and trailing slashes are trimmed.")
    ] = ""
    account: Annotated[
        str | None, Variable("AZURE_STORAGE_ACCOUNT", "Name of the storage account.", example="mystorageaccount", basic=True)
    ] = None
    key: Annotated[
        Secret | None,
        Variable(
            _KEY,
            "Key of the account. It permits everything; prefer a SAS or an identity. Without a key, SAS or connection string,"
            " the environment's credentials are used (managed identity, workload identity, az login), with"
            " `jobs-backup-azure-blob[identity]`.",
            aliases=("AZURE_STORAGE_KEY",),
            basic=True,
        ),
    ] = None
    sas: Annotated[
        Secret | None, Variable(_SAS, "Shared access signature (SAS) for the container, as in the query of a URL.", basic=True)
    ] = None
    key_file: Annotated[
        Path | None,
        Variable(_KEY_FILE, "File with the key, instead of the key itself. It is read again when the store refuses the key."),
    ] = None
    sas_file: Annotated[
        Path | None,
        Variable(_SAS_FILE, "File with the SAS, instead of the SAS itself. It is read again when the store refuses the SAS."),
    ] = None
    connection_string: Annotated[
        Secret | None, Variable(_STRING, "Connection string with account, key or SAS, and endpoint, as Azure's portal shows it.")
    ] = None
    endpoint: Annotated[
        Endpoint | None,
        Variable(
            _ENDPOINT,
            "Endpoint to use instead of https://ACCOUNT.blob.core.windows.net: a sovereign cloud, your own domain, or Azurite.",
            example="https://mystorageaccount.blob.core.chinacloudapi.cn",
        ),
    ] = None
    tier: Annotated[
        Literal["Hot", "Cool", "Cold", "Archive"] | None,
        Variable(
            "JOBS_BACKUP_AZURE_ACCESS_TIER",
            "Access tier of the objects. Default: the account's. Objects in Archive cannot be read before they are rehydrated.",
        ),
    ] = None

    @classmethod
    def from_environment(cls, environment: Any) -> Self:
        """See `Settings.from_environment`. Also raises if the settings contradict each other."""
        check_proxies(environment, socks=importlib.util.find_spec("socks") is not None, schemeless=False)
        check_ambient(environment, AMBIENT)
        found = super().from_environment(environment)
        if not _CONTAINER.fullmatch(found.bucket):
            raise ConfigurationError(
                f"JOBS_BACKUP_BUCKET={shown(found.bucket)} is not a valid container name",
                hint="3 to 63 lower-case letters, digits and single '-'",
            )
        credentials = {
            _KEY: found.key,
            _SAS: found.sas,
            _KEY_FILE: found.key_file,
            _SAS_FILE: found.sas_file,
            _STRING: found.connection_string,
        }
        given = [name for name, value in credentials.items() if value]
        if len(given) > 1:
            raise ConfigurationError(f"{' and '.join(given)} are set, but only one of them may be", hint="unset the others")
        found.opened()
        return found

    @property
    def has_identity(self) -> bool:
        """Whether access uses tokens."""
        connection = self.connection()
        return connection.key is None and connection.sas is None and self.key_file is None and self.sas_file is None

    def opened(self) -> Connection:
        """Return the connection with the current content of its files.

        Raises:
            ConfigurationError: a file cannot be read, or its content is invalid.
        """
        connection = self.connection()
        if self.key_file is not None:
            return msgspec.structs.replace(connection, key=_checked_key(_KEY_FILE, _read(_KEY_FILE, self.key_file)))
        if self.sas_file is not None:
            return msgspec.structs.replace(connection, sas=_checked_sas(_SAS_FILE, _read(_SAS_FILE, self.sas_file)))
        return connection

    def connection(self) -> Connection:
        """Return account, endpoint and credentials from any variable, except credentials in files: see `opened`.

        Raises:
            ConfigurationError: something is missing or invalid.
        """
        if self.connection_string is not None:
            for name, value in (("AZURE_STORAGE_ACCOUNT", self.account), (_ENDPOINT, self.endpoint)):
                if value is not None:
                    raise ConfigurationError(f"{name} and {_STRING} are set, but only one of them may be", hint=f"unset {name}")
            return _parsed(self.connection_string.reveal())
        if self.account is None:
            raise ConfigurationError("AZURE_STORAGE_ACCOUNT is not set", hint="set it to the name of the storage account")
        base = self.endpoint or f"https://{self.account}.blob.core.windows.net"
        return _connection("AZURE_STORAGE_ACCOUNT", self.account, base, self.key, self.sas)

    @property
    def location(self) -> str:
        """The location in the contract's form. It includes the account, because container names are unique only within one."""
        connection = self.connection()
        return f"azure://{connection.account}/{self.bucket}" + (f" at {connection.base}" if connection.is_own else "")

    def secrets(self) -> list[str]:
        """Return the texts that no message may show, including a SAS's signature alone."""
        try:
            connection = self.opened()
        except ConfigurationError:
            connection = self.connection()  # a deleted file's secret is recognized by its form
        texts = [secret.reveal() for secret in (connection.key, connection.sas) if secret]
        return texts + (parse_qs(connection.sas.reveal())["sig"] if connection.sas else [])

    @property
    def resource(self) -> str:
        """The resource on which to grant permissions."""
        return f"storageAccounts/{self.connection().account}/blobServices/default/containers/{self.bucket}"


def _connection(named: str, account: str, base: str, key: Secret | None, sas: Secret | None) -> Connection:
    """Return the connection. `named` is the variable with the account. Errors never show the secrets."""
    if not _ACCOUNT.fullmatch(account):
        raise ConfigurationError(
            f"{named}: {shown(account)} is not a valid name of a storage account", hint="3 to 24 lower-case letters and digits"
        )
    if key is not None:
        key = _checked_key(_KEY if named != _STRING else f"{_STRING}: AccountKey", key)
    if sas is not None:
        sas = _checked_sas(_SAS if named != _STRING else f"{_STRING}: SharedAccessSignature", sas)
    is_own = base != f"https://{account}.blob.core.windows.net"
    return Connection(account=account, base=base, is_own=is_own, key=key, sas=sas)


def _checked_key(name: str, key: Secret) -> Secret:
    if not _is_base64(key.reveal()):
        raise ConfigurationError(
            f"{name} is not the key of a storage account", hint="copy it from the account's page: it is base64"
        )
    return key


def _checked_sas(name: str, sas: Secret) -> Secret:
    sas = Secret(sas.reveal().removeprefix("?"))
    if not {"sig", "sv"} <= parse_qs(sas.reveal()).keys():
        raise ConfigurationError(f"{name} is not a SAS", hint="write what follows the '?' of a URL: sv=...&sp=...&sig=...")
    return sas


def _read(name: str, path: Path) -> Secret:
    try:
        return Secret(path.read_text("ascii").strip())
    except OSError as error:
        found = unreadable("", error, files={name: str(path)})
        raise ConfigurationError(found.message if found else name, hint=found.hint if found else "correct the path") from None
    except ValueError:
        raise ConfigurationError(
            f"{name}: {path} is not text", hint=f"save the value of {name.removesuffix('_FILE')} in it"
        ) from None


def _parsed(text: str) -> Connection:
    parts = (part.strip().partition("=") for part in text.split(";"))
    fields = {name: value for name, _, value in parts}
    key, sas = fields.get("AccountKey"), fields.get("SharedAccessSignature")
    account, base = fields.get("AccountName"), fields.get("BlobEndpoint")
    if bool(key) == bool(sas) or not (account or base):
        raise ConfigurationError(
            f"{_STRING} must contain AccountName, and either AccountKey or SharedAccessSignature",
            hint="copy it from Azure's portal",
        )
    protocol, suffix = fields.get("DefaultEndpointsProtocol", "https"), fields.get("EndpointSuffix", "core.windows.net")
    try:
        base = Endpoint.parse(base or f"{protocol}://{account}.blob.{suffix}")
    except ValueError as error:
        raise ConfigurationError(f"{_STRING}: its endpoint: {error}", hint="copy it from Azure's portal") from None
    account = account or (urlsplit(base).hostname or "").partition(".")[0]
    return _connection(_STRING, account, base, Secret(key) if key else None, Secret(sas) if sas else None)


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False
