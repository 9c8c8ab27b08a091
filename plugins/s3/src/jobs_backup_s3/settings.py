"""Environment variables of S3, MinIO and Spaces, and the form that all three resolve to: `Connection`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import msgspec

from jobs_backup.errors import ConfigurationError
from jobs_backup.sdk import check_ambient, check_proxies, check_proxy
from jobs_backup.settings import Endpoint, Secret, Settings, Variable, shown

log: Final = logging.getLogger(__name__)

Encryption = Literal["AES256", "aws:kms"]
Checksum = Literal["crc32c", "md5", "none"]

_PARTITIONS: Final = (
    ("cn-", "aws-cn", ".amazonaws.com.cn"),
    ("eusc-", "aws-eusc", ".amazonaws.eu"),
    ("us-gov-", "aws-us-gov", ".amazonaws.com"),
    ("us-iso-", "aws-iso", ".c2s.ic.gov"),
    ("us-isob-", "aws-iso-b", ".sc2s.sgov.gov"),
    ("eu-isoe-", "aws-iso-e", ".cloud.adc-e.uk"),
    ("us-isof-", "aws-iso-f", ".csp.hci.ic.gov"),
    ("", "aws", ".amazonaws.com"),
)
"""Prefix of a partition's region names, its name in ARNs, and its domain: see botocore's data/partitions.json."""
_AWS_HOSTS: Final = tuple(host for _, _, host in _PARTITIONS)
SPACES_PERMISSION: Final = "readwrite"
"""Permission that a Spaces key needs. Single operations have none (DigitalOcean's API, spaces keys)."""
_SPACES_HOST: Final = ".digitaloceanspaces.com"
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_ACCESS_POINT: Final = re.compile(r"arn:aws[a-z-]*:s3:[a-z0-9-]+:[0-9]{12}:accesspoint/[a-z0-9][a-z0-9-]{1,48}[a-z0-9]")
_KMS_KEY: Final = re.compile(
    r"(?:arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/)?(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32})"
    r"|(?:arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:)?alias/[A-Za-z0-9:/_-]{1,250}",
    re.IGNORECASE,
)
"""AWS's names for KMS keys. Other stores name their keys differently."""
_OTHER_ARNS: Final = (
    (r"accesspoint[:/].*\.mrap$", "a Multi-Region Access Point, which needs signatures (SigV4A) that are not supported",
     "set it to one of its buckets, or to the ARN of an access point in one region"),
    (r"^arn:[^:]*:s3-outposts:|--op-s3$", "a bucket or an access point of S3 on Outposts, which is not supported",
     "set it to a bucket in a region"),
    (r"^arn:[^:]*:s3-object-lambda:|--ol-s3$", "an Object Lambda Access Point, which changes what is read and takes no uploads",
     "set it to the bucket or the access point behind it"),
    (r"^arn:[^:]*:s3express:", "the ARN of a directory bucket or its access point",
     "write its name alone, such as my-events--usw2-az1--x-s3"),
    (r"^arn:[^:]*:s3:::[^/]+$", "the ARN of a bucket", "write the bucket's name alone, without arn:aws:s3:::"),
    (r"^arn:", "an ARN, but not of an access point",
     "write the bucket's name, or the access point's ARN: arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME"),
)  # fmt: skip
"""Pattern of an ARN or of AWS's alias for one, what it names, and what to set instead."""
_REGION: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")

_LEGACY: Final = ("legacy", "regional")
_WHEN: Final = ("when_supported", "when_required")
AMBIENT: Final[Mapping[str, str | tuple[str, ...]]] = {
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": "url",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": ("ipv4", "ipv6"),
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "url",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "path of a url",
    "AWS_METADATA_SERVICE_TIMEOUT": "number",
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "number",
    "AWS_MAX_ATTEMPTS": "number",
    "AWS_RETRY_MODE": ("legacy", "standard", "adaptive"),
    "AWS_DEFAULTS_MODE": ("legacy", "standard", "cross-region", "in-region", "mobile", "auto"),
    "AWS_STS_REGIONAL_ENDPOINTS": _LEGACY,
    "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": _LEGACY,
    "AWS_REQUEST_CHECKSUM_CALCULATION": _WHEN,
    "AWS_RESPONSE_CHECKSUM_VALIDATION": _WHEN,
    "AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES": "number",
    "AWS_ACCOUNT_ID_ENDPOINT_MODE": ("preferred", "disabled", "required"),
}
"""Variables that botocore reads by itself, and whose values its errors show if they are invalid."""
UNSHOWN: Final = (
    *AMBIENT, "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE",
    "AWS_SDK_UA_APP_ID",
)  # fmt: skip
"""Variables whose credentials are removed from messages."""


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """An access key and its secret, with the session token of temporary credentials."""

    access_key: Secret
    secret_key: Secret
    session_token: Secret | None = None


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to access a bucket, whichever variables it came from.

    Attributes:
        prefix: prefix for every object key; used in the resource of a permission.
        region: the bucket's region if `region_is_explicit`; otherwise the region to try first.
        endpoint: None for AWS itself.
        keys: None for the SDK's default chain.
        checksum: kind of checksum sent with every object and part.
        endpoint_variable, region_variable: variables that set the endpoint and the region; the latter is empty if the
            endpoint sets the region.
        permission: the store's only permission, on whole buckets; None for a store with one permission per operation.
    """

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    region_is_explicit: bool
    keys: Keys | None
    path_style: bool
    checksum: Checksum
    role_arn: str | None = None
    external_id: str | None = None
    sts_endpoint: str | None = None
    sse: Encryption | None = None
    kms_key_id: str | None = None
    storage_class: str | None = None
    acl: str | None = None
    proxy: Secret | None = None
    ca_bundle: Path | None = None
    verify_tls: bool = True
    permission: str | None = None
    endpoint_variable: str = "AWS_ENDPOINT_URL_S3"
    region_variable: str = "AWS_REGION"

    @property
    def location(self) -> str:
        """The location in the contract's form: scheme, bucket, and the endpoint if it is not AWS's own."""
        return f"s3://{self.bucket}" + (f" at {self.endpoint}" if self.endpoint else "")

    @property
    def is_aws(self) -> bool:
        """Whether the endpoint is AWS itself."""
        return self.endpoint is None or (urlsplit(self.endpoint).hostname or "").endswith(_AWS_HOSTS)

    @property
    def is_directory(self) -> bool:
        """Whether the bucket is a directory bucket (S3 Express One Zone), which authorizes access by sessions."""
        return self.bucket.endswith(("--x-s3", "--xa-s3"))

    @property
    def is_directory_access_point(self) -> bool:
        """Whether `bucket` names a directory bucket's access point. These have names only, no aliases."""
        return self.bucket.endswith("--xa-s3")

    @property
    def is_access_point(self) -> bool:
        """Whether `bucket` is the ARN of an access point."""
        return self.bucket.startswith("arn:")

    @property
    def resource(self) -> str:
        """The ARN of all objects that backups write. For a directory bucket its own ARN: its permissions cannot be narrower."""
        if self.is_directory:
            return self.bucket_arn
        return f"{self.bucket_arn}{'/object' if self.is_access_point else ''}/{self.prefix_pattern}*"

    @property
    def prefix_pattern(self) -> str:
        """The prefix as written in a policy. AWS reads `*`, `?` and `${` as wildcards or variables unless escaped.

        Other stores have no escape. There a wildcard is left as it is; it also matches itself.
        """
        return re.sub(r"[*?$]", r"${\g<0>}", self.prefix) if self.is_aws else self.prefix

    @property
    def bucket_arn(self) -> str:
        """The ARN on which to grant listing or a session."""
        if self.is_access_point:
            return self.bucket
        if self.is_directory:
            region = self.region if self.region_is_explicit else "*"
            kind = "accesspoint" if self.is_directory_access_point else "bucket"
            return f"arn:{self.partition}:s3express:{region}:*:{kind}/{self.bucket}"
        return f"arn:{self.partition}:s3:::{self.bucket}"

    @property
    def partition(self) -> str:
        """The AWS partition, as named in ARNs: that of an ARN in the settings, or of the region's or endpoint's name."""
        for named in (self.bucket, self.kms_key_id or "", self.role_arn or ""):
            if named.startswith("arn:aws"):
                return named.split(":")[1]
        hosts = (urlsplit(self.endpoint or "").hostname or "").split(".")
        regions = [name for name in (self.region, *hosts) if name[-1:].isdigit()]
        return next((name for region in regions for start, name, _ in _PARTITIONS if start and region.startswith(start)), "aws")


class BucketSettings(Settings, frozen=True, kw_only=True):
    """Settings that S3, MinIO and Spaces share."""

    bucket: Annotated[str, Variable("JOBS_BACKUP_BUCKET", "Bucket for the objects. It must exist.", example="my-events")]
    prefix: Annotated[
        str, Variable("JOBS_BACKUP_PREFIX", "Prefix for every object key. Leading and trailing slashes are trimmed.")
    ] = ""
    sse: Annotated[
        Encryption | None,
        Variable("JOBS_BACKUP_S3_SSE", "Server-side encryption: AES256 or aws:kms. Default: as the bucket is configured."),
    ] = None
    kms_key_id: Annotated[
        str | None,
        Variable(
            "JOBS_BACKUP_S3_KMS_KEY_ID",
            "Id, ARN or alias of the KMS key; implies aws:kms. Default with aws:kms: the account's key.",
        ),
    ] = None
    path_style: Annotated[
        bool | None,
        Variable(
            "JOBS_BACKUP_S3_PATH_STYLE",
            "Path-style URLs: the bucket is in the path instead of the host name. Default: true for endpoints other than AWS.",
        ),
    ] = None
    checksum: Annotated[
        Literal["auto", "crc32c", "md5", "none"],
        Variable(
            "JOBS_BACKUP_S3_CHECKSUM",
            "Checksum with which the store verifies uploads. `auto`: crc32c on AWS, md5 (Content-MD5) elsewhere.",
        ),
    ] = "auto"
    storage_class: Annotated[
        str | None,
        Variable("JOBS_BACKUP_S3_STORAGE_CLASS", "Storage class of the objects, for example STANDARD_IA. Default: the store's."),
    ] = None
    acl: Annotated[
        str | None,
        Variable("JOBS_BACKUP_S3_ACL", "Canned ACL of the objects; needs s3:PutObjectAcl and a bucket with ACLs. Default: none."),
    ] = None
    proxy: Annotated[
        Secret | None,
        Variable("JOBS_BACKUP_S3_PROXY", "URL of the HTTP proxy. Default: HTTPS_PROXY and HTTP_PROXY."),
    ] = None
    ca_bundle: Annotated[
        Path | None,
        Variable("JOBS_BACKUP_S3_CA_BUNDLE", "File with the CA certificates (PEM) that verify the store's certificate."),
    ] = None
    verify_tls: Annotated[
        bool,
        Variable(
            "JOBS_BACKUP_S3_VERIFY_TLS",
            "Verification of the store's certificate. If off, an attacker on the network can read and change what is sent.",
        ),
    ] = True

    @classmethod
    def from_environment(cls, environment: Any) -> Self:
        """See `Settings.from_environment`. Also raises if a variable that the SDK reads by itself is invalid."""
        check_proxies(environment)
        check_ambient(environment, AMBIENT)
        return super().from_environment(environment)

    def connection(self) -> Connection:
        """Resolve to the form that does not depend on the kind of store.

        Raises:
            ConfigurationError: settings are invalid, alone or together. The message names the variables.
        """
        raise NotImplementedError

    def _connection(self, *, endpoint: str | None, region: str, keys: Keys | None, explicit: bool = False) -> Connection:
        is_aws = endpoint is None or (urlsplit(endpoint).hostname or "").endswith(_AWS_HOSTS)
        automatic: Checksum = "crc32c" if is_aws else "md5"
        prefix = self.prefix.strip("/")
        if self.kms_key_id and self.sse == "AES256":
            raise _wrong(
                "JOBS_BACKUP_S3_KMS_KEY_ID", "makes no sense with JOBS_BACKUP_S3_SSE=AES256", "set JOBS_BACKUP_S3_SSE=aws:kms"
            )
        if self.kms_key_id and is_aws and not _KMS_KEY.fullmatch(self.kms_key_id):
            why = f"is {shown(self.kms_key_id)}, neither the id nor the ARN nor the alias of a key"
            raise _wrong("JOBS_BACKUP_S3_KMS_KEY_ID", why, "write the key's id, its ARN (arn:aws:kms:...:key/ID), or alias/NAME")
        if self.ca_bundle is not None:
            try:
                self.ca_bundle.open("rb").close()
            except OSError as error:
                why = f"{self.ca_bundle} cannot be read: {error.strerror}"
                raise _wrong("JOBS_BACKUP_S3_CA_BUNDLE", why, "set it to a file with certificates in PEM format") from error
        if not self.verify_tls:
            log.warning("JOBS_BACKUP_S3_VERIFY_TLS is off: the identity of %s is not verified", endpoint or "the store")
        return Connection(
            bucket=_bucket(self.bucket, is_aws=is_aws),
            prefix=f"{prefix}/" if prefix else "",
            endpoint=endpoint,
            region=region,
            region_is_explicit=explicit,
            keys=keys,
            path_style=not is_aws if self.path_style is None else self.path_style,
            checksum=automatic if self.checksum == "auto" else self.checksum,
            sse="aws:kms" if self.kms_key_id else self.sse,
            kms_key_id=self.kms_key_id,
            storage_class=self.storage_class,
            acl=self.acl,
            proxy=_proxy(self.proxy),
            ca_bundle=self.ca_bundle,
            verify_tls=self.verify_tls,
        )


class S3Settings(BucketSettings, frozen=True, kw_only=True):
    """Settings of S3, or of the S3-compatible store at AWS_ENDPOINT_URL_S3."""

    access_key: Annotated[
        Secret | None,
        Variable(
            "AWS_ACCESS_KEY_ID", "Access key id. Default: the SDK's chain (profile, web identity, container, instance).", basic=True
        ),
    ] = None
    secret_key: Annotated[Secret | None, Variable("AWS_SECRET_ACCESS_KEY", "Secret of the access key.", basic=True)] = None
    session_token: Annotated[Secret | None, Variable("AWS_SESSION_TOKEN", "Session token of temporary credentials.")] = None
    region: Annotated[
        str | None,
        Variable("AWS_REGION", "Region of the bucket. Default: taken from the store's response.", example="eu-west-1", basic=True),
    ] = None
    default_region: Annotated[str | None, Variable("AWS_DEFAULT_REGION", "Region to try first if AWS_REGION is not set.")] = None
    region_hint: Annotated[str, Variable("AWS_S3_REGION_HINT", "Region to try first if neither of the two is set.")] = "us-east-1"
    enable_sse: Annotated[bool, Variable("AWS_ENABLE_SSE", "RudderStack's name for JOBS_BACKUP_S3_SSE=AES256.")] = False
    endpoint_s3: Annotated[str | None, Variable("AWS_ENDPOINT_URL_S3", "URL of another S3-compatible store. Default: AWS.")] = None
    endpoint: Annotated[
        str | None, Variable("AWS_ENDPOINT_URL", "URL for all AWS services; AWS_ENDPOINT_URL_S3 takes precedence.")
    ] = None
    endpoint_sts: Annotated[
        str | None,
        Variable(
            "AWS_ENDPOINT_URL_STS", "URL of the security token service (STS), which issues a role's credentials. Default: AWS."
        ),
    ] = None
    role_arn: Annotated[
        str | None, Variable("BACKUP_IAM_ROLE_ARN", "ARN of a role to assume. Its credentials are renewed before they expire.")
    ] = None
    external_id: Annotated[
        str | None,
        Variable("JOBS_BACKUP_S3_EXTERNAL_ID", "External id that the role requires. Default: JOBS_BACKUP_WORKSPACE_ID."),
    ] = None
    workspace_id: Annotated[
        str | None, Variable("JOBS_BACKUP_WORKSPACE_ID", "RudderStack's workspace id, used as the role's external id.")
    ] = None

    def connection(self) -> Connection:
        keys = None
        if self.access_key is not None and self.secret_key is not None:
            keys = Keys(access_key=self.access_key, secret_key=self.secret_key, session_token=self.session_token)
        elif self.access_key or self.secret_key or self.session_token:
            missing = "AWS_SECRET_ACCESS_KEY" if self.access_key else "AWS_ACCESS_KEY_ID"
            raise _wrong(missing, "is not set, but the rest of the credentials is", "set all, or none for the SDK's default chain")
        s3 = self.endpoint_s3 and endpoint_url("AWS_ENDPOINT_URL_S3", self.endpoint_s3)
        common = self.endpoint and endpoint_url("AWS_ENDPOINT_URL", self.endpoint)
        sts = self.endpoint_sts and endpoint_url("AWS_ENDPOINT_URL_STS", self.endpoint_sts)
        connection = self._connection(
            endpoint=s3 or common,
            region=self._region(),
            explicit=self.region is not None,
            keys=keys,
        )
        return msgspec.structs.replace(
            connection,
            role_arn=self.role_arn,
            external_id=self.external_id or self.workspace_id,
            sts_endpoint=sts or common,
            sse=connection.sse or ("AES256" if self.enable_sse else None),
        )

    def _region(self) -> str:
        regions = {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.default_region, "AWS_S3_REGION_HINT": self.region_hint}
        variable, region = next((variable, region) for variable, region in regions.items() if region)
        if not _REGION.fullmatch(region):
            raise _wrong(variable, f"is {shown(region)}, which is not a region", "write it like eu-west-1")
        return region


class MinioSettings(BucketSettings, frozen=True, kw_only=True):
    """Settings of MinIO, in RudderStack's variables. There are no default credentials."""

    endpoint: Annotated[
        str, Variable("MINIO_ENDPOINT", "Host and port of the MinIO server.", aliases=("MINIO_END_POINT",), example="minio:9000")
    ] = "localhost:9000"
    access_key: Annotated[Secret, Variable("MINIO_ACCESS_KEY_ID", "Access key.")]
    secret_key: Annotated[Secret, Variable("MINIO_SECRET_ACCESS_KEY", "Secret of the access key.")]
    ssl: Annotated[bool, Variable("MINIO_SSL", "HTTPS instead of HTTP. An https:// before the endpoint does the same.")] = False

    def connection(self) -> Connection:
        endpoint = endpoint_url("MINIO_ENDPOINT", self.endpoint, scheme="https" if self.ssl else "http")
        if self.ssl and endpoint.startswith("http:"):
            raise _wrong("MINIO_SSL", f"is true, but MINIO_ENDPOINT={self.endpoint} says http", "make them agree")
        keys = Keys(access_key=self.access_key, secret_key=self.secret_key)
        connection = self._connection(endpoint=endpoint, region="us-east-1", keys=keys)
        return msgspec.structs.replace(connection, endpoint_variable="MINIO_ENDPOINT", region_variable="")


class SpacesSettings(BucketSettings, frozen=True, kw_only=True):
    """Settings of DigitalOcean Spaces, in RudderStack's variables."""

    endpoint: Annotated[
        str, Variable("DO_SPACES_ENDPOINT", "Endpoint of the Spaces region.", example="nyc3.digitaloceanspaces.com")
    ]
    access_key: Annotated[Secret, Variable("DO_SPACES_ACCESS_KEY_ID", "Access key.")]
    secret_key: Annotated[Secret, Variable("DO_SPACES_SECRET_ACCESS_KEY", "Secret of the access key.")]

    def connection(self) -> Connection:
        parts = urlsplit(endpoint_url("DO_SPACES_ENDPOINT", self.endpoint))
        region = "us-east-1"
        if (host := parts.hostname or "").endswith(_SPACES_HOST):
            *bucket, region = host.removesuffix(_SPACES_HOST).split(".")
            if bucket not in ([], [self.bucket]):
                raise _wrong(
                    "DO_SPACES_ENDPOINT",
                    f"is {self.endpoint}, which belongs to another bucket",
                    f"set it to {region}{_SPACES_HOST}",
                )
            # The control panel shows the endpoint with the bucket in front.
            parts = parts._replace(netloc=parts.netloc.removeprefix(f"{self.bucket}.") if bucket else parts.netloc)
        keys = Keys(access_key=self.access_key, secret_key=self.secret_key)
        connection = self._connection(endpoint=parts.geturl(), region=region, keys=keys)
        return msgspec.structs.replace(
            connection, permission=SPACES_PERMISSION, endpoint_variable="DO_SPACES_ENDPOINT", region_variable=""
        )


def endpoint_url(variable: str, text: str, scheme: str = "https") -> str:
    """Return the endpoint as a URL. `scheme` applies if it has none: AWS's tools refuse that, but users of other stores expect it.

    Raises:
        ConfigurationError: the endpoint is invalid. The message names the variable.
    """
    try:
        return Endpoint.parse(text if "://" in text else f"{scheme}://{text}")
    except ValueError as error:
        raise _wrong(variable, f"is not an endpoint: {error}", "write it as https://host:port or host:port") from None


def _bucket(name: str, *, is_aws: bool) -> str:
    if _ACCESS_POINT.fullmatch(name):
        return name
    for form, what, hint in _OTHER_ARNS:
        if re.search(form, name) and (is_aws or name.startswith("arn:")):  # only AWS reserves the suffixes of aliases
            raise _wrong("JOBS_BACKUP_BUCKET", f"is {what}", hint)
    if not _BUCKET.fullmatch(name):
        hint = "write the bucket's name alone, without s3:// and without a path (that is JOBS_BACKUP_PREFIX)"
        raise _wrong("JOBS_BACKUP_BUCKET", f"is {shown(name)}, which is not a valid bucket name", hint)
    return name


def _proxy(proxy: Secret | None) -> Secret | None:
    if proxy is None:
        return None
    text = proxy.reveal()
    check_proxy("JOBS_BACKUP_S3_PROXY", text)
    return Secret(text if "://" in text else f"http://{text.removeprefix('//')}")


def _wrong(variable: str, why: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"{variable} {why}", hint=hint)
