"""The first phases: who calls, where the call may go, its worst cost, and the hold for it.

Nothing here is charged or sent. Whatever is refused here leaves no record, only a counter: an
attacker must not be able to write rows.
"""

from msgspec import structs

from gateway import errors
from gateway.addresses import address_of, is_within
from gateway.principal import Principal
from gateway.proxy.exchange import Exchange
from gateway.proxy.live import Candidate, LiveCall
from gateway.settings import Limits, Route
from ledger.admission import Hold, Rate, Refused, Slot
from ledger.money import NANOS_MAX, Nanos
from ledger.record import Record, encode
from ledger.usage import Unit
from providers.adapter import OUTPUTLESS, Call, Operation

_ADDRESS_CHARACTERS_MAX = 60  # a proxy may have passed on anything
_MONEY = frozenset({"wallet", "cap"})
_BYTES_PER_TOKEN = 4  # of usual text; only for calls whose usage nobody can tell any more


def check_principal(principal: Principal, now_ms: int) -> None:
    """`GatewayError` unless this principal may call now."""
    if principal.expires_at_ms is not None and principal.expires_at_ms <= now_ms:
        raise errors.Unauthenticated("Incorrect API key provided.", code="invalid_api_key")
    if principal.is_suspended:
        raise errors.Forbidden(
            "This organization is suspended; ask its owner.", code="organization_suspended"
        )


def check_address(exchange: Exchange, principal: Principal, limits: Limits) -> None:
    """`Forbidden` unless the call comes from where the key's calls may come from."""
    forwarded = exchange.every("x-forwarded-for") if limits.proxies else None
    address = address_of(exchange.memory.peer, forwarded, proxies=limits.proxies)
    if not is_within(address, principal.networks):
        raise errors.Forbidden(
            f"This API key may not be used from the address {address[:_ADDRESS_CHARACTERS_MAX]}."
            " Call from one of its IP ranges, or have them changed.",
            code="address_not_allowed",
        )


def find_route(live: LiveCall) -> Route:
    """The route of the model the client named; `GatewayError` if it has none or may not use it."""
    name, principal = live.call.model, live.principal
    config = live.terms.config
    route = config.exact.get(name) or config.route(name)
    if route is None or live.call.operation not in route.model.operations:
        raise errors.NotFound(
            f"The model {name[:200]!r} does not exist or cannot be used with"
            f" /v1/{live.call.operation}. GET /v1/models lists what can.",
            code="model_not_found",
            param="model",
        )
    allowed = principal.models
    if allowed is not None and name not in allowed and route.name not in allowed:
        raise errors.Forbidden(
            f"This API key may not use the model {name[:200]!r}.",
            code="model_not_allowed",
            param="model",
        )
    if not route.targets:
        raise errors.NotFound(
            f"The model {name[:200]!r} is configured, but no provider of it has a key:"
            f" {', '.join(route.inactive)}.",
            code="model_not_found",
            param="model",
        )
    return route


def find_candidates(live: LiveCall, now_s: float) -> list[Candidate]:
    """The targets in the order to be tried, priced now; those without a price only if allowed."""
    config, prices = live.terms
    priced = []
    for target in live.route.targets:
        price = prices.price(target.provider, target.model, now_s)
        if price is not None or live.principal.allows_unpriced:
            priced.append(Candidate(target, config.providers[target.provider], price))
    if not priced:
        raise errors.NotFound(
            f"The model {live.call.model[:200]!r} has no price, so it cannot be metered. Set one"
            " under `prices` in config.yaml, or allow unpriced models for the organization.",
            code="model_not_priced",
            param="model",
        )
    return priced


def check_vendor_ids(call: Call) -> None:
    """Ids that live at the vendor are shared by all who use the platform's key, so are refused."""
    if call.vendor_ids:
        field = call.vendor_ids[0]
        raise errors.BadRequest(
            f"{field!r} refers to something kept at the provider, which is not supported with the"
            " platform's key. Send the whole conversation instead.",
            code="vendor_state_unsupported",
            param=field,
        )


def output_bound(live: LiveCall) -> int:
    """Tokens the vendor can generate at most, over all choices."""
    call, model, limits = live.call, live.route.model, live.terms.config.limits
    if call.operation in OUTPUTLESS:
        return 0
    each = call.output_limit
    if each is None:
        each = model.default_output_tokens or model.max_output_tokens
    if each is None:
        each = limits.default_output_tokens
    if model.max_output_tokens is not None and each > model.max_output_tokens:
        each = model.max_output_tokens
    if model.context_tokens is not None and each > model.context_tokens:
        each = model.context_tokens
    return each * call.choices


def worst_case(live: LiveCall, output: int) -> Nanos:
    """The most that the call costs with so many output tokens, over all targets it may go to.

    Also finds `live.input_bound`. Raises `BadRequest` if no account could pay it.
    """
    call = live.call
    embeds = call.operation is Operation.EMBEDDINGS
    amount = most = 0
    for _, provider, price in live.candidates:
        overhead = (
            provider.input_overhead_tokens_embeddings if embeds else provider.input_overhead_tokens
        )
        bound = call.input_bound + overhead
        most = max(most, bound)
        if price is not None:
            worst = price.worst_case(
                input_tokens=bound, output_tokens=output, tier=call.service_tier
            )
            amount = max(amount, worst)
    live.input_bound = most
    if amount > NANOS_MAX:
        raise errors.BadRequest(
            "This call could cost more than any account can hold; lower max_tokens.",
            code="call_too_large",
        )
    return Nanos(amount)


