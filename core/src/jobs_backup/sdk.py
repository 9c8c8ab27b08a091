"""Helpers for providers: code that each would repeat, and that is easy to get wrong."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, TypeVar

from jobs_backup.errors import (
    ConfigurationError,
    JobsBackupError,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
    StorageError,
    Throttled,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from jobs_backup.model import DeleteReceipt
from jobs_backup.util.ambient import PROXY_HINT, cleaned, expected, is_proxy, proxy_fault, proxy_secrets, variables
from jobs_backup.util.disclosure import may_be_credential, shown
from jobs_backup.util.exhaustion import explain
from jobs_backup.util.fsync import sync_directory, sync_file, sync_parents
from jobs_backup.util.logs import printable

__all__ = [
    "CHECKSUM_HINT",
    "FAULT",
    "HTTP_ERRORS",
    "MAX_RESPONSE_TEXT",
    "NETWORK_HINT",
    "REDIRECTS",
    "STRANGER_HINT",
    "THROTTLED",
    "ErrorRule",
    "PerProcess",
    "check_ambient",
    "check_proxies",
    "check_proxy",
    "cleaned",
    "delete_each",
    "error_chain",
    "error_names",
    "explain",
    "forbidden",
    "hide_in_logs",
    "map_exception",
    "map_status",
    "mapped_errors",
    "moved",
    "printable",
    "proxy_secrets",
    "size_listed",
    "sync_directory",
    "sync_file",
    "sync_parents",
    "system_message",
    "tls_rules",
    "unreadable",
    "unusable",
]

T = TypeVar("T")
_DELETES: Final = 8
"""Concurrent requests."""
_DIGITS: Final = 19
"""Digits of the largest size that fits into the catalog's 63 bits."""
_OF_THE_STORE: Final = (Throttled, Unavailable)


class PerProcess(Generic[T]):
    """Something that is made on first use, once per process and key, such as an SDK's client.

    Any number of threads may ask for it. A forked process makes its own: it must neither use nor close the parent's sockets, and
    the parent's lock may be held by a thread that the fork does not have.
    """

    def __init__(self, make: Callable[..., T]) -> None:
        """Call `make` with the key. Its errors pass through, and the next `get` calls it again."""
        self._make = make
        self.renew()

    def get(self, *key: Hashable) -> T:
        """The one for this key."""
        pid, lock, made = self._of_process
        if pid != os.getpid():
            self.renew()
            _, lock, made = self._of_process
        if key in made:
            return made[key]
        with lock:
            if key not in made:
                made[key] = self._make(*key)
            return made[key]

    def renew(self, stale: T | None = None) -> bool:
        """Discard what was made: the next call makes it again, and reads the credential files again.

        Args:
            stale: discard only if this was made since the last renewal: when a store refuses many threads, only the first one
                renews.

        Returns whether anything was discarded.
        """
        if stale is not None and not any(one is stale for one in list(self._of_process[2].values())):
            return False
        self._of_process: tuple[int, threading.Lock, dict[tuple[Hashable, ...], T]] = (os.getpid(), threading.Lock(), {})
        return True


def check_proxies(environment: Mapping[str, str], *, socks: bool = False, schemeless: bool = True) -> None:
    """Reject proxy variables that the HTTP library would fail to parse, with an error that shows part of the password.

    Args:
        environment: where the settings come from. The process's own environment, which the library reads, is checked too.
        socks: whether the HTTP library speaks SOCKS. `ALL_PROXY` may name a SOCKS proxy in any case: other programs use it.
        schemeless: whether the HTTP library takes `host:port` and `user:password@host:port`. `requests` does only for some.

    Raises:
        ConfigurationError: names the variable, and shows nothing of the value.
    """
    for name, text in variables(environment):
        if is_proxy(name):
            check_proxy(name, text, socks=socks or name.lower() == "all_proxy", schemeless=schemeless)


def check_proxy(variable: str, text: str, *, socks: bool = False, schemeless: bool = True) -> None:
    """Reject a proxy URL that an HTTP library would fail to parse.

    Args:
        variable: where the URL comes from.
        text: the URL, or `host:port`.
        socks: whether the HTTP library speaks SOCKS.
        schemeless: whether the HTTP library takes `host:port` and `user:password@host:port`.

    Raises:
        ConfigurationError: names the variable, and shows nothing of the value.
    """
    if fault := proxy_fault(text, socks=socks, schemeless=schemeless):
        raise ConfigurationError(f"{variable}: {fault}", hint=PROXY_HINT)


