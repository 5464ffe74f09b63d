"""Rules of dead letters: money once, whatever is done with them, and each is resolved once."""

import msgspec
import pytest

from ledger import letters
from ledger.book import Organization
from ledger.letters import LetterRefused, Resolution
from ledger.record import EndKind
from ledger.stream import Window
from tests.ledger.deployment import ACTOR, Deployment, Line, new_call_id

WINDOW = Window("key-1", 0, 500)


async def newest(deployment: Deployment) -> int:
    return int(await deployment.pool.fetchval("SELECT max(id) FROM dead_letter"))


async def replay(deployment: Deployment, letter_id: int) -> letters.Resolved:
    return await letters.replay(deployment.pool, letter_id, actor=ACTOR, reason="fixed")


async def mend(deployment: Deployment, letter_id: int, fields: dict[bytes, bytes]) -> None:
    """A release that reads what this one does not: played by an entry that this one reads."""
    packed = msgspec.msgpack.encode(fields)
    update = "UPDATE dead_letter SET fields = $2 WHERE id = $1"
    await deployment.pool.execute(update, letter_id, packed)


async def broken(
    deployment: Deployment, acme: Organization, line: Line, *lost: bytes
) -> tuple[int, dict[bytes, bytes]]:
    """A letter of an end some of whose fields cannot be read, and the fields in full."""
    fields = line.fields()
    await deployment.write(acme, [{**fields, **dict.fromkeys(lost, b"?")}])
    return await newest(deployment), fields


def an_end(acme: Organization, charge: int, *, moved: bool = True) -> Line:
    return Line(new_call_id(), acme, EndKind.SETTLED, charge, moved, (WINDOW,))


