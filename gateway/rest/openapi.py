"""The OpenAPI 3.1 document, made from the routes and their types. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.rest.caller import Who
from gateway.rest.problem import CONTENT_TYPE, Problem
from gateway.rest.reading import KEY_PATTERN
from gateway.rest.route import PREFIX, Nothing, Route

_PARAMETER = re.compile(r"{(\w+)}")
_REF = "#/components/schemas/{name}"
_SAID = {
    400: "The request cannot be used; `param` names what is wrong.",
    401: "Nobody is signed in, or the session or token has ended.",
    402: "The payment was declined; nothing was charged.",
    403: "Who asks may not do this.",
    404: "There is no such thing, or not for who asks.",
    409: "It contradicts what was done before.",
    412: "It was changed meanwhile.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "Too many requests; Retry-After says when to come back.",
    500: "A bug of ours.",
    503: "It cannot be done at the moment; nothing was.",
}
_INFO = """Organizations, people, keys and credits of this installation.

Sign in at `POST /session`, which sets a cookie, and send its `csrf_token` as `X-CSRF-Token` with
every request that changes something. Programs send `Authorization: Bearer` with a token instead.

Requests concern the organization that `X-Organization-Id` names; without it, one's own account.
Money is in nano-USD. Lists have pages: send `next_cursor` as `cursor`. Answers carry an `ETag`;
sent back as `If-Match`, a change is refused if somebody else was faster. What moves money or sends
mail takes an `Idempotency-Key`: repeated, it is done once and answered the same. Errors are
documents of RFC 9457; `detail` says what to do.
"""


def document(routes: Sequence[Route], *, release: str) -> dict[str, Any]:
    """All of them, as one JSON document."""
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, schema_of, components)
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tollgate management API", "version": release, "description": _INFO},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": "tollgate_session"},
                "token": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _types(routes: Iterable[Route]) -> list[Any]:
    """Each type once, in the order of its first use."""
    found: dict[Any, None] = {Problem: None}
    for route in routes:
        for form in (route.query, route.body, route.answers):
            if form is not None:
                found[form] = None
    return list(found)


def _operation(
    route: Route, schema_of: Mapping[Any, Any], components: Mapping[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.group],
        "summary": route.says,
        "security": _security(route),
        "parameters": [*_in_path(route), *_in_headers(route), *_in_query(route, components)],
        "responses": _responses(route, schema_of),
    }
    if route.access.permission is not None:
        operation["x-permission"] = route.access.permission.value
    if route.access.scope is not None:
        operation["x-scope"] = route.access.scope.value
    if route.body is not None:
        content = {"application/json": {"schema": schema_of[route.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.access.who is Who.ANYBODY:
        return []
    if route.access.scope is None and route.access.who is not Who.OPERATOR:
        return [{"session": []}]
    return [{"session": []}, {"token": []}]


def _in_path(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "format": "uuid"},
        }
        for name in _PARAMETER.findall(route.path)
    ]


def _in_headers(route: Route) -> list[dict[str, Any]]:
    wanted = []
    if route.access.who is Who.MEMBER:
        wanted.append(("X-Organization-Id", "The organization; left out: one's own account."))
    if route.method in {"PATCH", "PUT"}:
        wanted.append(("If-Match", "The ETag of what is to be changed."))
    if route.is_once:
        needed = " It must be sent." if route.needs_key else ""
        wanted.append(("Idempotency-Key", f"Under the same key it is done once.{needed}"))
    schemas = {
        "X-Organization-Id": {"type": "string", "format": "uuid"},
        "If-Match": {"type": "string", "pattern": '^"[0-9]{1,18}"$'},
        "Idempotency-Key": {"type": "string", "pattern": KEY_PATTERN},
    }
    return [
        {
            "name": name,
            "in": "header",
            "schema": schemas[name],
            "description": says,
            "required": name == "Idempotency-Key" and route.needs_key,
        }
        for name, says in wanted
    ]


def _in_query(route: Route, components: Mapping[str, Any]) -> list[dict[str, Any]]:
    if route.query is Nothing:
        return []
    schema = components[route.query.__name__]
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": _without_null(one),
            **({"description": one["description"]} if "description" in one else {}),
        }
        for name, one in schema["properties"].items()
    ]


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a query parameter may be: it is left out rather than null."""
    said = {key: value for key, value in schema.items() if key not in {"default", "description"}}
    choices = [one for one in said.pop("anyOf", []) if one.get("type") != "null"]
    if len(choices) == 1:
        return {**said, **choices[0]}
    return {**said, "anyOf": choices} if choices else said


def _responses(route: Route, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    statuses = {400, 429, 500, 503, *route.raises}
    if route.access.who is not Who.ANYBODY:
        statuses |= {401, 403}
    if "{" in route.path or route.access.who is Who.MEMBER:
        statuses.add(404)
    if route.body is not None:
        statuses |= {413, 415}
    if route.method in {"PATCH", "PUT"}:
        statuses.add(412)
    if route.is_once:
        statuses.add(409)
    problem = {"content": {CONTENT_TYPE: {"schema": schema_of[Problem]}}}
    answers: dict[str, Any] = {
        str(status): {"description": _SAID[status], **problem} for status in sorted(statuses)
    }
    if route.media:
        file = {"schema": {"type": "string"}}
        content = dict.fromkeys(route.media, file)
        answers[str(route.status)] = {"description": "The file.", "content": content}
    elif route.answers is None:
        answers["204"] = {"description": "Done."}
    else:
        content = {"application/json": {"schema": schema_of[route.answers]}}
        answers[str(route.status)] = {"description": "Done.", "content": content}
    return dict(sorted(answers.items()))