def check_ambient(environment: Mapping[str, str], forms: Mapping[str, str | tuple[str, ...]]) -> None:
    """Reject invalid variables that an SDK reads by itself and would repeat in its errors.

    Args:
        environment: where the settings come from. The process's own environment, which the SDK reads, is checked too.
        forms: variable -> its required form: "url", "host", "https host", "path of a url", "number" or "name"; or the allowed
            words.

    Raises:
        ConfigurationError: names the variable, and shows nothing of the value.
    """
    for name, text in variables(environment):
        if name in forms and (words := expected(text, forms[name])):
            raise ConfigurationError(f"{name}: expected {words}", hint=f"correct or unset {name}, which the SDK reads")


def delete_each(keys: Sequence[str], delete: Callable[[str], object]) -> DeleteReceipt:
    """Implement the hook `delete` for a store without bulk delete: one request per key, several at once.

    Args:
        delete: deletes one object. ObjectNotFound counts as deleted; any other error of jobs-backup is the key's outcome.

    Raises:
        JobsBackupError: the first key's error, if all other keys would fail the same way.
    """

    def outcome(key: str) -> JobsBackupError | None:
        try:
            delete(key)
        except ObjectNotFound:
            return None
        except JobsBackupError as error:
            return error
        return None

    if not keys:
        return DeleteReceipt(deleted=frozenset())
    first = outcome(keys[0])
    if first is not None and (first.refused or isinstance(first, _OF_THE_STORE)) and not isinstance(first, PermissionDenied):
        raise first  # a permission may be missing for one key only
    with ThreadPoolExecutor(_DELETES) as pool:
        outcomes = dict(zip(keys, [first, *pool.map(outcome, keys[1:])], strict=True))
    failed: dict[str, Exception] = {key: error for key, error in outcomes.items() if error is not None}
    return DeleteReceipt(deleted=frozenset(keys) - failed.keys(), failed=failed)


class ErrorRule(NamedTuple):
    """A row of a provider's error tables: the error for a code, a status or an exception, and what the operator can do."""

    error: type[JobsBackupError]
    hint: str = ""

    def to_error(self, message: str, *, retry_after: float | None = None) -> JobsBackupError:
        """Make the error. `retry_after`, in seconds, is set on Throttled and Unavailable alone."""
        if issubclass(self.error, Throttled | Unavailable):
            return self.error(message, hint=self.hint, retry_after=retry_after)
        return self.error(message, hint=self.hint)


MAX_RESPONSE_TEXT: Final = 2000
"""Characters of a response's text that a provider looks at: any server may respond."""
REDIRECTS: Final = (301, 302, 303, 307, 308)
"""HTTP statuses of redirects: see `moved`."""
NETWORK_HINT: Final = "check the endpoint, DNS, firewall and proxy between here and the store"
STRANGER_HINT: Final = "the response may not come from the store: check the endpoint and the proxy"
CHECKSUM_HINT: Final = "if it persists, the network, a proxy or the disk changes bytes"
THROTTLED: Final = ErrorRule(Throttled, "if it persists, lower JOBS_BACKUP_UPLOAD_CONCURRENCY")
FAULT: Final = ErrorRule(Unavailable, "a fault in the store: see its status page or log")
_PROXY: Final = ErrorRule(
    ConfigurationError,
    "write HTTPS_PROXY, HTTP_PROXY and ALL_PROXY as http://user:password@host:port; for SOCKS, install PySocks",
)
HTTP_ERRORS: Final[Mapping[str, ErrorRule]] = {
    **dict.fromkeys(("InvalidSchema", "InvalidURL", "LocationValueError"), _PROXY),
    "ProxyError": ErrorRule(Unreachable, "check HTTPS_PROXY and NO_PROXY"),
    **dict.fromkeys(
        (
            "NewConnectionError", "NameResolutionError", "ConnectTimeout", "ConnectTimeoutError", "ConnectionRefusedError",
            "gaierror",
        ),
        ErrorRule(Unreachable, NETWORK_HINT),
    ),
    **dict.fromkeys(
        ("RequestException", "ConnectionError", "TimeoutError", "HTTPError", "SSLError"), ErrorRule(Unavailable, NETWORK_HINT)
    ),
}  # fmt: skip
"""Rules for `map_exception`, for an SDK that uses requests or urllib3."""


