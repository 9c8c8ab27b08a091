"""The stores that `make stores` adds to those of `make test`: rclone, OpenStack Swift, LocalStack and Ceph RGW.

Tests of a store whose programs are missing are skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import pytest
from places import ROOT
from servers import Identity, Store, free_ports, new_identity, one_start_at_a_time, run_server, wait_until_ready

VENV: Final = ROOT / ".venv-stores"
"""The environment that `make stores` installs: its packages do not suit the tests' own."""


def _installed(name: str) -> str:
    """A program of that environment."""
    program = VENV / "bin" / name
    if not program.exists():
        pytest.skip(f"{name} is not here: `make stores` brings it")
    return str(program)


def _ready(store: Store) -> Callable[[], object]:
    return store.admin.list_buckets


@contextlib.contextmanager
def rclone(directory: Path) -> Generator[Store]:
    """Run rclone's `serve s3` on a directory."""
    program = _installed("rclone")
    (directory / "data").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        with one_start_at_a_time():
            (port,) = free_ports(1)
            who = new_identity("admin")
            store = Store(port=port, log=directory / "rclone.log", admin_identity=who, identities={"all": who})
            command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", str(directory / "data")]
            variables = {"RCLONE_AUTH_KEY": f'"{who.access_key},{who.secret_key}"', "RCLONE_CONFIG": str(directory / "none")}
            process = stack.enter_context(run_server(command, store.log, variables))
            stack.enter_context(contextlib.closing(store.admin))
            wait_until_ready(process, store.log, _ready(store))
        yield store


@contextlib.contextmanager
def localstack(directory: Path) -> Generator[Store]:
    """Run LocalStack's S3. Given an IPv4 address it listens on all interfaces; so it gets the IPv6 form of one."""
    python = _installed("python")
    directory.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        with one_start_at_a_time():
            (port,) = free_ports(1)
            who = new_identity("admin")
            store = Store(port=port, log=directory / "localstack.log", admin_identity=who, identities={"all": who})
            variables = {
                "SERVICES": "s3", "GATEWAY_LISTEN": f"[::ffff:127.0.0.1]:{port}", "EAGER_SERVICE_LOADING": "1",
                "DISABLE_EVENTS": "1", "SKIP_SSL_CERT_DOWNLOAD": "1", "DNS_ADDRESS": "0", "TMPDIR": str(directory),
                "FILESYSTEM_ROOT": str(directory / "root"), "LOCALSTACK_VOLUME_DIR": str(directory / "volume"),
            }  # fmt: skip
            process = stack.enter_context(run_server([python, "-m", "localstack.runtime.main"], store.log, variables))
            stack.enter_context(contextlib.closing(store.admin))
            wait_until_ready(process, store.log, _ready(store))
        yield store


