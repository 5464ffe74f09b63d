"""Every route of the management API. A route that is not here does not exist."""

from gateway.management import (
    audit,
    invitations,
    invited,
    key_life,
    key_secrets,
    keyring,
    members,
    operations,
    operators,
    people,
    policies,
    projects,
    second_factor,
    sessions,
    tenants,
    tokens,
    wallet,
)
from gateway.rest.route import Route

ROUTES: tuple[Route, ...] = (
    *people.ROUTES,
    *sessions.ROUTES,
    *second_factor.ROUTES,
    *tenants.ROUTES,
    *policies.ROUTES,
    *members.ROUTES,
    *invitations.ROUTES,
    *invited.ROUTES,
    *projects.ROUTES,
    *keyring.ROUTES,
    *key_life.ROUTES,
    *key_secrets.ROUTES,
    *wallet.ROUTES,
    *operations.ROUTES,
    *operators.ROUTES,
    *tokens.ROUTES,
    *audit.ROUTES,
)