async def test_a_replay_of_posted_money_adds_the_record_and_no_money(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    letter, fields = await broken(deployment, acme, an_end(acme, 60), b"i")
    assert (await deployment.balance(acme), await deployment.count("usage_record")) == (940, 0)
    await mend(deployment, letter, fields)
    assert (await replay(deployment, letter)).is_new
    assert (await deployment.balance(acme), await deployment.count("usage_record")) == (940, 1)
    assert await deployment.count("usage_hourly") == 1
    assert await deployment.differences() == []
    line = await deployment.pool.fetchrow(
        "SELECT action, actor FROM audit_log WHERE organization_id = $1 AND target = $2",
        acme.id,
        str(letter),
    )
    assert line is not None
    assert tuple(line) == ("dead_letter.resolve", ACTOR)


async def test_a_replay_is_done_once(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    letter, fields = await broken(deployment, acme, an_end(acme, 60), b"k")
    await mend(deployment, letter, fields)
    assert (await replay(deployment, letter)).is_new
    assert not (await replay(deployment, letter)).is_new
    assert await deployment.balance(acme) == 940
    with pytest.raises(LetterRefused, match="replayed before"):
        await letters.write_off(deployment.pool, letter, actor=ACTOR, reason="r")


async def test_money_that_redis_took_and_nobody_posted_is_posted_as_spent(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    letter, fields = await broken(deployment, acme, an_end(acme, 60), b"k")
    assert await deployment.balance(acme) == 1_000
    await mend(deployment, letter, fields)
    assert (await replay(deployment, letter)).wallet_id is None
    wallet = await deployment.book.wallet(acme.id)
    assert wallet is not None
    assert (wallet.base, wallet.spent) == (1_000, 60)
    assert await deployment.differences() == []


async def test_money_that_redis_forgot_in_a_recovery_is_debited_like_a_late_end(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    letter, fields = await broken(deployment, acme, an_end(acme, 60), b"k")
    await deployment.pool.execute("UPDATE part SET state = 'damaged'")
    assert await deployment.recover(acme) is not None
    await mend(deployment, letter, fields)
    assert (await replay(deployment, letter)).wallet_id == acme.id
    wallet = await deployment.book.wallet(acme.id)
    assert wallet is not None
    assert (wallet.base, wallet.spent) == (940, 0)
    assert await deployment.differences() == []


async def test_a_late_end_is_debited_by_its_replay(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    letter, fields = await broken(deployment, acme, an_end(acme, 60, moved=False), b"i")
    assert await deployment.balance(acme) == 1_000
    await mend(deployment, letter, fields)
    assert (await replay(deployment, letter)).wallet_id == acme.id
    assert await deployment.balance(acme) == 940
    assert await deployment.differences() == []


async def test_a_replay_of_a_call_recorded_meanwhile_is_a_correction(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    end = an_end(acme, 60)
    letter, fields = await broken(deployment, acme, end, b"i")
    await deployment.write(acme, [end._replace(moved=False)])
    assert await deployment.balance(acme) == 1_000 - 60 - 60
    await mend(deployment, letter, fields)
    await replay(deployment, letter)
    assert await deployment.balance(acme) == 940
    assert await deployment.count("correction") == 1
    assert await deployment.differences() == []


async def test_what_still_cannot_be_read_is_not_replayed(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    letter, _ = await broken(deployment, acme, an_end(acme, 60), b"i")
    with pytest.raises(LetterRefused, match="still cannot be read: no call id"):
        await replay(deployment, letter)
    with pytest.raises(LetterRefused, match="there is no dead letter"):
        await replay(deployment, letter + 1)


async def test_a_call_too_old_to_know_if_it_was_charged_is_not_replayed(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    old = an_end(acme, 60)._replace(call_id=bytes(5) + new_call_id()[5:])
    letter, _ = await broken(deployment, acme, old)
    assert await deployment.balance(acme) == 940
    with pytest.raises(LetterRefused, match="older than"):
        await replay(deployment, letter)


async def test_a_call_charged_without_its_figures_is_not_charged_again(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    letter, fields = await broken(deployment, acme, an_end(acme, 60), b"r")
    assert (await deployment.balance(acme), await deployment.count("usage_record")) == (940, 1)
    await mend(deployment, letter, fields)
    with pytest.raises(LetterRefused, match="charged already"):
        await replay(deployment, letter)
    assert await deployment.balance(acme) == 940


async def test_what_was_posted_to_nobodys_wallet_is_not_posted_again(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    stranger = acme._replace(id="00000000-0000-4000-8000-00000000dead")
    await deployment.write(acme, [an_end(stranger, 60)])
    with pytest.raises(LetterRefused, match="charged already"):
        await replay(deployment, await newest(deployment))
    assert await deployment.count("correction") == 0
    assert await deployment.differences() == []


async def test_a_replay_makes_no_wallet_for_nobody(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    stranger = acme._replace(id="00000000-0000-4000-8000-00000000dead")
    letter, fields = await broken(deployment, acme, an_end(acme, 60), b"k")
    await mend(deployment, letter, {**fields, b"w": stranger.id.encode()})
    with pytest.raises(LetterRefused, match="no organization's"):
        await replay(deployment, letter)
    assert await deployment.count("wallet") == 1
    assert await deployment.differences() == []


async def test_what_says_another_charge_than_was_posted_is_not_replayed(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    letter, fields = await broken(deployment, acme, an_end(acme, 60), b"i")
    await mend(deployment, letter, {**fields, b"c": b"61"})
    with pytest.raises(LetterRefused, match="not what it says now"):
        await replay(deployment, letter)


async def test_writing_off_moves_nothing_and_is_done_once(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    letter, fields = await broken(deployment, acme, an_end(acme, 60), b"i")
    for is_new in (True, False):
        done = await letters.write_off(deployment.pool, letter, actor=ACTOR, reason="r")
        assert done.is_new is is_new
    assert await deployment.balance(acme) == 940
    assert await deployment.differences() == []
    await mend(deployment, letter, fields)
    with pytest.raises(LetterRefused, match="written off before"):
        await replay(deployment, letter)


async def test_the_list_has_what_waits_and_on_demand_what_is_resolved(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    letter, _ = await broken(deployment, acme, an_end(acme, 60), b"i")
    (waiting,) = await letters.listed(deployment.pool, with_resolved=False, limit=10)
    assert (waiting.id, waiting.organization_id, waiting.spent_delta) == (letter, acme.id, 60)
    assert waiting.reading() == "no call id"
    # Nobody's letter has no organization to tell.
    await deployment.write(acme, [{b"k": b"nonsense"}])
    await letters.write_off(deployment.pool, letter + 1, actor=ACTOR, reason="r")
    assert len(await letters.listed(deployment.pool, with_resolved=False, limit=10)) == 1
    both = await letters.listed(deployment.pool, with_resolved=True, limit=10)
    assert [one.resolution for one in both] == [None, Resolution.WRITTEN_OFF]
