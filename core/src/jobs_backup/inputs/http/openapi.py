"""The document at /openapi.json (OpenAPI 3.1): requests and answers."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from jobs_backup import __version__
from jobs_backup.backup.failures import FailureRequest
from jobs_backup.inputs.http.payloads import JSON, NDJSON
from jobs_backup.inputs.http.responses import ErrorAnswer
from jobs_backup.settings.server import ServerSettings
from jobs_backup.spool.status import Status

RUDDER_TYPES: Final = ("identify", "track", "page", "screen", "group", "alias", "merge")
"""Event types for which RudderStack has a path."""
RUDDER_BATCHES: Final = ("/v1/batch", "/v1/import", "/beacon/v1/batch")
"""Where its SDKs send batches: the last one from a page that is closing, with the write key in the URL."""
PATHS: Final = (
    "/v1/events", "/v1/delivered", "/v1/failures", *(f"/v1/{type_}" for type_ in RUDDER_TYPES), *RUDDER_BATCHES,
    "/status", "/metrics", "/healthz", "/readyz", "/openapi.json",
)  # fmt: skip
MAX_NAME: Final = 200
"""Maximum characters of a source's or a workspace's id."""


class Recorded(msgspec.Struct, kw_only=True):
    """The events are durable: on the server's disk, from where they are uploaded to the bucket.

    Attributes:
        jobs: an id for each event, in the order sent. Ids exceed 2^53, so they are strings.
    """

    jobs: list[str]


class Acknowledged(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Deliveries that were acknowledged, durably.

    Attributes:
        acknowledged: how many.
        unknown_count: number of ids that are not in this server's spool; these were not acknowledged.
        unknown: the first 1,000 of them.
        message: what that means; only if there are such ids.
    """

    acknowledged: int
    unknown_count: int = 0
    unknown: list[str] = []
    message: str = ""


class Reported(msgspec.Struct, kw_only=True):
    """Failures that are durable. `failures`: how many."""

    failures: int


_WHY: Final = {
    400: "The body or a parameter is invalid. Nothing was recorded.",
    401: "Missing or invalid credentials.",
    403: "A write key may only record events of its source. Without credentials, a page's origin must be allowed.",
    404: "A failure names a job that is unknown to this server's spool. Nothing was recorded.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or has too many events.",
    415: "The type or the compression of the body is not supported.",
    429: "Too many events per second.",
    503: "The spool is full or unusable, or the server is busy: retry later. Nothing was recorded.",
    504: "Whether the request was recorded is unknown. All of it was, or nothing. To repeat it may duplicate its events.",
}
_REFUSALS: Final = (400, 401, 408, 413, 415, 429, 503, 504)
_RETRIED: Final = (429, 503)

_ID_HEADER: Final[dict[str, Any]] = {"schema": {"type": "string"}, "description": "The request's own id, or a new one."}

_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Event",
    "description": "One event's payload, as ingested; its bytes are kept. `messageId` and `userId` are also in the line.",
    "examples": [{"type": "track", "userId": "u1", "messageId": "m1", "event": "Order completed", "properties": {"total": 9.5}}],
}
_JOB: Final[dict[str, Any]] = {
    "title": "Job",
    "description": "Id of a recorded event. A string, because it exceeds 2^53, up to which JSON numbers are exact.",
    "type": "string",
    "pattern": "^[0-9]{1,38}$",
}
_TIME: Final = r"^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?Z$"
"""The form of RFC 3339 that every tool accepts: a time in UTC."""
_TOKEN: Final[list[dict[str, list[str]]]] = [{"token": []}]
_ANY: Final[list[dict[str, list[str]]]] = [{"token": []}, {"writeKey": []}]
_WRITE_KEY: Final[list[dict[str, list[str]]]] = [{"writeKey": []}]
_BEACON: Final[list[dict[str, list[str]]]] = [{"writeKey": []}, {"writeKeyInUrl": []}]


def document(settings: ServerSettings) -> dict[str, Any]:
    """The whole document, with the configured limits."""
    _, components = msgspec.json.schema_components(
        (Recorded, Acknowledged, Reported, ErrorAnswer, Status, FailureRequest), ref_template="#/components/schemas/{name}"
    )
    for component in components.values():
        # The first paragraph of the docstring. (Since Python 3.13, docstrings have no indentation; before, they keep all of it.)
        component["description"] = " ".join(component["description"].partition("\n\n")[0].split())
    failure = components.pop("FailureRequest")
    ids: dict[str, Any] = {"jobId": {"$ref": "#/components/schemas/Job"}, "sourceId": {"type": "string", "minLength": 1}}
    failure["properties"] |= {name: {"anyOf": [one, {"type": "null"}]} for name, one in ids.items()}
    time = {"type": "string", "format": "date-time", "pattern": _TIME}
    failure["properties"] |= {name: {"anyOf": [time, {"type": "null"}]} for name in ("createdAt", "failedAt")}
    failure["anyOf"] = [{"required": [name], "properties": {name: one}} for name, one in ids.items()]
    events = {"type": "array", "items": {"$ref": "#/components/schemas/Event"}, "maxItems": settings.max_events}
    batch = {"type": "object", "title": "Batch", "required": ["batch"], "properties": {"batch": events}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jobs-backup",
            "version": __version__,
            "description": "Back up every event of your pipeline into your own bucket, each exactly once. A 200 response means that"
            " the data is durable.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(settings.max_events),
        "components": {
            "schemas": {**components, "Failure": {**failure, "title": "Failure"}, "Event": _EVENT, "Job": _JOB, "Batch": batch},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "JOBS_BACKUP_SERVER_TOKEN"},
                "writeKey": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "One of JOBS_BACKUP_SERVER_WRITE_KEYS as the user name, with an empty password.",
                },
                "writeKeyInUrl": {"type": "apiKey", "in": "query", "name": "writeKey", "description": "The write key, in the URL."},
            },
        },
    }