@contextmanager
def mapped_errors(to_error: Callable[[Exception], JobsBackupError]) -> Generator[None]:
    """Raise whatever is raised within the block as an error of jobs-backup.

    The SDK's error is not chained to it: its text may contain URLs, and with them upload ids and signatures.

    Args:
        to_error: returns the error for an SDK's exception. Errors of jobs-backup pass through unchanged.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - nothing is swallowed
        raise (error if isinstance(error, JobsBackupError) else to_error(error)) from None


def map_status(status: int, rules: Mapping[int, ErrorRule]) -> ErrorRule | None:
    """The rule for an HTTP status from any sender: from `rules`, else THROTTLED for 429 and FAULT for 408 and 5xx.

    None for other statuses: only the store can say what they mean.
    """
    if status in rules:
        return rules[status]
    if status == 429:
        return THROTTLED
    return FAULT if status == 408 or status >= 500 else None


def map_exception(
    call: object,
    error: BaseException,
    rules: Mapping[str, ErrorRule],
    *,
    text: str,
    tls: Mapping[str, ErrorRule] = MappingProxyType({}),
    names: Collection[str] | None = None,
) -> JobsBackupError:
    """The error for an exception that is not the store's response, by the names of classes: the SDK need not be imported.

    Args:
        call: what was tried, for the message.
        error: what the SDK raised.
        rules: name of an exception class, or of a base, -> its rule. The first that matches counts.
        text: what the message quotes, already `cleaned`: see `system_message`.
        tls: part of the text of a TLS error -> its rule: see `tls_rules`. Other TLS errors mean a broken connection.
        names: names to match instead of `error_names(error)`.

    Returns a StorageError if no rule matches.
    """
    names = error_names(error) if names is None else names
    rule = next((rule for name, rule in rules.items() if name in names), None)
    part = ""
    if "SSLError" in names:
        said = " ".join([*map(str, error_chain(error)), *error_names(error)])
        part = next((part for part in tls if part in said), "")
        rule = tls.get(part, rule)
    if rule is None:
        return StorageError(f"{call}: {type(error).__name__}: {text}")
    found = rule.to_error(f"{call}: {text}")
    if part == _NO_TLS:
        found.refused = False  # it may also come after a request was sent, instead of its response
    return found


_NO_TLS: Final = "WRONG_VERSION_NUMBER"


def tls_rules(certificate: str, bundle: str) -> Mapping[str, ErrorRule]:
    """Rules for TLS errors that only a setting can fix, for `map_exception`.

    Args:
        certificate: hint for a certificate that cannot be verified.
        bundle: hint for a file of CA certificates that cannot be used.
    """
    untrusted, unusable_file = ErrorRule(ConfigurationError, certificate), ErrorRule(ConfigurationError, bundle)
    return {
        **dict.fromkeys(("CERTIFICATE_VERIFY_FAILED", "SSLCertVerificationError", "doesn't match"), untrusted),
        _NO_TLS: ErrorRule(ConfigurationError, "the endpoint does not use TLS: write http:// before it, or correct the port"),
        **dict.fromkeys(("NO_CERTIFICATE_OR_CRL_FOUND", "PEM lib"), unusable_file),
    }


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those behind it: causes, contexts, and the ones that HTTP libraries keep in attributes or arguments."""
    found = [error]
    for _ in range(12):
        one = found.pop(0) if found else None
        if one is None:
            return
        yield one
        inner = (one.__cause__, one.__context__, getattr(one, "inner_exception", None), getattr(one, "reason", None), *one.args)
        found += [other for other in inner if isinstance(other, BaseException) and other is not one]


def error_names(error: BaseException) -> set[str]:
    """Names of the classes of all exceptions in `error_chain`, and of their bases."""
    return {class_.__name__ for one in error_chain(error) for class_ in type(one).__mro__}


def system_message(error: BaseException, default: str | None = None) -> str:
    """What the operating system said about a failed request: SDKs put it into texts with URLs in them.

    Args:
        default: used where no system call failed. Without it, the exception's own text, or its class if that text has a URL in it.
    """
    for one in error_chain(error):
        if type(one).__module__.split(".")[0] in ("builtins", "socket", "ssl", "http"):
            return getattr(one, "strerror", None) or str(one) or type(one).__name__
    text = str(error) if default is None else default
    return text if default is not None or not re.search("://|url:", text) else type(error).__name__


