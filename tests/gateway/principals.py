"""A principal for tests to vary: allowed everything, limited in nothing."""

from uuid import UUID

from gateway.principal import Principal

PRINCIPAL = Principal(
    organization_id=str(UUID(int=7)),
    partition=0,
    wallet=str(UUID(int=7)),
    project_id=str(UUID(int=8)),
    key_id=str(UUID(int=9)),
    member_id="",
    version=1,
    time_zone="UTC",
    budgets=(),
    rpm=None,
    tpm=None,
    concurrency=None,
    models=None,
    expires_at_ms=None,
    is_suspended=False,
    allows_unpriced=False,
)
