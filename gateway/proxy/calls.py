"""One metered call through its phases: authenticate, read, admit, forward, relay, finish.

    authenticate  the key names a principal; no key, no work
    read          the body within its limits; the few facts admission needs
    admit         one atomic hold over wallet, caps, rates and slots
    forward       to a target, until the answer has begun well
    relay         to the client as it comes, metered on the way
    finish        journal, last byte, settle: runs exactly once, whatever happened before

A call that was admitted always reaches `finish`: errors, disconnects and cancellation lead there.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import uuid_utils

from gateway import errors
from gateway.auth import Authenticator
from gateway.closed import Closed
from gateway.content_log import ContentLog
from gateway.copied import Copy
from gateway.credential import presented
from gateway.journals import Journals, lost_end
from gateway.proxy import admit, finish, forward, progress, relay, safe
from gateway.proxy.answer import refuse
from gateway.proxy.clients import Clients
from gateway.proxy.exchange import CLOSE, Answered, ClientGone, Exchange
from gateway.proxy.grace import Grace
from gateway.proxy.growth import StreamHolds
from gateway.proxy.intake import Bodies, body_at_hand, read_facts, read_rest
from gateway.proxy.leaving import UnderWay
from gateway.proxy.live import HoldSpent, LiveCall, Terms
from gateway.proxy.tell import Teller
from gateway.settings import OnDisconnect
from gateway.upstream import HOP, Upstream
from gateway.wallets import Wallets, WalletsUnavailable
from ledger.admission import Held, Hold, LedgerUnavailable, Refused
from ledger.appender import JournalFull
from ledger.conveyor import Conveyor
from ledger.fcall import Renewal
from ledger.frames import OpenCall
from ledger.journal import Journal
from ledger.record import Outcome, decode
from providers.adapter import Adapter, Operation

log = logging.getLogger(__name__)

_HOLD_S_MIN = 0.05  # a Redis that is well answers in a tenth of it
_READ_HERE_BYTES_MAX = 1024 * 1024
"""A MiB takes 4 ms to read. More is read beside the loop, which gets its turn at each step."""

CLAMPED = "limit_clamped"
"""The flag of a call whose limit we set, for its wallet cannot pay our bound."""

_BUG = "The gateway failed. What the provider has done for the call is charged: see x-request-id."


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a call needs of the worker it runs in."""

    authenticator: Authenticator
    conveyor: Conveyor
    wallets: Wallets
    closed: Closed
    grace: Grace
    clients: Clients
    journal: Journal
    journals: Journals
    upstream: Upstream
    adapter: Adapter
    contents: ContentLog
    teller: Teller
    monotonic_s: Callable[[], float]
    wall_s: Callable[[], float]


