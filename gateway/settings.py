"""What can be configured, as one frozen value; config.yaml says what each setting is for.

Every default here is the one config.yaml shows; a test holds the two together. Units stand last in
the names: `_s` seconds, `_ms` milliseconds, `_bytes` bytes. Money is in nano-USD.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

from gateway.bounds import (
    DERIVED,
    GIB,
    KIB,
    MIB,
    PER_MILLION,
    Between,
    Count,
    Endpoint,
    Format,
    Name,
    Pause,
    Port,
    Seconds,
    Size,
    Tokens,
)
from gateway.payments.settings import Payments
from gateway.plans import PLANS, Plan
from gateway.sign_in_settings import Issuer
from ledger.usage import Unit
from providers.adapter import Operation, Secret, Target

_LATE_S = 5.0  # beyond its own limits, what a worker may take to stop
_CONTROL_S_MAX = 10.0
_MATCHED_MAX = 1_000  # names are the clients' to invent


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where one of the servers listens. `token` guards the metrics; the others ignore it."""

    host: Name = "127.0.0.1"
    port: Port = 0
    token: Annotated[Secret, Between(16, 1_000)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    data: Listener = Listener(host="0.0.0.0", port=8080)  # noqa: S104 - apps on other machines call it
    control: Listener = Listener(port=8081)
    metrics: Listener = Listener(port=9090)
    workers: Annotated[int, Between(1, 256)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """Without `url` a Valkey of our own is started; without `admin_url`, `url` serves for both."""

    url: Secret | None = None
    admin_url: Secret | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """Without `url` a PostgreSQL of our own is started."""

    url: Secret | None = None


class Durability(StrEnum):
    JOURNAL = "journal"  # the journal is synced once a second
    JOURNAL_GROUP = "journal-group"  # the last byte of an answer waits for the journal's fsync
    REPLICA = "replica"  # ... waits for the disks of its Redis server and of one replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """`directory` None: `<data_dir>/journal`."""

    directory: Path | None = None
    fsync_interval_s: Seconds = 1.0
    segment_bytes: Size = 64 * MIB
    bytes_max: Size = 1 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    durability: Durability = Durability.JOURNAL
    journal: Journal = Journal()
    partitions: Annotated[int, Between(1, 100)] = 16
    admission_timeout_s: Seconds = 0.3
    hold_lease_s: Seconds = 60.0
    hold_renew_s: Seconds = 20.0
    backlog_entries_max: Annotated[int, Between(1_000, 1_000_000_000)] = 4_000_000
    backlog_memory_share_max: Annotated[float, Between(0, 1)] = 0.85
    backlog_warn_share: Annotated[float, Between(0, 1)] = 0.5
    stream_keep_bytes: Size = 1 * GIB
    flush_batch: Annotated[int, Between(1, 20_000)] = 2_000
    flush_interval_s: Seconds = 0.1
    audit_interval_s: Seconds = 60.0
    grace_gateways: Annotated[int, Between(1, 10_000)] = 1


class ProviderKind(StrEnum):
    OPENAI = "openai"
    CUSTOM = "custom"  # any other vendor of OpenAI's dialect; `quirks` says how it differs


class OnDisconnect(StrEnum):
    DRAIN = "drain"  # read the answer to its end, so that the charge is what the vendor charges
    CANCEL = "cancel"  # close at once; what was relayed is charged, estimated where unreported


class ChargeBy(StrEnum):
    PRICE = "price"
    REPORTED = "reported"  # the vendor's own exact cost, where it tells one


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The waits for a vendor. There is none for a whole stream: a good one may last for hours."""

    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 600.0
    idle_s: Seconds = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A configured vendor. Without its key it is inactive, and so are the models that need it."""

    kind: ProviderKind
    base_url: Endpoint
    api_key: Secret = field(default_factory=lambda: Secret(""))  # empty: the vendor wants none
    quirks: Name = "openai"
    prices: Name | None = None  # the id of genai-prices whose list prices apply
    headers: Mapping[str, Secret] = field(default_factory=dict)
    timeouts: Timeouts = Timeouts()  # what is not set here is taken from limits.timeouts
    on_disconnect: OnDisconnect = OnDisconnect.DRAIN
    charge_by: ChargeBy = ChargeBy.PRICE
    input_overhead_tokens: Annotated[int, Between(0, 1_000_000)] = 2_200
    input_overhead_tokens_embeddings: Annotated[int, Between(0, 1_000_000)] = 64
    connections_max: Count = 1_000
    allow_http: bool = False
    missing: str = field(default="", metadata=DERIVED)  # the unset variable its key is kept in

    @property
    def is_active(self) -> bool:
        """False if its key is not there: it is not called, and its models are not found."""
        return not self.missing

    def target(self, name: str, *, model: str) -> Target:
        """Where a call for this vendor's `model` goes; `name` is the provider's in config.yaml."""
        scheme, host, port, path = self.base_url
        return Target(
            provider=name,
            model=model,
            scheme=scheme,
            host=host,
            port=port,
            path=path,
            api_key=self.api_key,
            quirks=self.quirks,
            headers=self.headers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTarget:
    """One place a model can be had. The lowest priority is tried first, equals as listed."""

    provider: Name
    model: Name  # the vendor's name; "*" in it stands for what the "*" of the public name matched
    priority: Annotated[int, Between(0, 1_000)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as clients name it. A name that ends in "*" stands for all that begin so."""

    targets: tuple[ModelTarget, ...]
    aliases: tuple[Name, ...] = ()
    context_tokens: Tokens | None = None
    max_output_tokens: Tokens | None = None  # what the vendor allows at most
    default_output_tokens: Tokens | None = None  # held for calls that set no limit
    reasoning: bool | None = None  # None: by the vendor's name of it
    operations: tuple[Operation, ...] = tuple(Operation)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTier:
    """Prices of the whole call once its input has more than so many tokens."""

    above_input_tokens: Tokens
    nanos_per_million: Mapping[Unit, Annotated[int, Format.USD]] = field(metadata=PER_MILLION)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOverride:
    """Prices that stand above the base table; of several that match, the last in the file holds.

    It holds for calls admitted at or after `from_s` and before `until_s`, and is the whole price:
    no unit keeps one from the base table.
    """

    provider: Name
    model: Name  # the vendor's name, or a pattern with "*" and "?"
    from_s: Annotated[int, Format.DATE] | None = field(default=None, metadata={"key": "from"})
    until_s: Annotated[int, Format.DATE] | None = field(default=None, metadata={"key": "until"})
    free: bool = False
    nanos_per_million: Mapping[Unit, Annotated[int, Format.USD]] = field(
        default_factory=dict, metadata=PER_MILLION
    )
    tiers: tuple[PriceTier, ...] = ()
    service_tiers: Mapping[str, Mapping[Unit, Annotated[int, Format.USD]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    proxies: Annotated[int, Between(0, 10)] = 0
    body_bytes_max: Size = 32 * MIB
    body_bytes_in_all: Size = 1 * GIB
    headers_max: Annotated[int, Between(10, 1_000)] = 100
    header_bytes_max: Size = 32 * KIB
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 60.0
    body_grace_s: Seconds = 10.0
    body_bytes_per_s_min: Size = 1 * KIB
    keep_alive_s: Seconds = 75.0
    connections_max: Count = 10_000
    connections_per_address_max: Count = 2_500
    default_output_tokens: Tokens = 16_384
    stream_output_tokens: Tokens = 1_024
    clamped_output_tokens_min: Tokens = 256
    timeouts: Timeouts = Timeouts()
    drain_s_max: Seconds = 60.0
    drain_share_max: Annotated[float, Between(0, 1)] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    drain_delay_s: Pause = 5.0
    streams_s_max: Seconds = 60.0

    @property
    def worker_s_max(self) -> float:
        """The longest that a worker may take to stop, seconds; then it is killed."""
        return self.drain_delay_s + self.streams_s_max + _LATE_S

    @property
    def control_s_max(self) -> float:
        """The same of the control process: half of it to flush, half for its jobs."""
        return _CONTROL_S_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Credits:
    unit: Name = "GP"
    per_usd: Annotated[int, Between(1, 1_000_000_000)] = 1_000
    decimals: Annotated[int, Between(0, 9)] = 0
    low_balance: Annotated[int, Between(0, 1_000_000_000)] = 10_000
    critical_balance: Annotated[int, Between(0, 1_000_000_000)] = 1_000


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    level: Level = Level.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Without `pepper` one is kept in `<data_dir>/pepper`, which only one machine has."""

    pepper: Annotated[Secret, Between(32, 1_000)] | None = None
    key_cache_s: Seconds = 30.0
    key_cache_entries: Count = 100_000


class SignUp(StrEnum):
    OPEN = "open"  # anybody with an e-mail address
    INVITED = "invited"  # who was invited to an organization


@dataclass(frozen=True, slots=True, kw_only=True)
class Management:
    """The management API and what it says about itself."""

    public_url: Name = "http://localhost:8081"
    proxies: Annotated[int, Between(0, 10)] = 0
    sign_up: SignUp = SignUp.OPEN
    sign_in: tuple[Issuer, ...] = ()
    private_webhooks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """Without `smtp_url` mails land in `<data_dir>/outbox`."""

    smtp_url: Secret | None = None
    sender: Name = "Tollgate <tollgate@localhost>"


class Route(NamedTuple):
    """Where calls for one public name go."""

    name: str  # as configured, so that it may label a metric; of a wildcard, the pattern
    model: Model
    targets: tuple[Target, ...]  # in the order to be tried; empty if every provider is inactive
    inactive: tuple[str, ...]  # the providers that would be tried if they had their key


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    listeners: Listeners = Listeners()
    data_dir: Path = Path("data")
    redis: Redis = Redis()
    postgres: Postgres = Postgres()
    ledger: Ledger = Ledger()
    providers: Mapping[str, Provider] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    prices: tuple[PriceOverride, ...] = ()
    limits: Limits = Limits()
    shutdown: Shutdown = Shutdown()
    credits: Credits = Credits()
    logging: Logging = Logging()
    auth: Auth = Auth()
    management: Management = Management()
    plans: Mapping[str, Plan] = field(default_factory=lambda: PLANS)
    mail: MailSettings = MailSettings()
    payments: Payments = field(default_factory=Payments)
    exact: Mapping[str, Route] = field(default_factory=dict, metadata=DERIVED)
    wildcards: tuple[tuple[str, Route], ...] = field(default=(), metadata=DERIVED)
    _matched: dict[str, Route] = field(
        default_factory=dict, init=False, repr=False, compare=False, metadata=DERIVED
    )  # the wildcards' latest matches: making a route costs more than all the rest of a lookup

    def route(self, name: str) -> Route | None:
        """Where a call for this public name goes; None: no such model. Aliases are names, too."""
        found = self.exact.get(name) or self._matched.get(name)
        if found is not None:
            return found
        for prefix, route in self.wildcards:
            if name.startswith(prefix):
                found = _with_name(route, name[len(prefix) :])
                if not all(target.model for target in found.targets):
                    return None  # "openai/" is nobody's name
                if len(self._matched) >= _MATCHED_MAX:
                    self._matched.clear()
                self._matched[name] = found
                return found
        return None

    @property
    def is_embedded(self) -> bool:
        """True if a server of our own is started for Postgres or Redis."""
        return self.postgres.url is None or self.redis.url is None

    @property
    def run_dir(self) -> Path:
        """The folder of sockets and snapshots, which no restart needs."""
        return self.data_dir / "run"

    @property
    def journal_dir(self) -> Path:
        """The folder of the journals, which a restart needs."""
        return self.ledger.journal.directory or self.data_dir / "journal"


def _with_name(route: Route, rest: str) -> Route:
    """The wildcard's route for a name whose `*` stands for `rest`."""
    targets = (replace(to, model=to.model.replace("*", rest)) for to in route.targets)
    return route._replace(targets=tuple(targets))
