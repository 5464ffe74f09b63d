"""What has moved is named once, and all of it when it is too much to name."""

import asyncio

from ledger.moved import Moved, News


def test_what_is_noted_is_taken_once() -> None:
    moved = Moved()
    moved.note({"a", "b"}, {"key@0"})
    moved.note({"b"}, ())
    assert moved.take() == News(frozenset({"a", "b"}), frozenset({"key@0"}))
    assert moved.take() == News(frozenset(), frozenset())


def test_more_than_can_be_named_is_all_of_it() -> None:
    moved = Moved()
    for number in range(60):
        moved.note({f"{number}-{one}" for one in range(1_000)}, ())
    moved.note({"one more"}, ())
    assert moved.take() == News(None, None)
    assert moved.take() == News(frozenset(), frozenset())


async def test_whoever_waits_hears_of_what_comes_and_of_nothing_else() -> None:
    moved = Moved()
    moved.note((), ())
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(moved.wait(), name="who waits")
        await asyncio.sleep(0)
        assert not waiting.done(), "a batch that moved nothing is no news"
        moved.note((), {"key@0"})
    moved.take()
    moved.note_all()
    await moved.wait()
    assert moved.take() == News(None, None)