def affordable_output(live: LiveCall, nanos: int, *, most: int) -> int:
    """How many output tokens, `most` at most, the call may have for so much; 0: not even one."""
    least, beyond = 0, most + 1
    while beyond - least > 1:
        middle = (least + beyond) // 2
        if worst_case(live, middle) <= nanos:
            least = middle
        else:
            beyond = middle
    return least


def build_hold(live: LiveCall, output: int, *, now_ms: int) -> Hold:
    """The hold for this call with so many output tokens."""
    principal, growth = live.principal, live.growth
    # A stream that grows has just had it worked out, for so many tokens.
    amount = worst_case(live, output) if growth is None else growth.allowed
    live.record = _ticket(live, held=amount, admitted_us=now_ms * 1000)
    has_rates = principal.rpm is not None or principal.tpm is not None
    return Hold(
        live.call_id,
        principal.partition,
        principal.wallet,
        amount,
        principal.caps(now_ms) if principal.budgets else (),
        _rates(principal, live.input_bound + output) if has_rates else (),
        () if principal.concurrency is None else (Slot(principal.key_id, principal.concurrency),),
        int(live.terms.config.ledger.hold_lease_s * 1000),
        encode(live.record),
    )


def clamped(live: LiveCall, refused: Refused) -> int:
    """Output tokens that a call may have whose money is short of its bound; 0: it is refused.

    Only for clients that set no limit themselves: then the bound was ours, and `live.call` has from
    now on the limit that the money allows, which the vendor is told.
    """
    call = live.call
    if call.output_limit is not None:
        return 0
    if refused.code not in _MONEY or refused.free + refused.held >= live.hold.amount:
        return 0  # it will do when other calls have ended
    most = output_bound(live)
    each = affordable_output(live, max(0, refused.free), most=most) // call.choices
    if each < live.terms.config.limits.clamped_output_tokens_min:
        return 0
    live.call = structs.replace(call, output_limit=each)
    live.clamped, live.growth = each, None
    return each * call.choices


def needed(live: LiveCall) -> Nanos:
    """What must be free for the call to be admitted: of one without a limit, the least we set."""
    hold, call = live.hold, live.call
    if call.output_limit is not None and not live.clamped:
        return hold.amount
    least = live.terms.config.limits.clamped_output_tokens_min
    return min(hold.amount, worst_case(live, least * call.choices))


def refusal(refused: Refused, needed: Nanos) -> errors.GatewayError:
    """The error for a hold that was not given, though so much would have been enough."""
    short = refused.free + refused.held >= needed
    match refused.code:
        case "wallet" if short:
            return _money_held(refused)
        case "wallet" | "no_wallet":
            return errors.PaymentRequired(needed=needed, affordable=max(0, refused.free))
        case "cap" if short:
            return _money_held(refused)
        case "cap":
            return errors.CapSpent(
                refused.scope,
                needed=needed,
                affordable=max(0, refused.free),
                resets_in_s=-(-refused.retry_after_ms // 1000),
            )
        case "slots":
            return errors.TooMany(
                "Too many calls of this key are open at once; wait for one to end.",
                code="concurrency_limit_exceeded",
                retry_after_ms=1000,
                scope=refused.scope,
            )
        case _:
            unit = "Tokens" if refused.scope.startswith("tpm:") else "Requests"
            return errors.TooMany(
                f"{unit} per minute of this key are used up; retry in"
                f" {max(1, refused.retry_after_ms)} ms.",
                code="rate_limit_exceeded",
                retry_after_ms=refused.retry_after_ms,
                scope=refused.scope,
            )


def _money_held(refused: Refused) -> errors.TooMany:
    return errors.TooMany(
        "The credit left is held by other open calls; retry when some of them have ended.",
        code="credit_held",
        retry_after_ms=1000,
        scope=refused.scope,
    )


def _rates(principal: Principal, tokens: int) -> tuple[Rate, ...]:
    rates: tuple[Rate, ...] = ()
    if principal.rpm is not None:
        rates = (Rate(f"rpm:{principal.key_id}", principal.rpm, 1),)
    if principal.tpm is not None:
        # One call may never ask for more than a full bucket, or it could not pass at all.
        take = min(tokens, principal.tpm)
        rates += (Rate(f"tpm:{principal.key_id}", principal.tpm, take),)
    return rates


def _ticket(live: LiveCall, *, held: int, admitted_us: int) -> Record:
    first, principal = live.candidates[0], live.principal
    input_tokens = min(live.input_bound, -(-len(live.call.body) // _BYTES_PER_TOKEN))
    return Record(
        call_id=live.call_id,
        organization_id=principal.organization_id,
        project_id=principal.project_id,
        key_id=principal.key_id,
        member_id=principal.member_id,
        admitted_us=admitted_us,
        operation=live.call.operation,
        provider=first.target.provider,
        model_requested=live.call.model[:200],
        model_target=first.target.model,
        price_version="" if first.price is None else first.price.version,
        held=held,
        stream=live.call.stream,
        # What is charged if this process dies with the call: a plausible input, no output.
        usage={} if live.call.operation is Operation.MODERATIONS else {Unit.INPUT: input_tokens},
    )


def behind() -> errors.Unavailable:
    """Too much waits for Postgres."""
    return errors.Unavailable(
        "The ledger is behind with its books and admits no calls until it has caught up;"
        " nothing was charged.",
        code="ledger_backlog",
    )


def unwritable() -> errors.Unavailable:
    """The journal has no room for a call."""
    return errors.Unavailable(
        "The gateway's journal is full; nothing was charged.", code="journal_full"
    )
