"""Addresses of `serve` and the monitoring port: the same with IPv4, IPv6, both, and a machine that lacks one of them."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from buckets import events, file_environment
from commands import run
from serving import TOKEN, serve

from jobs_backup.errors import ConfigurationError
from jobs_backup.inputs.http.auth import Access
from jobs_backup.settings.server import ServerSettings
from jobs_backup.util.listening import is_loopback, listen, url

V4: Final = "127.0.0.1"
V6: Final = "::1"


def _has_ipv6() -> bool:
    try:
        with socket.create_server((V6, 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6: Final = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
HOSTS: Final = [
    ("::", {V4, V6}), ("*", {V4, V6}), ("[::]", {V4, V6}), ("localhost", {V4, V6}), ("0.0.0.0", {V4}),
    (V4, {V4}), (V6, {V6}), ("[::1]", {V6}),
]  # fmt: skip


def _answers(address: str, port: int, path: str = "/readyz") -> bool:
    with closing(http.client.HTTPConnection(address, port, timeout=120)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except ConnectionRefusedError:
            return False


@needs_ipv6
@pytest.mark.parametrize(("host", "reached"), HOSTS, ids=[host for host, _ in HOSTS])
def test_both_ports_are_reached_by_the_same_addresses(tmp_path: Path, host: str, reached: set[str]) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_METRICS_HOST=host, JOBS_BACKUP_METRICS_PORT="0")
    with serve(env, "--host", host) as sidecar:
        ports = [urlsplit(line.rpartition(" ")[2]).port for line in sidecar.said.splitlines() if "http://" in line]
        assert len(ports) == 2
        for port in ports:
            assert port is not None
            assert {address for address in (V4, V6) if _answers(address, port)} == reached
        sidecar.end()


@needs_ipv6
def test_both_loopbacks_are_the_default(tmp_path: Path) -> None:
    with serve(file_environment(tmp_path, JOBS_BACKUP_METRICS_PORT="0")) as sidecar:
        assert "http://localhost:" in sidecar.url
        port = urlsplit(sidecar.url).port
        assert port is not None
        assert _answers(V4, port)
        assert _answers(V6, port)
        sidecar.end()


@needs_ipv6
def test_a_port_that_is_taken_for_one_family_is_not_taken_for_the_other() -> None:
    with socket.create_server((V6, 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen("localhost", port)
        with socket.create_server((V4, port)):
            pass  # released again


@needs_ipv6
def test_a_free_port_is_free_for_all_addresses() -> None:
    with ExitStack() as stack:
        for _ in range(200):
            listeners = [stack.enter_context(one) for one in listen("localhost", 0)]
            assert len({one.getsockname()[1] for one in listeners}) == 1


@needs_ipv6
@pytest.mark.parametrize("variable", ["JOBS_BACKUP_SERVER_HOST", "JOBS_BACKUP_METRICS_HOST"])
def test_what_can_not_be_listened_on_is_reported(tmp_path: Path, variable: str) -> None:
    for host in ("2001:db8::1", "192.0.2.1", "no-such-host.invalid", "a..b", "[::1", "::1%nowhere"):
        env = file_environment(tmp_path, JOBS_BACKUP_SERVER_TOKEN=TOKEN, JOBS_BACKUP_METRICS_PORT="0")
        code, _, stderr = run("serve", "--port", "0", env={**env, variable: host})
        assert (code, "[ConfigurationError]" in stderr, stderr.count("\n")) == (2, True, 1), (host, stderr)
        assert "cannot listen on" in stderr, (host, stderr)


@pytest.mark.parametrize("host", [V4, "127.1.2.3", V6, "[::1]", "localhost", "::ffff:127.0.0.1"])
def test_nobody_else_reaches_a_loopback(host: str) -> None:
    assert is_loopback(host)
    assert Access(ServerSettings(host=host)).is_open


@pytest.mark.parametrize(
    "host", ["::", "[::]", "0.0.0.0", "::ffff:192.0.2.1", "fe80::1%eth0", "192.0.2.1", "host.example", "*", ""]
)
def test_where_others_reach_it_credentials_are_needed(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigurationError, match="lets anyone"):
        Access(ServerSettings(host=host))


@pytest.mark.parametrize(("host", "shown"), [("::", "[::]"), ("[::1]", "[::1]"), (V4, V4), ("localhost", "localhost")])
def test_an_address_is_shown_as_in_a_url(host: str, shown: str) -> None:
    with socket.create_server((V4, 0)) as listener:
        assert url("http", host, listener) == f"http://{shown}:{listener.getsockname()[1]}"


# Kernels without IPv6: the first as in a container (by sysctl), the second with `ipv6.disable=1`, which allows no IPv6 sockets.

_PROGRAM: Final = """
import http.client, re, subprocess, sys
command = [sys.executable, "-c", "from jobs_backup.cli import main; main()", "serve", "--host", sys.argv[1], "--port", "0"]
process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
for line in process.stderr:
    if found := re.search(r"listening on http://.*:(\\d+)", line):
        break
else:
    raise SystemExit("it ended")
for port in (int(found[1]),):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Authorization": "Bearer " + sys.argv[2], "Content-Type": "application/json"}
    connection.request("POST", "/v1/events?source_id=web", '{"messageId":"a"}', headers)
    assert connection.getresponse().status == 200
process.terminate()
raise SystemExit(process.wait())
"""
_WITHOUT_SYSCTL: Final = "ip link set lo up 2>/dev/null || ifconfig lo up; echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && "
_WITHOUT_SOCKETS: Final = """
#include <errno.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
int socket(int family, int type, int protocol) {
    if (family == AF_INET6) { errno = EAFNOSUPPORT; return -1; }
    return (int)syscall(SYS_socket, family, type, protocol);
}
"""


def _serve_and_record(tmp_path: Path, host: str, *prefix: str, **variables: str) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_SERVER_TOKEN=TOKEN, JOBS_BACKUP_METRICS_HOST=host, JOBS_BACKUP_METRICS_PORT="0")
    environment = {"PATH": os.environ["PATH"], **env, **variables}
    command = [*prefix, sys.executable, "-c", _PROGRAM, host, TOKEN]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert [event["messageId"] for event in events(tmp_path)] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces and LD_PRELOAD are Linux's")
@pytest.mark.parametrize("host", ["::", "localhost"])
class TestWithoutIpv6:
    def test_disabled_by_sysctl(self, tmp_path: Path, host: str) -> None:
        script = f'{_WITHOUT_SYSCTL} exec "$@"'
        namespace = ["unshare", "--net", "sh", "-c", script, "sh"]
        tried = (
            subprocess.run([*namespace, "true"], capture_output=True, text=True, check=False) if shutil.which("unshare") else None
        )
        if tried is None or tried.returncode:
            pytest.skip(
                "network namespaces need unshare, ip and root" if tried is None else f"no namespace: {tried.stderr.strip()}"
            )
        _serve_and_record(tmp_path, host, *namespace)

    def test_not_in_the_kernel(self, tmp_path: Path, host: str) -> None:
        if (compiler := shutil.which("cc")) is None:
            pytest.skip("there is no C compiler: cc")
        (tmp_path / "socket.c").write_text(_WITHOUT_SOCKETS)
        library = tmp_path / "socket.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "socket.c"], check=True)
        _serve_and_record(tmp_path, host, LD_PRELOAD=str(library))
