"""Decide which values may be shown: recognize credentials in the wrong place, so that no message repeats them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

_FORMS: Final = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("a certificate (PEM)", r"^\s*['\"]?-----BEGIN [A-Z ]*CERTIFICATE(?!.*PRIVATE)"),
        ("a key (PEM)", r"----\s?BEGIN |PuTTY-User-Key-File|LS0tLS1CRUdJTi"),
        ("a key (JSON)", r"^[\s'\"\ufeff]*[{\[]\s*(?:[\"'\\{\[]|$)|^(?:eyJ|ew[0og])[\w+/=-]{20,}$"),
        ("a key (JSON web token)", r"\beyJ[\w-]{8,}\.[\w-]+"),
        ("a key (access key id)", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}\b"),
        (
            "a key (token)",
            r"\b(?:gh[pousr]_\w{20}|github_pat_\w{20}|glpat-[\w-]{16}|xox[abeprs]-[\w-]{10}|AIza[\w-]{30}|ya29\.[\w-]{10}"
            r"|GOCSPX-[\w-]{10}|GOOG[A-Z0-9]{20}|[rs]k_(?:live|test)_\w{10}|hv[sb]\.\w{20}|do[opr]_v1_\w{20}|npm_\w{30}|pypi-\w{20}"
            r"|AGE-SECRET-KEY-1\w+|(?:Bearer|Basic)\s+[\w.~+/-]{8})",
        ),
        ("a key (signature)", r"(?i)(?:^|[?&;\s])(?:sig|signature|x-(?:amz|goog)-(?:signature|credential|security-token))=\S"),
        (
            "a key (with its name)",
            r"(?i)(?:account_?key|access_?key(?:_?id)?|shared_?access_?\w+|private_?key(?:_id)?|api_?key|secret(?:_?(?:access_?)?key)?|passw(?:or)?d|auth_?token)"
            r"[\"'\\]*\s*[=:]\s*\S|\bpassword\s+\S",
        ),
        ("a key (URL with a user or a password)", r"://\S*@"),
        ("a key (base64)", r"^(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/_-]{21,}={1,2}$"),
        ("a key (hexadecimal digits; shorten it if it is an id)", r"^[0-9a-fA-F]{64,}$"),
    )
)  # fmt: skip
_LONG: Final = 30
"""Shortest key: random-looking text of this length is one. MinIO's secrets have this many characters, Backblaze's 31, AWS's 40."""
MAX_SHOWN: Final = 300
"""Characters of a wrong value that a message shows."""
_SHORT: Final = 16
"""Shorter text is not a key; this long, it might be."""
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_PLAIN: Final = re.compile(r"[A-Za-z]{1,15}|[a-z]{1,4}[0-9]?(?::[-+]?[0-9]{0,3})?|[-+]?[0-9][0-9.,_]{0,11}\s?[A-Za-z]{0,8}")


def credential_in(text: str) -> str:
    """The kind of credential that a text looks like; empty for anything else, such as names, numbers, paths and ids."""
    for kind, form in _FORMS:
        if form.search(text):
            return kind
    joined = "".join(text.split())  # base64 has line breaks
    return "a key (random characters)" if len(joined) >= _LONG and _looks_random(joined) and not _is_path(text) else ""


def may_be_credential(text: str) -> bool:
    """Whether a text may be a credential, and must not be shown. Unlike `credential_in`, it includes many ids."""
    if credential_in(text):
        return True
    if len(text) < _SHORT or _is_path(text):
        return False
    return _looks_random(text) or re.fullmatch(r"(?i)[0-9a-f]{32,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None


def shown(text: str) -> str:
    """A wrong value, fit for a message: quoted, or only described if it may be a credential or is too long."""
    is_hidden = len(text) > MAX_SHOWN or may_be_credential(text)
    return f"(a value of {len(text):,} characters, not shown)" if is_hidden else repr(text)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text with `****` for each secret, even if some of its characters are escaped as in a URL or by Python."""
    for secret in filter(None, secrets):
        text = re.sub("".join(map(_written, secret)), "****", text)
    return text


def _written(character: str) -> str:
    """A regular expression for all spellings of a character."""
    if character.isascii() and character.isalnum():
        return character
    data = character.encode("utf-8", "surrogatepass")
    quoted, plus = quote(data, safe=""), quote_plus(data)
    forms = {character, quoted, quoted.lower(), plus, repr(character)[1:-1], ascii(character)[1:-1], repr(data)[2:-1]}
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


def is_plain(text: str) -> bool:
    """Whether a text is a short word, a format with a level, or a number with a unit: a likely typo of a number or a choice."""
    return _PLAIN.fullmatch(text) is not None


def without_credentials(text: str, values: Iterable[str]) -> str:
    """The text with `****` for each value that may be a credential."""
    return redacted(text, {value for value in values if may_be_credential(value)})


def _is_path(text: str) -> bool:
    """Whether such a file, or at least the first directory in its path, exists: base64 secrets have slashes, too."""
    if os.path.lexists(text):
        return True
    top = re.match(r"(~|\.{1,2}|/?[^/]+)/", text)
    return top is not None and os.path.lexists(os.path.expanduser(top[1]))  # noqa: PTH111 - no error without a home directory


def _looks_random(text: str) -> bool:
    """Whether capitals, small letters and digits alternate as in keys, and unlike in words."""
    letters = re.sub(r"[+/=_~.-]", "", text)
    if not letters.isascii() or not letters.isalnum() or len(letters) < 0.8 * len(text):
        return False
    words = _WORD.findall(letters)
    return not (letters.isupper() or letters.islower()) and len(words) >= 0.3 * len(letters)
