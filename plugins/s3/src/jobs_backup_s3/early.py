"""Closes a connection if the store answers before the body is sent.

The SDK asks first (`Expect: 100-continue`) and sends no body to a store that refuses the request. A server that keeps the
connection open still waits for that body, and mistakes the next request for it (RFC 9110, 10.1.1).
"""

from __future__ import annotations

from typing import Any, cast


def close_after_early_answers(client: Any) -> None:
    """Make this SDK client close such connections. The SDK has no option for this."""
    from botocore import awsrequest  # the SDK is imported when it is first used

    class Pool(awsrequest.AWSHTTPConnectionPool):
        ConnectionCls = type("Connection", (_Connection, awsrequest.AWSHTTPConnection), {})

    class SecurePool(awsrequest.AWSHTTPSConnectionPool):
        ConnectionCls = type("Connection", (_Connection, awsrequest.AWSHTTPSConnection), {})

    session: Any = client._endpoint.http_session  # noqa: SLF001
    session._pool_classes_by_scheme.update(http=Pool, https=SecurePool)  # noqa: SLF001 - in place: its managers use this dict


class _Connection:
    _response_received: bool
    sock: Any

    def getresponse(self) -> Any:
        response = cast(Any, super()).getresponse()
        if self._response_received:
            self.sock.close()  # the response keeps the socket open until it is read
            self.sock = None
        return response