def size_listed(listed: object) -> int:
    """Size from a store's listing, 0 if invalid: an odd entry must not make the whole list fail."""
    text = str(listed).strip()
    return int(text) if len(text) < _DIGITS and text.isascii() and text.isdecimal() else 0


def unreadable(
    call: object, error: BaseException | None = None, *, files: Mapping[str, str] | None = None
) -> Unauthenticated | None:
    """Find the credential file that this process cannot read. SDKs omit the path, or silently look elsewhere.

    Args:
        call: what failed, for the message.
        error: what the SDK raised; an OSError behind it may name the file.
        files: variable or option that names a file -> its path, for files that the SDK reads by itself. Empty paths are skipped.

    Returns the error to raise, or None if every file can be read.
    """
    for one in error_chain(error):
        if isinstance(one, OSError) and isinstance(one.filename, str | bytes):
            path = os.fsdecode(one.filename)
            named = [name for name, value in {**os.environ, **(files or {})}.items() if value == path]
            return _unreadable(call, named[-1] if named else "", path, one)
    for name, path in (files or {}).items():
        try:
            if path:
                Path(path).expanduser().open("rb").close()
        except (OSError, RuntimeError) as found:
            return _unreadable(call, name, path, found)
    return None


def unusable(call: object, files: Mapping[str, str], *, text: bool = True) -> Unauthenticated | None:
    """Find a credential file that is empty or not text. SDKs omit its path.

    Args:
        call: what failed, for the message.
        files: variable or option that names a file -> its path. Empty paths are skipped; unreadable files are left to `unreadable`.
        text: whether the files must be text, such as tokens.

    Returns the error to raise, or None if every file can be used.
    """
    for name, path in files.items():
        try:
            data = Path(path).expanduser().read_bytes() if path else b"unset"
            fault = "" if data.strip() else "the file is empty"
            if text:
                data.decode()
        except UnicodeDecodeError:
            fault = "the file is not text"
        except (OSError, RuntimeError):
            continue
        if fault:
            hint = f"let what issues the credentials write it again, or correct or unset {name}"
            return Unauthenticated(f"{call}: {name}: {path}: {fault}", hint=hint)
    return None


def _unreadable(call: object, name: str, path: str, error: Exception) -> Unauthenticated:
    user = f"the user of this process (uid {os.geteuid()})"
    correct = f"correct or unset {name}" if name else "correct the path"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        hint = f"mount the file there, or {correct}; in Kubernetes, check the pod's service account and volumes"
    elif isinstance(error, PermissionError):
        hint = f"let {user} read the file; in Kubernetes, set the pod's securityContext.fsGroup to a group of that user"
    else:
        hint = f"{correct}: it must name a readable file"
    if may_be_credential(path):
        path, hint = shown(path), f"{name or 'what names the file'} holds what looks like a key, not a path: save it in a file"
    why = getattr(error, "strerror", None) or type(error).__name__
    return Unauthenticated(": ".join(filter(None, (str(call), name, path, why))), hint=hint)


_FORBIDDEN: Final = tuple(
    (re.compile(words, re.IGNORECASE), error, hint)
    for words, error, hint in (
        (
            r"quota|\bcaps?\b|capacity|storage.{0,9} full|limit.{0,9} exceeded|exceed.{0,9} limit|insufficient storage",
            Unavailable,
            "a quota of the bucket or the account is exhausted: raise it, or delete what is not needed",
        ),
        (
            r"suspend|account.{0,20}(disable|close|deactivat|frozen|lock|problem)|(user|account) (is )?disable|billing|payment"
            r"|overdue|arrear|unpaid|\btrial\b|not signed up|opt in required",
            Unauthenticated,
            "the account is suspended, disabled or unpaid: see its billing page, or ask the store's support",
        ),
        (
            r"skew|clock|time frame|request.{0,9} expired",
            Unauthenticated,
            "set this machine's clock (NTP), or replace expired credentials",
        ),
        (
            r"headers?.{0,60}not signed",
            None,
            "a proxy between here and the store adds or changes headers: make it pass requests unchanged",
        ),
        (
            r"(content.?md5|checksum).{0,90}required|required.{0,90}(content.?md5|checksum)",
            ConfigurationError,
            "the bucket requires checksums: turn on the provider's",
        ),
        (
            r"(missing|without|no) object.?lock config|object.?lock config.{0,40}(missing|not found|not exist|not enabled)",
            ConfigurationError,
            "the bucket has no object lock configuration: set one, or remove what asks for object lock",
        ),
        (
            r"object.?lock|worm\b|retention|legal.?hold|active.?hold|immutab|object.{0,9}lock",
            None,
            "a retention policy or a hold protects the object: nothing can replace or delete it before that ends",
        ),
        (r"\bmfa\b|multi.?factor", None, "the bucket requires MFA for this, which a service cannot provide: turn off MFA delete"),
        (
            r"\bip\b|ip.?address|firewall|network rule|\bvpc|perimeter|country|geo.?restrict|embargo",
            None,
            "the store rejects requests from this network: change its firewall, or the policy's condition on addresses",
        ),
        (
            r"https (is )?(only|required)|ssl.?required|secure.?(transport|connection)|\btls\b",
            None,
            "the store requires TLS: use https://",
        ),
        (r"archiv|glacier|invalid object state", NotSupported, "the object is archived: restore it to read it"),
    )
)
"""Words of a refusal that is not a missing permission, its error (None: a PermissionDenied), and what to do."""
_LONGEST: Final = 500
"""Maximum number of characters examined in the store's answer: anybody may answer."""
_NAMES: Final = re.compile(r"\S*[:/@]\S*")
"""ARNs, keys and accounts in the store's sentence: their names may contain any word."""


