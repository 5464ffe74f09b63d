"""What the operator may set for one organization."""

import msgspec
import pytest

from gateway.management.limits import Limits, limits_in


def test_what_is_not_set_is_as_configured() -> None:
    assert limits_in("{}") == Limits(projects_max=None, members_max=None)
    assert limits_in('{"projects_max": 40}').projects_max == 40


def test_a_limit_of_a_newer_release_is_passed_over() -> None:
    assert limits_in('{"projects_max": 4, "robots_max": {"each": 5}}') == Limits(projects_max=4)


@pytest.mark.parametrize(
    "text", ['{"projects_max": 0}', '{"robots_max": 5}', '{"members_max": 1.5}']
)
def test_a_flawed_limit_cannot_be_set(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Limits)