class Calls:
    """Every call of this worker."""

    def __init__(self, parts: Parts, terms: Terms) -> None:
        self._parts = parts
        self.terms = terms  # replaced whole when prices or configuration change
        self.live: dict[bytes, LiveCall] = {}  # those that were admitted
        self.under_way, self.bodies = UnderWay(), Bodies()
        self._streams = StreamHolds(parts.conveyor)
        self._awaits_end = parts.journal.is_group or parts.journals.needs_replica
        self.draining = 0  # calls read to their end although their client has left

    async def serve(self, exchange: Exchange, operation: Operation) -> Answered:
        """Answer one request for a metered operation."""
        made = uuid_utils.uuid7()
        live = LiveCall(
            exchange,
            self.terms,
            call_id=made.bytes,
            id_text=str(made),
            clock=self._parts.monotonic_s,
        )
        task = asyncio.current_task()
        assert task is not None
        live.task = task
        self.under_way.began(task)
        try:
            try:
                await self._admit(live, operation)
            except errors.LedgerAway as error:
                return await self._serve_by_grace(live, error)
            except errors.GatewayError as error:
                return self._refused(live, error)
            except ClientGone:
                return CLOSE
            except OSError:
                if not exchange.is_gone:
                    raise
                return CLOSE
            return await self._carry(live)
        finally:
            self.bodies.drop(live)
            self.under_way.ended(task)

    async def _serve_by_grace(self, live: LiveCall, away: errors.LedgerAway) -> Answered:
        """Nobody can tell what the wallet has: the call goes on if its organization chose that."""
        grace = self._parts.grace
        if not await grace.admits(live):
            return self._refused(live, away)
        try:
            live.admitted_s = live.clock()
            live.record.client = self._parts.clients.id_of(live)
            return await self._carry(live)
        finally:
            grace.ended(live.call_id, live.record.charge)

    def renewal(self, hold: Hold) -> Renewal:
        """The new lease of an open call, with its progress; the journal is told it as well."""
        renewal = progress.renewal(self.live, hold)
        if renewal.record:
            self._parts.journal.progressed(OpenCall.of(hold._replace(ticket=renewal.record)))
        return renewal

    async def _admit(self, live: LiveCall, operation: Operation) -> None:
        parts, exchange = self._parts, live.exchange
        if exchange.header(HOP) is not None:
            raise errors.LoopDetected
        key = presented(
            exchange.header("authorization"),
            exchange.header("x-api-key"),
            query=exchange.query_string,
        )
        waited_s, principal = 0.0, parts.authenticator.cached(key, exchange.memory.shown)
        if principal is None:
            asked_s = live.clock()
            principal = await parts.authenticator.lookup(key)
            waited_s = live.clock() - asked_s if parts.authenticator.is_redis_away else 0.0
        live.principal = principal
        now_s = parts.wall_s()
        now_ms = int(now_s * 1000)
        admit.check_principal(principal, now_ms)
        limits = live.terms.config.limits
        if principal.networks:
            admit.check_address(exchange, principal, limits)
        if principal.keeps_content:
            exchange.copy = Copy()
        body, add = body_at_hand(exchange, limits), self.bodies.add
        if body is None:
            body = await read_rest(exchange, limits, partial(add, live))
        else:
            add(live, len(body))
        live.began_s = live.clock()
        live.call = (
            read_facts(operation, body, principal.default_model)
            if len(body) <= _READ_HERE_BYTES_MAX
            else await asyncio.to_thread(read_facts, operation, body, principal.default_model)
        )
        admit.check_vendor_ids(live.call)
        live.route = admit.find_route(live)
        live.candidates = admit.find_candidates(live, now_s)
        output = admit.output_bound(live)
        if live.call.stream:
            output = self._streams.begin(live, output)
        live.hold = admit.build_hold(live, output, now_ms=now_ms)
        live.asked_s = live.clock()
        live.held = await self._held(live, waited_s)
        live.admitted_s = live.clock()
        live.record.client = parts.clients.id_of(live)

    async def _held(self, live: LiveCall, waited_s: float) -> Held:
        """`waited_s`: for its key, of a silent Redis, which is waited for but once in all."""
        conveyor, hold = self._parts.conveyor, live.hold
        if hold.partition in self._parts.closed.partitions:
            raise admit.behind()
        if self._parts.journal.is_full:
            # Before anything is held: Redis is not to carry what is refused.
            raise self._journal_full()
        deadline_s = live.terms.config.ledger.admission_timeout_s - waited_s
        try:
            answer = await conveyor.hold(hold, deadline_s=max(deadline_s, _HOLD_S_MIN))
            if isinstance(answer, Refused):
                answer = await self._held_after_all(live, answer)
        except (LedgerUnavailable, WalletsUnavailable) as error:
            self._parts.teller.ledger_away(str(error))
            kind = errors.LedgerAway if isinstance(error, LedgerUnavailable) else errors.Unavailable
            raise kind(
                f"The ledger cannot admit calls now ({error}); nothing was charged.",
                code="ledger_unavailable",
            ) from error
        if isinstance(answer, Refused):
            self._parts.teller.not_held(answer)
            raise admit.refusal(answer, admit.needed(live))
        return answer

    async def _held_after_all(self, live: LiveCall, refused: Refused) -> Held | Refused:
        """Ask again where that helps: the wallet was not loaded, or can pay a shorter answer."""
        conveyor, hold = self._parts.conveyor, live.hold
        deadline_s = live.terms.config.ledger.admission_timeout_s
        if refused.code == "no_wallet":
            if not await self._parts.wallets.load(hold.partition, hold.wallet):
                return refused
            answer = await conveyor.hold(hold, deadline_s=deadline_s)
            if isinstance(answer, Held):
                return answer
            refused = answer
        output = admit.clamped(live, refused)
        if not output:
            return refused
        now_ms = live.record.admitted_us // 1000
        live.hold = admit.build_hold(live, output, now_ms=now_ms)
        live.record.flags.append(CLAMPED)
        return await conveyor.hold(live.hold, deadline_s=deadline_s)

    async def _carry(self, live: LiveCall) -> Answered:
        """Forward and relay an admitted call; whatever happens, it is ended before this returns."""
        self.live[live.call_id] = live
        live.leave = live.exchange.on_gone = partial(self._left, live)
        if live.exchange.is_gone:
            live.client_gone = True  # it left while the hold was made

        outcome = Outcome.FAILED
        try:
            return await self._answer(live)
        except errors.GatewayError as error:
            outcome = finish.outcome_of(live, error)
            return await self._failed(live, outcome, error)
        except ClientGone:
            outcome = Outcome.CLIENT_DISCONNECT
            return CLOSE
        except asyncio.CancelledError:
            if not live.client_gone:
                raise  # the worker stops
            live.task.uncancel()
            outcome = Outcome.CLIENT_DISCONNECT
            return CLOSE
        except Exception:  # the request's edge: whatever it was, the call is ended, and seen
            self._parts.teller.unmetered("internal_error")
            if live.exchange.head_sent:
                raise  # it is logged and cut
            log.exception("a call failed", extra={"call": live.id_text})
            return await self._failed(live, outcome, errors.Internal(_BUG, code="internal_error"))
        finally:
            try:
                self._close(live, outcome)
            finally:
                del self.live[live.call_id]

    async def _failed(
        self, live: LiveCall, outcome: Outcome, error: errors.GatewayError
    ) -> Answered:
        """End the call, if it has not ended, and then say why it failed."""
        live.status, live.code = error.status_now, error.code
        try:
            if not live.is_ended and (ending := self._ended(live, outcome)) is not None:
                await ending
        except ClientGone:
            return CLOSE
        return self._answer_error(live, error)

    def _close(self, live: LiveCall, outcome: Outcome) -> None:
        live.exchange.on_gone = None
        # Or the call and this function keep each other, and all that the call holds, until garbage
        # is collected, which was a tenth of our CPU time.
        del live.leave
        if not live.is_ended:
            self._end(live, outcome)
        if (copy := live.exchange.copy) is not None:
            who = live.principal.organization_id
            self._parts.contents.keep(who, live.call_id, live.call.body, copy)
        if live.answer is not None:
            live.answer.abort()  # does nothing to one that was released
        if live.drain_end is not None:
            live.drain_end.cancel()
            self.draining -= 1

    async def _answer(self, live: LiveCall) -> Answered:
        if live.client_gone:
            raise ClientGone
        self._dispatch(live)
        opened = await forward.open_answer(
            live, upstream=self._parts.upstream, adapter=self._parts.adapter
        )
        live.status = opened.answer.status
        if not opened.is_streamed:
            return await relay.relay_body(live, opened, self._ended)
        try:
            if live.growth is not None:
                fed = await live.growth.feed(live, opened.rest, opened.first)
                opened.first, opened.feed_to = fed
            answered = await relay.relay_stream(live, opened, self._ended)
        except HoldSpent as spent:
            return await relay.relay_limit(live, opened.answer, spent.shown, self._ended)
        self._streams.learn(live)
        return answered

    def _dispatch(self, live: LiveCall) -> None:
        try:
            self._parts.journal.dispatched(OpenCall.of(live.hold))
        except JournalFull as error:
            raise self._journal_full() from error

    def _journal_full(self) -> errors.Unavailable:
        self._parts.teller.journal_full()
        return admit.unwritable()

    def _left(self, live: LiveCall) -> None:
        """The client has gone: read on for the exact charge, within limits, or stop at once."""
        if live.client_gone:
            return
        live.client_gone = True
        limits = live.terms.config.limits
        drains = (
            not live.is_ended
            and live.attempts > 0
            and live.candidate.provider.on_disconnect is OnDisconnect.DRAIN
            and self.draining < limits.connections_max * limits.drain_share_max
        )
        if drains:
            self.draining += 1
            live.drain_end = asyncio.get_running_loop().call_later(
                limits.drain_s_max, self._stop, live
            )
        else:
            self._stop(live)

    def _stop(self, live: LiveCall) -> None:
        if live.call_id in self.live and self.live[live.call_id] is live:
            live.task.cancel()

    def _ended(self, live: LiveCall, outcome: Outcome) -> Awaitable[None] | None:
        """End the call. Its last byte may go once what this gives is awaited; None: at once."""
        self._end(live, outcome)
        if live.is_unjournaled or self._awaits_end:
            # Asked for before anything is awaited: the answer of Redis cannot have come yet.
            journals = self._parts.journals
            return safe.made_safe(
                journals.placed(live.call_id),
                self._parts.journal,
                is_unjournaled=live.is_unjournaled,
                needs_replica=journals.needs_replica,
                within_s=safe.REPLICA_S if journals.needs_replica else safe.PLACED_S,
            )
        return None

    def _end(self, live: LiveCall, outcome: Outcome) -> None:
        """Journal how the call ended, then let the ledger know. No await: it cannot be torn."""
        assert not live.is_ended, "a call ends once"
        live.is_ended = True
        parts = self._parts
        live.ended_s = live.clock()
        live.upstream_done_s = live.upstream_done_s or live.ended_s
        if live.growth is not None:
            # With what was held for it after all, though Redis said so too late for the stream.
            live.record.held = parts.conveyor.held(live.call_id, live.hold.partition)
        try:
            made = finish.end_of(live, outcome, finished_us=int(parts.wall_s() * 1e6))
        except Exception:  # the request's edge: a meter's bug must not keep the hold for ever
            log.exception("a call cannot be metered", extra={"call": live.id_text})
            parts.teller.unmetered("meter_failed")
            made = lost_end(OpenCall.of(live.hold), live.terms.prices)
            live.record = decode(made.record)
        try:
            parts.journal.finished(made)
        except JournalFull:
            # The disk is full: then the client waits for Redis to have it (`safe.made_safe`).
            live.is_unjournaled = True
            parts.teller.journal_full()
        parts.conveyor.settle(made)
        parts.teller.ended(live, made)

    def _refused(self, live: LiveCall, error: errors.GatewayError) -> Answered:
        self._parts.teller.refused(error, live.id_text, error.status_now)
        return self._answer_error(live, error)

    def _answer_error(self, live: LiveCall, error: errors.GatewayError) -> Answered:
        try:
            return refuse(live.exchange, error, live.id_text)
        except ClientGone:
            return CLOSE
