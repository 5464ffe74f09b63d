"""The life of an API key over HTTP: disabled, enabled again, ended for ever.

Each is committed, then told to every gateway, which obeys within a second; one that hears nothing
asks Postgres itself within 30 s.
"""

from gateway.errors import Forbidden
from gateway.management import api_keys
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.key_forms import ApiKeyView
from gateway.management.keyring import WRITE, manageable, published
from gateway.policy import Permission
from gateway.rest.route import Answer, Asked, Nothing, Route

_DISABLE = """
    UPDATE api_key SET disabled_at = now(), disabled_by = $2, version = version + 1
    WHERE id = $1 AND disabled_at IS NULL AND revoked_at IS NULL
    RETURNING id
"""
_ENABLE = """
    UPDATE api_key SET disabled_at = NULL, disabled_by = NULL, version = version + 1
    WHERE id = $1 AND disabled_at IS NOT NULL AND revoked_at IS NULL
      AND ($3 OR disabled_by = $2)
    RETURNING id
"""


async def disable(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Refuse the key until it is enabled again. Repeating it changes nothing."""
    place = asked.caller.place
    found = await manageable(desk, place, asked.id("key_id"))
    async with desk.pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_DISABLE, found.id, place.member_id) is not None:
            was, now_is = {"is_disabled": False}, {"is_disabled": True}
            target = str(found.id)
            await note(connection, asked, "key.disable", target=target, before=was, after=now_is)
    return await published(desk, place, found.id)


async def enable(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Take it again. What another disabled is enabled by those who manage everybody's keys."""
    place = asked.caller.place
    found = await manageable(desk, place, asked.id("key_id"))
    manages = place.allows(Permission.KEY_MANAGE)
    async with desk.pool.acquire() as connection, connection.transaction():
        done = await connection.fetchval(_ENABLE, found.id, place.member_id, manages)
        if done is not None:
            was, now_is = {"is_disabled": True}, {"is_disabled": False}
            target = str(found.id)
            await note(connection, asked, "key.enable", target=target, before=was, after=now_is)
        elif found.disabled_at is not None and not manages and found.disabled_by != place.member_id:
            raise Forbidden(
                "Somebody else disabled this key. Ask an owner or admin to enable it.",
                code="disabled_by_another",
            )
    return await published(desk, place, found.id)


async def revoke(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """End the key for ever, with every secret of it. Repeating it is harmless."""
    caller = asked.caller
    found = await manageable(desk, caller.place, asked.id("key_id"), even_revoked=True)
    await api_keys.revoke(
        desk.pool, desk.cache, found.id, actor=caller.actor, address=caller.address
    )
    return Answer()


ROUTES = (
    Route(
        method="POST",
        path="/api-keys/{key_id}/disable",
        name="keys.disable",
        says="Refuse the key until it is enabled again.",
        access=WRITE,
        handle=disable,
        answers=ApiKeyView,
        raises=(409,),
    ),
    Route(
        method="POST",
        path="/api-keys/{key_id}/enable",
        name="keys.enable",
        says="Take a disabled key again.",
        access=WRITE,
        handle=enable,
        answers=ApiKeyView,
        raises=(409,),
    ),
    Route(
        method="DELETE",
        path="/api-keys/{key_id}",
        name="keys.revoke",
        says="End the key for ever.",
        access=WRITE,
        handle=revoke,
    ),
)
