"""Every route of the management API. A route that is not here does not exist."""

from gateway.management import (
    invitations,
    invited,
    members,
    people,
    policies,
    sessions,
    tenants,
)
from gateway.rest.route import Route

ROUTES: tuple[Route, ...] = (
    *people.ROUTES,
    *sessions.ROUTES,
    *tenants.ROUTES,
    *policies.ROUTES,
    *members.ROUTES,
    *invitations.ROUTES,
    *invited.ROUTES,
)
