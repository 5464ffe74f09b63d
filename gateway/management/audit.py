"""The audit log over HTTP: who changed what, and that nobody changed the log."""

from typing import Any

from gateway.rest.route import Asked
from ledger.postgres import Connection
from ledger.trail import Change, append_change


async def note(
    connection: Connection,
    asked: Asked[Any, Any],
    action: str,
    *,
    target: str = "",
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """A line of the audit log for what was asked, in its transaction."""
    organization_id = str(asked.caller.place.organization_id)
    changed = Change(
        asked.caller.actor,
        action,
        target or organization_id,
        before=before,
        after=after,
        address=asked.caller.address,
    )
    await append_change(connection, organization_id, changed)
