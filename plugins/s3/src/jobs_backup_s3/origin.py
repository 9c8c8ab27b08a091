"""Decides whether an answer comes from the store, and not from a proxy, a login page or another server at the endpoint.

A status alone can come from anything. Errors are recognized by the code in their XML: see `errors`. This module checks the rest:
successes that consist of a status alone, and codes after which the caller forgets an object or upload. AWS sends
`x-amz-request-id` with each answer; once another store has sent it, its later answers must have it too.
"""

from __future__ import annotations

import re
from typing import Any, Final

_MARK: Final = "x-amz-request-id"
_BARE: Final = frozenset({"AbortMultipartUpload", "DeleteObject"})
"""Operations whose success consists of a status alone."""
_NO_BODY: Final = _BARE | {"PutObject", "UploadPart"}
"""Operations whose success response has an empty body."""
_CLAIMS: Final = frozenset({"PreconditionFailed", "NoSuchUpload", "NoSuchKey"})
"""Codes after which the caller forgets something: the object already exists, or the upload or object is gone."""
_PAGE: Final = re.compile(rb"\s*[^<\s]|.{0,500}<html", re.IGNORECASE | re.DOTALL)
"""The beginning of a body that is not a store's XML."""


class NotTheStore(Exception):
    """Something other than the store answered. The text says how that was detected."""


class Origin:
    """Checks the answers of one store, and remembers whether they are marked."""

    def __init__(self, *, is_marked: bool) -> None:
        self._is_marked = is_marked

    def check(self, http_response: Any, parsed: Any, model: Any, **_: object) -> None:
        """Called by the SDK after each answer (its event `after-call`).

        Raises:
            NotTheStore: the answer claims a result but does not come from the store.
        """
        status: int = http_response.status_code
        is_marked = bool(http_response.headers.get(_MARK))
        is_claim = model.name in _BARE if status < 300 else parsed.get("Error", {}).get("Code") in _CLAIMS
        if is_claim and self._is_marked and not is_marked:
            raise NotTheStore(f"the response ({status}) has no {_MARK}")
        if status < 300 and model.name in _NO_BODY and _PAGE.match(http_response.content):
            raise NotTheStore(f"the response ({status}) has a page as its body ({http_response.headers.get('content-type', '')})")
        self._is_marked |= is_marked
