"""The client as a whole: what was sent when it failed, and its end."""

import asyncio
import contextlib
import random
from dataclasses import replace

import pytest

from gateway.upstream import (
    Deadlines,
    Limits,
    Upstream,
    UpstreamCut,
    UpstreamError,
    UpstreamUnreachable,
    client,
)
from providers.adapter import Secret, Target
from tests.gateway.upstream.wire import (
    CHAT,
    CHUNKED,
    OK,
    PATIENT,
    Wire,
    gauges,
    whole,
    wire,
)
from tests.vendor import Vendor

TARGET = Target(
    provider="vendor",
    model="m",
    scheme="http",
    host="127.0.0.1",
    port=1,
    path="/v1",
    api_key=Secret("sk-vendor"),
)


async def test_a_remembered_head_is_of_this_very_request() -> None:
    """One that differs in anything but its body is written anew."""
    async with wire() as ours:
        peer = await ours.warm()
        requests = [
            CHAT,
            CHAT._replace(body=b"another"),
            CHAT._replace(headers=(("Authorization", "Bearer sk-other"),)),
            CHAT._replace(path="/v1/other"),
            CHAT._replace(method="GET", body=b""),
            CHAT,
        ]
        heads = []
        for request in requests:
            call = ours.call(request)
            head, body = await peer.request()
            await peer.send(OK)
            assert await whole(await call) == b"ok"
            assert body == request.body
            heads.append(head.split(b"Content-Length")[0])
        assert heads[0] == heads[1] == heads[5]
        assert len(set(heads)) == 4
        assert b"sk-other" in heads[2]
        assert b"sk-vendor" not in heads[2]


async def test_what_is_remembered_of_requests_is_bounded() -> None:
    upstream = Upstream()
    for number in range(2 * client._HEADS_MAX):
        way = upstream._new_way(CHAT._replace(path=f"/{number}"), TARGET)
        assert way.head.startswith(b"POST /%d " % number)
        assert len(upstream._ways) <= client._HEADS_MAX
    assert len(upstream.pools) == 1
    await upstream.close()


async def test_a_pool_that_was_forgotten_is_not_used_again() -> None:
    """Else its connections would be in no metric, and never be closed."""
    async with wire() as ours:
        (await ours.warm()).close()
        (forgotten,) = ours.upstream.pools.values()
        while forgotten.open:
            await asyncio.sleep(0)
        for number in range(client._POOLS_MAX):
            ours.upstream._new_pool(replace(TARGET, host=f"host-{number}"))
        assert forgotten not in ours.upstream.pools.values()
        await ours.warm()
        assert forgotten.open == 0
        assert [pool.idle for pool in ours.upstream.pools.values() if pool.open] == [1]


async def nobody_listens(ours: Wire) -> None:
    """Point the target to a port where nobody listens."""
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    ours.target = type(ours.target)(
        provider="vendor",
        model="m",
        scheme="http",
        host="127.0.0.1",
        port=port,
        path="/v1",
        api_key=ours.target.api_key,
    )


async def test_a_refused_connection_and_an_unknown_name_were_never_sent() -> None:
    async with wire() as ours:
        await nobody_listens(ours)
        with pytest.raises(UpstreamUnreachable) as caught:
            await ours.call()
        assert (caught.value.phase, caught.value.sent) == ("connect", False)
        assert gauges(ours) == (0, 0, 0, 0)


async def test_closing_ends_answers_under_way_as_cut_and_refuses_new_calls() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED)
        answer = await call
        reading = ours.start(answer.read())
        await asyncio.sleep(0)
        await ours.upstream.close()
        with pytest.raises(UpstreamCut):
            await reading
        with pytest.raises(UpstreamError) as caught:
            await ours.upstream.send(CHAT, ours.target, deadlines=PATIENT)
        assert not caught.value.sent
        assert await peer.is_closed()


async def test_an_origin_has_a_limit_of_its_own_which_may_change() -> None:
    async with Vendor.here() as vendor:
        held = await vendor.script("held", hold_at=-1)
        target = replace(TARGET, host=vendor.host, port=vendor.port)
        body = b'{"model":"%b"}' % held.encode()
        upstream = Upstream(Limits(connections_max=1))
        upstream.limit({("http", vendor.host, vendor.port): 2})

        async def call() -> int:
            answer = await upstream.send(CHAT._replace(body=body), target, deadlines=PATIENT)
            answer.abort()
            return answer.status

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call()) for _ in range(4)]
            await vendor.held(2)
            (pool,) = upstream.pools.values()
            assert (pool.open, pool.waiting) == (2, 2)
            upstream.limit({("http", vendor.host, vendor.port): 3})
            tasks.append(group.create_task(call()))
            await vendor.held(3)
            assert (pool.open, pool.waiting) == (3, 2)
            while not all(task.done() for task in tasks):
                await vendor.release()
        assert {task.result() for task in tasks} == {200}
        await upstream.close()


async def test_calls_of_every_fate_in_a_crowd_leave_no_connection_or_slot_behind() -> None:
    limits = Limits(connections_max=40)
    deadlines = Deadlines(connect_s=5, first_byte_s=0.2, idle_s=0.2)
    async with Vendor.here() as vendor:
        fates = [
            await vendor.script("whole"),
            await vendor.script("close", framing="close"),
            await vendor.script("slow", interval_s=0.004, output_tokens=10),
            await vendor.script("cut", cut_after=2),
            await vendor.script("reset", reset_after=2),
            await vendor.script("early", reset_before_head=True),
            await vendor.script("corrupt", encoding="corrupt"),
            await vendor.script("stall", stall_after=2),
            await vendor.script("silent", head_s=3600),
        ]
        upstream = Upstream(limits)
        target = replace(TARGET, host=vendor.host, port=vendor.port)
        chosen = random.Random(11)  # noqa: S311 - the same crowd every time

        async def one(number: int) -> None:
            body = b'{"model":"%b","stream":%b}' % (
                fates[number % len(fates)].encode(),
                b"true" if number % 2 else b"false",
            )
            with contextlib.suppress(UpstreamError, TimeoutError):
                async with asyncio.timeout(chosen.choice([0.001, 0.02, 60, 60, 60])):
                    answer = await upstream.send(
                        CHAT._replace(body=body), target, deadlines=deadlines
                    )
                    for _ in range(chosen.choice([0, 1, 100, 100])):
                        if not await answer.read():
                            break
                    answer.release()

        for _ in range(3):
            await asyncio.gather(*(one(number) for number in range(300)))
        (pool,) = upstream.pools.values()
        assert (pool.in_use, pool.waiting) == (0, 0)
        assert pool.open == pool.idle <= 40
        await vendor.until(lambda state: state.connections <= pool.idle + 1)
        await upstream.close()
        assert (pool.open, pool.idle) == (0, 0)
