"""Clients are told apart, and not known."""

from types import SimpleNamespace
from typing import Any

from gateway.proxy.clients import Clients
from gateway.proxy.exchange import Memory
from providers.adapter import Secret


def live(
    *,
    organization: str = "o",
    user: str | None = None,
    agent: str = "sdk",
    memory: Memory | None = None,
) -> Any:
    """As much of a live call as names its client."""
    return SimpleNamespace(
        call=SimpleNamespace(user=user),
        principal=SimpleNamespace(organization_id=organization),
        exchange=SimpleNamespace(memory=memory or Memory("192.0.2.1"), header=lambda _: agent),
    )


def test_the_name_an_application_gives_counts_before_the_address() -> None:
    clients = Clients(Secret("p" * 32))

    assert clients.id_of(live(user="ada")) == clients.id_of(live(user="ada", agent="other"))
    assert clients.id_of(live(user="ada")) != clients.id_of(live(user="bob"))
    assert clients.id_of(live()) != clients.id_of(live(agent="other"))


def test_the_same_client_of_two_organizations_is_two() -> None:
    clients = Clients(Secret("p" * 32))

    assert clients.id_of(live(user="ada")) != clients.id_of(live(user="ada", organization="q"))


def test_the_id_is_the_same_in_every_gateway_and_hides_the_name() -> None:
    one, other = Clients(Secret("p" * 32)), Clients(Secret("p" * 32))

    assert one.id_of(live(user="ada")) == other.id_of(live(user="ada"))
    assert "ada" not in one.id_of(live(user="ada"))
    assert len(one.id_of(live(user="ada" * 100))) == 16


def test_what_a_connection_remembers_is_of_the_same_organization_and_agent() -> None:
    clients, memory = Clients(Secret("p" * 32)), Memory("192.0.2.1")
    told_apart: list[dict[str, Any]] = [
        {"organization": "o"},
        {"organization": "q"},
        {"agent": "other"},
        {"user": "ada"},
        {"agent": ""},
    ]

    for who in told_apart * 2:
        assert clients.id_of(live(**who, memory=memory)) == clients.id_of(live(**who))
