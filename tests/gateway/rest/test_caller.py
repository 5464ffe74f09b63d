"""Scopes: what a token was made for is all it may do."""

import pytest

from gateway.rest.caller import Scope


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_includes_itself_and_writing_includes_reading(scope: Scope) -> None:
    assert scope.is_in(frozenset({scope}))
    assert not scope.is_in(frozenset())
    others = frozenset(
        one for one in Scope if one.value.partition(":")[0] != scope.partition(":")[0]
    )
    assert not scope.is_in(others)
    if scope.value.endswith(":write"):
        reading = Scope(scope.value.replace(":write", ":read"))
        assert reading.is_in(frozenset({scope}))
        assert not scope.is_in(frozenset({reading}))
