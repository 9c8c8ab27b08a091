"""Closes a connection on which the store answered before the body was sent.

The SDK asks first (`Expect: 100-continue`) and does not send the body to a store that refuses the request. A server that keeps the
connection open then waits for that body, and takes the next request for it (RFC 9110, 10.1.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def close_after_early_answers(client: S3Client) -> None:
    """Have this client do so. The SDK has no option for it."""
    from botocore import awsrequest  # noqa: PLC0415 - the SDK is imported when it is first used

    class Pool(awsrequest.AWSHTTPConnectionPool):
        ConnectionCls = type("Connection", (_Connection, awsrequest.AWSHTTPConnection), {})

    class SecurePool(awsrequest.AWSHTTPSConnectionPool):
        ConnectionCls = type("Connection", (_Connection, awsrequest.AWSHTTPSConnection), {})

    endpoint: Any = client._endpoint  # type: ignore[attr-defined]  # noqa: SLF001
    pools: dict[str, type] = endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001
    pools.update(http=Pool, https=SecurePool)  # in place: the session's managers go by this dict


class _Connection:
    _response_received: bool
    sock: Any

    def getresponse(self) -> Any:
        response: Any = super().getresponse()  # type: ignore[misc]
        if self._response_received:
            self.sock.close()  # the answer holds the socket open until it is read
            self.sock = None
        return response