def forbidden(message: str, code: str, said: str, *, action: str, resource: str, owned: bool = True) -> JobsBackupError:
    """Error for an HTTP 403 that the provider's own tables do not cover. Not every 403 is a missing permission.

    Args:
        message: of the error.
        code, said: the store's error code and sentence; empty if it gave none.
        action, resource: what to grant on what, if a permission is missing.
        owned: whether the answer is in the store's own words: a proxy also refuses with 403.
    """
    said = said[:_LONGEST]
    words = f"{re.sub('(?<=[a-z0-9])(?=[A-Z])', ' ', code[:_LONGEST])} {_NAMES.sub('', said)}"
    grant = f"grant {action} on {resource}"
    hint = ""
    if not owned:
        hint = f"the response may come from a proxy or a firewall: check what answers at the endpoint; if it is the store, {grant}"
    elif "explicit deny" in words:
        hint = f"a policy denies {action} on {resource}: change that policy"
    elif limiting := re.search(r"no ([\w -]*(?:policy|boundary)) allow", words):
        hint = f"the {limiting[1]} does not allow {action} on {resource}: change it"
    else:
        for pattern, error, advice in _FORBIDDEN:
            if pattern.search(words):
                if error is not None:
                    return error(message, hint=advice)
                hint = advice
                break
        else:
            if code and not re.search(r"denied|forbid|permission|authori[sz]|not allowed|access", words, re.IGNORECASE):
                hint = f"look up {code} in the store's documentation; if it is a missing permission, {grant}"
    return PermissionDenied(message, action=action, resource=resource, hint=hint)


def moved(message: str, location: str, setting: str) -> ConfigurationError:
    """Error for a redirect, which is never followed: the body and its signature are for one host.

    Args:
        message: of the error.
        location: the header `Location`. Only its host is shown: a query may contain a signature.
        setting: the variable that sets the endpoint.
    """
    found = re.match(r"(https?)://(?:[^/@?#]*@)?([\w.\[\]:-]+)", location, re.IGNORECASE)
    if found is None:
        return ConfigurationError(
            message, hint=f"a login page may have answered instead of the store: check the proxy and {setting}"
        )
    host = f"{found[1].lower()}://{found[2]}"
    return ConfigurationError(
        f"{message}: redirected to {host}", hint=f"if {host} is the store, set {setting} to it; otherwise check the proxy"
    )


def hide_in_logs(pattern: str, *loggers: str) -> None:
    """Make these loggers, an SDK's or its HTTP library's, write `****` in place of what the regular expression matches.

    They log URLs, which contain upload ids and signatures. Calling it again has no effect.
    """
    hide = _Hide(re.compile(pattern))
    for name in loggers:
        logging.getLogger(name).addFilter(hide)  # unless it has an equal one


class _Hide(logging.Filter):
    def __init__(self, secret: re.Pattern[str]) -> None:
        super().__init__()
        self._secret = secret

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hide) and self._secret == other._secret

    def __hash__(self) -> int:
        return hash(self._secret)

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if self._secret.search(text):
            record.msg, record.args = self._secret.sub("****", text), None
        return True
