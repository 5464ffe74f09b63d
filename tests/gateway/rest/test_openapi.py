"""The document lists every route with what it takes and gives, and nothing else."""

import re
from typing import Any

import pytest

from gateway.management.routes import ROUTES
from gateway.rest.caller import Who
from gateway.rest.openapi import document
from gateway.rest.route import PREFIX, Nothing, Route

SAID: dict[str, Any] = document(ROUTES, release="1")


def operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = SAID["paths"][PREFIX + route.path][route.method.lower()]
    return found


def test_it_lists_the_routes_and_no_others() -> None:
    listed = {
        (method.upper(), path.removeprefix(PREFIX))
        for path, methods in SAID["paths"].items()
        for method in methods
    }
    assert listed == {(route.method, route.path) for route in ROUTES}
    assert len(ROUTES) == len({route.name for route in ROUTES}), "names are unique"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_an_operation_says_what_its_route_does(route: Route) -> None:
    said = operation(route)
    assert said["operationId"] == route.name
    assert said["summary"].endswith(".")
    assert ("requestBody" in said) == (route.body is not None)
    assert str(route.status if route.answers or route.media else 204) in said["responses"]
    named = {one["name"] for one in said["parameters"] if one["in"] == "path"}
    assert named == set(re.findall(r"{(\w+)}", route.path))
    asked = {one["name"] for one in said["parameters"] if one["in"] == "query"}
    assert bool(asked) == (route.query is not Nothing)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_who_may_call_it_is_said_too(route: Route) -> None:
    said, access = operation(route), route.access
    assert (said["security"] == []) == (access.who is Who.ANYBODY)
    assert said.get("x-permission") == access.permission
    assert ({"token": []} in said["security"]) == (
        access.scope is not None or access.who is Who.OPERATOR
    )


def test_every_reference_leads_somewhere() -> None:
    named = set(re.findall(r"#/components/schemas/([^\"']+)", str(SAID)))
    assert named <= SAID["components"]["schemas"].keys()
