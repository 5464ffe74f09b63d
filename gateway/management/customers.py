"""Who an organization or a person is at the payment processor."""

from gateway.management.desk import Desk
from gateway.management.payments import Owner, OwnerKind, processor_of

_KNOWN = "SELECT reference FROM payment_customer WHERE processor = $1 AND owner_id = $2"
_KEEP = """
    INSERT INTO payment_customer (processor, owner_id, reference) VALUES ($1, $2, $3)
    ON CONFLICT (processor, owner_id) DO NOTHING
"""
_PERSON = "SELECT email, name FROM person WHERE id = $1"
_ORGANIZATION = """
    SELECT o.name, coalesce(o.billing_email, (
        SELECT m.email FROM member AS m
        WHERE m.organization_id = o.id AND m.removed_at IS NULL AND m.role = 'owner'
        ORDER BY m.created_at LIMIT 1
    ), '') AS email
    FROM organization AS o WHERE o.id = $1
"""


async def known_customer(desk: Desk, owner: Owner) -> str | None:
    """Their id at the processor; None: it does not know them."""
    found = await desk.pool.fetchval(_KNOWN, processor_of(desk).name, owner.id)
    return None if found is None else str(found)


async def customer_of(desk: Desk, owner: Owner) -> str:
    """Their id at the processor, which is told of them if it does not know them.

    Of two at once both get the one that was kept first.
    """
    known = await known_customer(desk, owner)
    if known is not None:
        return known
    processor = processor_of(desk)
    query = _PERSON if owner.kind is OwnerKind.PERSON else _ORGANIZATION
    row = await desk.pool.fetchrow(query, owner.id)
    assert row is not None, "neither organizations nor people are ever deleted"
    made = await processor.customer(str(owner.id), email=row["email"], name=row["name"])
    await desk.pool.execute(_KEEP, processor.name, owner.id, made)
    kept = await known_customer(desk, owner)
    assert kept is not None, "it was kept"
    return kept
