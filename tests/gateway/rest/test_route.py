"""What every route has to be, so that no handler need look."""

import re
from uuid import UUID

import pytest

from gateway.errors import NotFound
from gateway.management.routes import ROUTES
from gateway.rest.caller import Caller, Who
from gateway.rest.route import Asked, Nothing, Route

# Any member may leave, whatever the policy says, and handle what is nobody's but their own.
FOR_ANY = {
    "members.leave",
    *("purchases.list", "purchases.get", "invoices.list", "invoices.get"),
    *("payment_methods.list", "payment_methods.start", "payment_methods.confirm"),
    *("payment_methods.make_default", "payment_methods.remove"),
}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_route_says_who_may_call_it(route: Route) -> None:
    access = route.access
    assert access.permission is None or access.who is Who.MEMBER
    assert (access.who is Who.MEMBER and access.permission is None) == (route.name in FOR_ANY)
    if access.scope is not None and route.is_write:
        assert access.scope.value.endswith(":write"), "reading gives no right to change anything"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_path_has_words_and_parameters(route: Route) -> None:
    assert re.fullmatch(r"(/([a-z][a-z-]*|{[a-z_]+}))+", route.path)
    assert route.method in {"GET", "POST", "PATCH", "PUT", "DELETE"}
    assert route.body is None or route.is_write


def test_an_id_in_a_path_that_is_none_is_not_found_and_not_repeated() -> None:
    asked: Asked[Nothing, Nothing] = Asked(
        caller=Caller(actor="", address=""),
        path={"good": str(UUID(int=7)), "bad": "quarry"},
        query=Nothing(),
        body=Nothing(),
        if_match=None,
        key=None,
        cookies={},
        agent="",
    )
    assert asked.id("good") == UUID(int=7)
    with pytest.raises(NotFound) as told:
        asked.id("bad")
    assert "quarry" not in str(told.value)