@contextlib.contextmanager
def swift(directory: Path) -> Generator[Store]:
    """Run OpenStack Swift with its S3 API: a proxy, and one server each for accounts, containers and objects."""
    program = _installed("swift-proxy-server")
    (directory / "devices" / "disk").mkdir(parents=True)
    who = Identity("admin", "test:tester", f"canary{uuid.uuid4().hex}")
    (directory / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = test\nswift_hash_path_prefix = test\n")
    with contextlib.ExitStack() as stack:
        with one_start_at_a_time():
            ports = dict(zip(("proxy", "account", "container", "object"), free_ports(4), strict=True))
            store = Store(port=ports["proxy"], log=directory / "proxy.log", admin_identity=who, identities={"all": who})
            for server in ("account", "container", "object"):
                ring = [_installed("swift-ring-builder"), str(directory / f"{server}.builder")]
                subprocess.run([*ring, "create", "4", "1", "0"], check=True, capture_output=True)
                device = f"r1z1-127.0.0.1:{ports[server]}/disk"
                subprocess.run([*ring, "add", device, "1"], check=True, capture_output=True)
                subprocess.run([*ring, "rebalance"], check=False, capture_output=True)  # exit code 1 is a warning
            for server, port in ports.items():
                (directory / f"{server}.conf").write_text(_swift_configuration(server, directory, port, who))
                command = [program.replace("proxy", server), str(directory / f"{server}.conf"), "-v"]
                process = stack.enter_context(run_server(command, directory / f"{server}.log", {}))
            stack.enter_context(contextlib.closing(store.admin))
            wait_until_ready(process, store.log, _ready(store))
        yield store


def _swift_configuration(server: str, directory: Path, port: int, who: Identity) -> str:
    common = (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nswift_dir = {directory}\ndevices = {directory}/devices\n"
        "mount_check = false\nlog_level = INFO\nlog_statsd_host =\nuser = root\nfallocate_reserve = 0\ndisable_fallocate = true\n"
    )
    if server != "proxy":
        recon = f"[filter:recon]\nuse = egg:swift#recon\nrecon_cache_path = {directory}\n"
        return f"{common}[pipeline:main]\npipeline = {server}-server\n[app:{server}-server]\nuse = egg:swift#{server}\n{recon}"
    filters = {
        "catch_errors": "", "gatekeeper": "", "proxy-logging": "", "listing_formats": "", "bulk": "", "slo": "", "dlo": "",
        "s3api": "s3_acl = false\nlocation = us-east-1\nallow_multipart_uploads = true\ncheck_bucket_owner = false\n",
        "tempauth": f"user_test_tester = {who.secret_key} .admin\n", "cache": "memcache_servers = 127.0.0.1:1\n",
    }  # fmt: skip
    eggs = {"proxy-logging": "proxy_logging", "cache": "memcache"}
    sections = "".join(f"[filter:{name}]\nuse = egg:swift#{eggs.get(name, name)}\n{more}" for name, more in filters.items())
    pipeline = "catch_errors gatekeeper proxy-logging listing_formats bulk s3api tempauth slo dlo proxy-server"
    return (
        f"{common}[pipeline:main]\npipeline = {pipeline}\n{sections}"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
    )


@contextlib.contextmanager
def ceph(directory: Path) -> Generator[Store]:
    """Run Ceph's RADOS Gateway, with one monitor, and one OSD on a disk in memory. From Debian's packages."""
    if missing := [one for one in ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin") if shutil.which(one) is None]:
        pytest.skip(f"{', '.join(missing)} not here: apt-get install ceph-mon ceph-osd radosgw")
    directory.mkdir(parents=True)
    who = new_identity("admin")
    with contextlib.ExitStack() as stack:
        with one_start_at_a_time():
            mon, port = free_ports(2)
            fsid = str(uuid.uuid4())
            configuration = directory / "ceph.conf"
            configuration.write_text(_ceph_configuration(directory, fsid, mon, port))
            conf = ["-c", str(configuration)]
            monmap = str(directory / "monmap")
            keyring = str(directory / "keyring")
            everything = [part for one in ("mon", "osd", "mgr") for part in ("--cap", one, "allow *")]
            for command in (
                ["ceph-authtool", keyring, "--create-keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"],
                ["ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything],
                [
                    "monmaptool",
                    "--create",
                    "--addv",
                    "a",
                    f"[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon + 10_000}]",
                    "--fsid",
                    fsid,
                    monmap,
                ],
                ["ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring],
            ):
                _output(command)
            stack.enter_context(run_server(["ceph-mon", *conf, "-i", "a", "-f"], directory / "mon.log", {}))
            ceph: list[str] = ["ceph", *conf, "--connect-timeout", "30"]
            osd = str(uuid.uuid4())
            _output([*ceph, "osd", "create", osd])
            _output(
                [
                    *ceph,
                    "auth",
                    "get-or-create",
                    "osd.0",
                    "mon",
                    "allow profile osd",
                    "osd",
                    "allow *",
                    "-o",
                    f"{directory}/osd/keyring",
                ]
            )
            _output(["ceph-osd", *conf, "-i", "0", "--mkfs", "--osd-uuid", osd])
            stack.enter_context(run_server(["ceph-osd", *conf, "-i", "0", "-f"], directory / "osd.log", {}))
            _until(lambda: json.loads(_output([*ceph, "osd", "stat", "-f", "json"]))["num_up_osds"] == 1)
            store = Store(port=port, log=directory / "rgw.log", admin_identity=who, identities={"all": who})
            name = ["-n", "client.admin"]
            process = stack.enter_context(run_server(["radosgw", *conf, *name, "-f"], store.log, {}))
            user = [
                "user",
                "create",
                "--uid=test",
                "--display-name=test",
                f"--access-key={who.access_key}",
                f"--secret={who.secret_key}",
            ]
            _output(["radosgw-admin", *conf, *name, *user], timeout=120)
            stack.enter_context(contextlib.closing(store.admin))
            wait_until_ready(process, store.log, _ready(store))
        yield store


def _ceph_configuration(directory: Path, fsid: str, mon: int, port: int) -> str:
    for one in ("mon", "osd", "run"):
        (directory / one).mkdir()
    return f"""[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon + 10_000}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon data avail crit = 1
mon data = {directory}/mon
osd data = {directory}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd memory target = 939524096
run dir = {directory}/run
admin socket = {directory}/run/$name.asok
pid file =
log file =
log to stderr = true
err to stderr = true
keyring = {directory}/keyring
ms bind ipv6 = false
[osd]
keyring = {directory}/osd/keyring
[client.admin]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dynamic resharding = false
rgw run sync thread = false
"""


STORES: Final[dict[str, Callable[[Path], contextlib.AbstractContextManager[Store]]]] = {
    "rclone": rclone, "Swift": swift, "LocalStack": localstack, "Ceph": ceph,
}  # fmt: skip


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not get ready")
        time.sleep(0.2)


def _output(command: list[str], *, timeout: float = 60) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr[-2000:]}")
    return done.stdout
