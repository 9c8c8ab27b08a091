"""Environment variables that SDKs or their HTTP libraries read by themselves. Checked, because their errors repeat the values."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import unquote

from jobs_backup.util.disclosure import credential_in, may_be_credential, redacted

_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})
"""In any case: `urllib.request.getproxies`, which botocore and requests call, folds the names."""
_SOCKS: Final = ("socks4", "socks4a", "socks5", "socks5h")
_HOST: Final = r"(?:\w(?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*\.?|\[[0-9a-f:.]+(?:%[\w.-]+)?\])(?::(?P<port>[0-9]{1,5}))?"
_PROXY: Final = re.compile(rf"(?:(?:(?P<scheme>[a-z][a-z0-9+.-]*):)?//)?(?:(?P<user>[^\s/?#\[\]\\]*)@)?{_HOST}/?", re.IGNORECASE)
_LOOKS_LIKE_SCHEME: Final = re.compile(r"[a-z][a-z0-9+-]*:(?!//)", re.IGNORECASE)
"""A host or a user without a dot that urllib3, unlike botocore, reads as a scheme."""
_FORMS: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    "url": (
        re.compile(rf"https?://{_HOST}(?:/[\w.~!$&'()*+,;=:%/-]*)?(?:\?[\w.~!$&'()*+,;=:%/-]*)?", re.IGNORECASE),
        "a URL such as http://host:port",
    ),
    "host": (re.compile(rf"(?:https?://)?{_HOST}(?:/[\w./-]*)?", re.IGNORECASE), "a host, such as host:port"),
    "https host": (re.compile(rf"(?:https://)?{_HOST}(?:/[\w./-]*)?", re.IGNORECASE), "a URL such as https://host"),
    "path of a url": (re.compile(r"/[\w.~!$&'()*+,;=:%/?-]*"), "a path that begins with /"),
    "number": (re.compile(r"\s*[0-9]{1,9}\s*"), "a whole number"),
    "name": (re.compile(r"[\w.-]{1,200}"), "letters, digits, '.' and '-'"),
}
_SHORTEST: Final = 6
"""Shortest password, in characters, to remove wherever it occurs: shorter ones are part of many words."""
_LONGEST: Final = 300


PROXY_HINT: Final = "write it as http://user:password@host:port, with %2F, %23, %3F and %40 for / # ? @ in the password"


def is_proxy(name: str) -> bool:
    """Whether HTTP libraries read a proxy from this variable."""
    return name.lower() in _PROXIES


def proxy_fault(text: str, *, socks: bool, schemeless: bool) -> str:
    """Why an HTTP library would fail to parse a proxy's URL, without quoting it; empty if it would not.

    Args:
        socks, schemeless: what the library can use: a SOCKS proxy, and `host:port`.
    """
    found = _PROXY.fullmatch(text)
    if found is None or not _is_port(found["port"]) or any(character < " " or character == "\x7f" for character in text):
        return "it is not the URL of a proxy"
    if not schemeless and _LOOKS_LIKE_SCHEME.match(text):
        return "it lacks http://, and the HTTP library takes what precedes the first colon for the scheme"
    scheme = (found["scheme"] or "http").lower()
    if scheme in ("http", "https") or (socks and scheme in _SOCKS):
        return ""
    return "it names a SOCKS proxy, which the HTTP library cannot use" if scheme in _SOCKS else "its scheme is not http or https"


def expected(text: str, form: str | tuple[str, ...]) -> str:
    """What a variable's value should have been; empty if it is valid. `form`: a name in `_FORMS`, or all allowed words."""
    if isinstance(form, tuple):
        return "" if text.strip().lower() in form else f"one of {', '.join(form)}"
    pattern, words = _FORMS[form]
    found = pattern.fullmatch(text)
    is_good = found is not None and _is_port(found.groupdict().get("port")) and not credential_in(text)
    return "" if is_good else words


def variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The non-empty variables that settings are read from, and those of this process, which libraries read."""
    own: list[Mapping[str, str]] = [] if environment is os.environ else [os.environ]
    for one in (environment, *own):
        yield from ((name, text) for name, text in one.items() if text)


def cleaned(text: str, secrets: Iterable[str] = (), *, ambient: Iterable[str] = ()) -> str:
    """An SDK's or store's message, fit for display: one line, of limited length, without a full stop and without secrets.

    Args:
        text: of any origin.
        secrets: what to remove, in addition to credentials of proxies in the environment.
        ambient: variables that the SDK reads by itself; values that look like a credential are removed.
    """
    text = " ".join(redacted(text, [*secrets, *_of_environment(ambient)]).split()).removesuffix(".")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def proxy_secrets(url: str) -> Iterator[str]:
    """The parts of a proxy's URL that no message may show, in each of their spellings."""
    user, at, _ = url.rpartition("@")
    if not at:
        return
    user = re.sub(r"^(?:[\w+.-]+:)?//", "", user)
    password = user.partition(":")[2]
    yield from (url, user, base64.b64encode(unquote(user).encode("utf-8", "surrogatepass")).decode())
    yield from (one for one in (password, unquote(password)) if len(one) >= _SHORTEST)


def _of_environment(ambient: Iterable[str]) -> Iterator[str]:
    for name, text in os.environ.items():
        if name.lower() in _PROXIES:
            yield from proxy_secrets(text)
    for name in ambient:
        if may_be_credential(text := os.environ.get(name, "")):
            yield text


def _is_port(text: str | None) -> bool:
    return text is None or 0 < int(text) <= 65_535
