"""Whether an answer is the store's own, and not that of a proxy, a login page or another server at the endpoint.

A status alone can be anybody's. Errors count by the code in their XML: see `errors`. This looks at what is left: successes that
have nothing else to tell by, and codes on which somebody forgets something. AWS sends `x-amz-request-id` with each answer; another
store that has sent it once is held to it from then on.
"""

from __future__ import annotations

import re
from typing import Any, Final

_MARK: Final = "x-amz-request-id"
_BARE: Final = frozenset({"AbortMultipartUpload", "DeleteObject"})
"""Operations whose success is a status and nothing else."""
_NO_BODY: Final = _BARE | {"PutObject", "UploadPart"}
"""Operations whose success has an empty body."""
_CLAIMS: Final = frozenset({"PreconditionFailed", "NoSuchUpload", "NoSuchKey"})
"""Codes on which somebody forgets something: the object is there already, the upload or the object is gone."""
_PAGE: Final = re.compile(rb"\s*[^<\s]|.{0,500}<html", re.IGNORECASE | re.DOTALL)
"""What begins a body that is no XML of a store."""


class NotTheStore(Exception):
    """Something else has answered. The text says by what it was noticed."""


class Origin:
    """What is known of one store's answers."""

    def __init__(self, *, is_marked: bool) -> None:
        self._is_marked = is_marked

    def check(self, http_response: Any, parsed: Any, model: Any, **_: object) -> None:
        """Called by the SDK after each answer (its event `after-call`).

        Raises:
            NotTheStore: the answer says that something was done, or is so, and it is not the store's.
        """
        status: int = http_response.status_code
        is_marked = bool(http_response.headers.get(_MARK))
        is_claim = model.name in _BARE if status < 300 else parsed.get("Error", {}).get("Code") in _CLAIMS
        if is_claim and self._is_marked and not is_marked:
            raise NotTheStore(f"the response ({status}) has no {_MARK}")
        if status < 300 and model.name in _NO_BODY and _PAGE.match(http_response.content):
            raise NotTheStore(f"the response ({status}) has a page as its body ({http_response.headers.get('content-type', '')})")
        self._is_marked |= is_marked