def _paths(max_items: int) -> dict[str, Any]:
    names = [
        {**_parameter("source_id", "Source of the events. Not needed with a write key.", 1), "required": True},
        _parameter("workspace_id", "Workspace of the source."),
    ]
    paths: dict[str, Any] = {
        "/v1/events": _post(
            "Record events", "recordEvents", _body("Event", max_items), "Recorded", _ANY, extra=(403,), parameters=names
        ),
        "/v1/delivered": _post(
            "Acknowledge delivered events",
            "acknowledgeEvents",
            _body("Job", max_items, alone=False),
            "Acknowledged",
            _TOKEN,
            extra=(403,),
        ),
        "/v1/failures": _post(
            "Report delivery failures", "reportFailures", _body("Failure", max_items), "Reported", _TOKEN, extra=(403, 404)
        ),
    }
    for type_ in RUDDER_TYPES:
        paths[f"/v1/{type_}"] = _post(
            f"Record one event, as RudderStack's SDKs send it: {type_}", type_, _sdk("Event"), "Recorded", _WRITE_KEY
        )
    for path, name, what in zip(RUDDER_BATCHES, ("batch", "import", "beacon"), ("", " of the past", " by beacon"), strict=True):
        is_beacon = name == "beacon"
        paths[path] = _post(
            f"Record events, as RudderStack's SDKs send them{what}",
            name,
            _sdk("Batch"),
            "Recorded",
            _BEACON if is_beacon else _WRITE_KEY,
            extra=(403,) if is_beacon else (),
        )
    paths["/status"] = {
        "get": {
            "summary": "What waits in the spool, for which store, and why; `behind` says whether backups lag",
            "operationId": "status",
            "security": _TOKEN,
            "responses": {"200": _answer("Status"), "401": _refusal(401), "403": _refusal(403), "503": _refusal(503)},
        }
    }
    text = {"200": _text("Healthy."), "503": _text("Unhealthy: one line says why.")}
    paths["/healthz"] = _get("Whether the process works; if not, it needs a restart", "healthz", text)
    paths["/readyz"] = _get("Whether events can be recorded now", "readyz", text)
    metrics = {"200": _text("The metrics."), "401": _refusal(401), "403": _refusal(403), "404": _refusal(404)}
    paths["/metrics"] = _get("Metrics for Prometheus", "metrics", metrics, _TOKEN)
    document = {"200": {"description": "It.", "content": {JSON: {"schema": {"type": "object"}}}}}
    paths["/openapi.json"] = _get("This document", "openapi", document)
    return paths


def _parameter(name: str, description: str, shortest: int = 0) -> dict[str, Any]:
    schema = {"type": "string", "minLength": shortest, "maxLength": MAX_NAME}
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _sdk(schema: str) -> dict[str, Any]:
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}  # whatever its declared type


def _body(schema: str, max_items: int, *, alone: bool = True) -> dict[str, Any]:
    one = {"$ref": f"#/components/schemas/{schema}"}
    many = {"type": "array", "items": one, "maxItems": max_items}
    lines = {"type": "string", "description": f"One JSON document per line, each as in {JSON}."}
    return {JSON: {"schema": {"anyOf": [one, many]} if alone else many}, NDJSON: {"schema": lines}}


def _post(
    summary: str,
    name: str,
    content: dict[str, Any],
    answer: str,
    security: list[dict[str, list[str]]],
    *,
    extra: tuple[int, ...] = (),
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "operationId": name,
            "security": security,
            **({"parameters": parameters} if parameters else {}),
            "requestBody": {"required": True, "content": content},
            "responses": {"200": _answer(answer), **{str(status): _refusal(status) for status in sorted((*_REFUSALS, *extra))}},
        }
    }


def _get(summary: str, name: str, responses: dict[str, Any], security: list[dict[str, list[str]]] | None = None) -> dict[str, Any]:
    return {"get": {"summary": summary, "operationId": name, "security": security or [], "responses": responses}}


def _answer(schema: str) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": "Done.", "headers": {"X-Request-ID": _ID_HEADER}, "content": content}


def _refusal(status: int) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-ID": _ID_HEADER}
    if status in _RETRIED:
        headers["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    content = {JSON: {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    return {"description": _WHY[status], "headers": headers, "content": content}


def _text(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}
