"""Reads config.yaml and the environment into one frozen Config, or lists every mistake in them.

This is the only module that reads the environment. `TOLLGATE_LIMITS__BODY_BYTES_MAX=1MiB` sets
`limits.body_bytes_max`; lists and tables are given as YAML; `${NAME}` stands for a variable in
secrets and URLs.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from gateway import sign_in_settings
from gateway.binding import Binder, meant
from gateway.document import Mistake, overridden, parse
from gateway.payments.settings import objections
from gateway.plans import FREE, price_mistakes
from gateway.priced import PRICED
from gateway.settings import (
    Config,
    Durability,
    Listener,
    Model,
    ModelTarget,
    PriceOverride,
    Provider,
    ProviderKind,
    Route,
    Timeouts,
)
from ledger.location import Location
from providers.adapter import Secret, Target
from providers.custom import QUIRKS

_PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MODEL_NAME = re.compile(r"[!-~]{1,200}\Z")  # no spaces: printable ASCII, as vendors' names are
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_CONFIG_BYTES_MAX = 8 * 1024 * 1024  # far above any real one: a wrong path should not fill memory
_CHARACTERS_MIN = 8  # different ones in a secret: 32 of the same are a placeholder
_POSTGRES_SCHEMES = ("postgresql://", "postgres://")


class ConfigErrors(Exception):
    """The configuration cannot be used; `mistakes` are all there are, in the order of the file."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


class Report(NamedTuple):
    """What `tollgate check-config` says, and the exit code it says it with."""

    text: str
    exit_code: int


def load(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of this file and environment (None: the process's own).

    Raises `ConfigErrors` with every mistake there is.
    """
    if environ is None:
        environ = os.environ  # noqa: TID251 - this is the module that may
    text, is_private = _text(path)
    return read(text, environ, is_private=is_private)


def read(text: str, environ: Mapping[str, str], *, is_private: bool = True) -> Config:
    """The configuration of this YAML under this environment; raises `ConfigErrors`.

    `is_private`: not every user of this machine can read the file, so that secrets may be in it.
    """
    root, mistakes = parse(text)
    binder = Binder(environ)
    root = overridden(root, environ, sections=[field.name for field in fields(Config)])
    bound = binder.record(Config, root)
    for steps in [] if is_private else binder.plain:
        binder.wrong(
            steps,
            "is a secret in a file that every user of this machine can read: chmod o= the file, or"
            " keep the secret in a variable and write ${NAME}",
        )
    if isinstance(bound, Config):
        bound = _Checks(binder).checked(bound)
    mistakes += binder.mistakes
    if mistakes:
        raise ConfigErrors(mistakes)
    assert isinstance(bound, Config)
    return bound


def check_config(path: Path, environ: Mapping[str, str] | None = None) -> Report:
    """Says OK and what is in use, or lists the mistakes with exit code 1."""
    try:
        config = load(path, environ)
    except ConfigErrors as errors:
        count = len(errors.mistakes)
        head = f"{path}: {count} mistake{'s' if count > 1 else ''}"
        return Report("\n".join([head, *(f"  {mistake}" for mistake in errors.mistakes)]), 1)
    lines = [f"{path}: OK"]
    for name, provider in config.providers.items():
        state = "active" if provider.is_active else f"inactive: {provider.missing} is not set"
        lines.append(f"  provider {name}: {state}")
    lines.append(f"  {len(config.models)} models, {len(config.prices)} price overrides")
    return Report("\n".join(lines), 0)


def _text(path: Path) -> tuple[str, bool]:
    """What the file says, and whether only its owner and group can read it."""
    try:
        with path.open("rb") as file:
            content = file.read(_CONFIG_BYTES_MAX + 1)
            is_private = not os.fstat(file.fileno()).st_mode & stat.S_IROTH
        if len(content) > _CONFIG_BYTES_MAX:
            raise ConfigErrors([Mistake(0, "", f"{path} is larger than {_CONFIG_BYTES_MAX} bytes")])
        return content.decode(), is_private
    except OSError as error:
        raise ConfigErrors([Mistake(0, "", f"{path}: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigErrors([Mistake(0, "", f"{path} is not UTF-8")]) from error


class _Checks:
    """What no single setting can know: how they fit together."""

    def __init__(self, binder: Binder) -> None:
        self._wrong = binder.wrong
        self._lines = binder.lines
        self._unset = binder.unset

    def checked(self, config: Config) -> Config:
        """The configuration with what follows from it worked out; mistakes go to the binder."""
        providers = {
            name: self._provider(name, provider, config.limits.timeouts)
            for name, provider in config.providers.items()
        }
        for steps, variable in self._unset.items():
            self._wrong(steps, f"the environment variable {variable} is not set")
        self._stores(config)
        self._listeners(config)
        self._limits(config)
        self._ledger(config)
        for place, setting, wrong in sign_in_settings.mistakes(config.management.sign_in):
            self._wrong(("management", "sign_in", place, setting), wrong)
        self._plans(config)
        for steps, text in objections(config.payments, public_url=config.management.public_url):
            self._wrong(steps, text)
        for name, model in config.models.items():
            self._model(name, model)
        for place, override in enumerate(config.prices):
            self._price(place, override)
        exact, wildcards = self._routes(config.models, providers)
        return replace(
            config,
            data_dir=config.data_dir.absolute(),
            providers=providers,
            exact=exact,
            wildcards=wildcards,
        )

    def _provider(self, name: str, provider: Provider, timeouts: Timeouts) -> Provider:
        steps = ("providers", name)
        if not _PROVIDER_NAME.match(name):
            self._wrong(steps, "a provider's name has letters, digits, dots, dashes: at most 64")
        if provider.base_url.scheme == "http" and not provider.allow_http:
            self._wrong(
                (*steps, "base_url"),
                "http:// sends key and prompts unencrypted; set allow_http: true if that is meant",
            )
        if provider.kind is ProviderKind.OPENAI and provider.quirks != "openai":
            self._wrong((*steps, "quirks"), "belongs to kind: custom, a vendor that is not OpenAI")
        if provider.quirks not in QUIRKS:
            near = meant(provider.quirks, QUIRKS)
            self._wrong((*steps, "quirks"), f"must be one of {', '.join(sorted(QUIRKS))}{near}")
        if provider.prices is not None and provider.prices not in PRICED:
            near = meant(provider.prices, [*PRICED])
            self._wrong((*steps, "prices"), f"genai-prices has no vendor {provider.prices!r}{near}")
        for header in provider.headers:
            if not _HEADER_NAME.match(header):
                self._wrong((*steps, "headers", header), "is not the name of a header")
        own = {
            field.name: getattr(provider.timeouts, field.name)
            for field in fields(Timeouts)
            if (*steps, "timeouts", field.name) in self._lines
        }
        # Its key is the one thing a provider may lack: one file then serves whoever has some keys.
        missing = self._unset.pop((*steps, "api_key"), "")
        return replace(provider, timeouts=replace(timeouts, **own), missing=missing)

    def _stores(self, config: Config) -> None:
        for field in ("url", "admin_url"):
            url: Secret | None = getattr(config.redis, field)
            try:
                _ = url and Location.parse(url.reveal())
            except ValueError as error:
                self._wrong(("redis", field), str(error))
        postgres = config.postgres.url
        if postgres and not postgres.reveal().startswith(_POSTGRES_SCHEMES):
            self._wrong(("postgres", "url"), f"must begin with {' or '.join(_POSTGRES_SCHEMES)}")
        if config.redis.admin_url is not None and config.redis.url is None:
            self._wrong(("redis", "admin_url"), "stands without redis.url")
        if config.postgres.url is not None and config.auth.pepper is None:
            self._wrong(
                ("auth", "pepper"),
                "is needed with postgres.url: every gateway of the database must use the same one",
            )

    def _listeners(self, config: Config) -> None:
        metrics = config.listeners.metrics
        for steps, secret in (
            (("auth", "pepper"), config.auth.pepper),
            (("listeners", "metrics", "token"), metrics.token),
        ):
            if secret and len(set(secret.reveal())) < _CHARACTERS_MIN:
                self._wrong(steps, "can be guessed: make one with `openssl rand -base64 33`")
        if metrics.token is None and not is_loopback(metrics.host):
            self._wrong(
                ("listeners", "metrics", "token"),
                f"is needed where others can reach the metrics: {metrics.host} is not loopback",
            )
        taken: dict[int, str] = {}
        for field in ("data", "control", "metrics"):
            listener: Listener = getattr(config.listeners, field)
            if listener.port and listener.port in taken:
                other = taken[listener.port]
                self._wrong(("listeners", field, "port"), f"is the port of listeners.{other}, too")
            taken.setdefault(listener.port, field)

    def _limits(self, config: Config) -> None:
        limits = config.limits
        if limits.body_bytes_in_all < limits.body_bytes_max:
            self._wrong(("limits", "body_bytes_in_all"), "must be at least body_bytes_max")

    def _ledger(self, config: Config) -> None:
        ledger = config.ledger
        if ledger.durability is Durability.REPLICA and config.redis.url is None:
            self._wrong(
                ("ledger", "durability"),
                "replica needs redis.url: the Valkey that Tollgate starts itself has no replica."
                " Use journal or journal-group, which keep every end on this machine's disk",
            )
        if ledger.hold_renew_s * 2 > ledger.hold_lease_s:
            self._wrong(
                ("ledger", "hold_renew_s"),
                "must be at most half of hold_lease_s: one lost renewal must not end a call",
            )
        if ledger.journal.segment_bytes * 2 > ledger.journal.bytes_max:
            self._wrong(
                ("ledger", "journal", "segment_bytes"),
                "must be at most half of bytes_max: only whole segments are ever given back",
            )

    def _plans(self, config: Config) -> None:
        # By what stands in the file: a plan with a mistake in it is not a second mistake here.
        if FREE not in config.plans and ("plans", FREE) not in self._lines:
            self._wrong(("plans",), f"has no {FREE!r}, the plan that everybody begins with")
        for name, message in price_mistakes(config.plans):
            self._wrong(("plans", name), message)

    def _model(self, name: str, model: Model) -> None:
        steps = ("models", name)
        if not _MODEL_NAME.match(name) or "*" in name[:-1]:
            self._wrong(
                steps, "a model's name is printable ASCII without spaces; * only at its end"
            )
        if not model.targets and (*steps, "targets", 0) not in self._lines:
            self._wrong(steps, "has no targets")
        if model.aliases and name.endswith("*"):
            self._wrong((*steps, "aliases"), "cannot say what the * of the name stands for")
        for alias in model.aliases:
            if not _MODEL_NAME.match(alias) or "*" in alias:
                self._wrong((*steps, "aliases"), f"{alias!r} is not a model's name")
        for place, target in enumerate(model.targets):
            self._known_provider((*steps, "targets", place, "provider"), target.provider)
            if "*" in target.model and not name.endswith("*"):
                self._wrong(
                    (*steps, "targets", place, "model"),
                    "has a * though the model's public name has none",
                )

    def _known_provider(self, steps: tuple[str | int, ...], name: str) -> None:
        # By what stands in the file: a provider with a mistake in it is not a second mistake here.
        known = [str(path[1]) for path in self._lines if len(path) == 2 and path[0] == "providers"]  # noqa: PLR2004 - ("providers", its name)
        if name not in known:
            self._wrong(steps, f"there is no provider {name!r}{meant(name, known)}")

    def _price(self, place: int, override: PriceOverride) -> None:
        steps = ("prices", place)
        self._known_provider((*steps, "provider"), override.provider)
        # By what stands in the file: a price that cannot be read is one mistake, not two.
        has_prices = (*steps, "usd_per_million") in self._lines
        if override.free == has_prices:
            self._wrong(steps, "must have either usd_per_million or free: true")
        if not has_prices and (override.tiers or override.service_tiers):
            self._wrong(steps, "has tiers without usd_per_million, the prices below the first tier")
        if (
            override.from_s is not None
            and override.until_s is not None
            and override.from_s >= override.until_s
        ):
            self._wrong((*steps, "until"), "must be later than from")
        bounds = [tier.above_input_tokens for tier in override.tiers]
        if bounds != sorted(set(bounds)):
            self._wrong((*steps, "tiers"), "must ascend by above_input_tokens")

    def _routes(
        self, models: Mapping[str, Model], providers: Mapping[str, Provider]
    ) -> tuple[dict[str, Route], tuple[tuple[str, Route], ...]]:
        exact: dict[str, Route] = {}
        wildcards: list[tuple[str, Route]] = []
        for name, model in models.items():
            route = _route(name, model, providers)
            if name.endswith("*"):
                wildcards.append((name[:-1], route))
            else:
                exact[name] = route
        for name, model in models.items():
            for alias in model.aliases:
                if alias in exact:
                    taken = exact[alias].name
                    self._wrong(("models", name, "aliases"), f"{alias!r} already means {taken!r}")
                exact.setdefault(alias, _route(name, model, providers))
        # The longest first, so that the closest pattern decides.
        wildcards.sort(key=lambda entry: -len(entry[0]))
        return exact, tuple(wildcards)


def secrets_in(settings: Any) -> Iterator[str]:
    """Every secret of a configuration: what no log line may ever hold."""
    if isinstance(settings, Secret):
        yield settings.reveal()
    elif is_dataclass(settings):
        for field in fields(settings):
            yield from secrets_in(getattr(settings, field.name))
    elif isinstance(settings, Mapping):
        for inner in settings.values():
            yield from secrets_in(inner)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _route(name: str, model: Model, providers: Mapping[str, Provider]) -> Route:
    targets: list[Target] = []
    inactive: list[str] = []
    for target in sorted(model.targets, key=_priority):
        provider = providers.get(target.provider)
        if provider is None:
            continue
        if provider.is_active:
            targets.append(provider.target(target.provider, model=target.model))
        else:
            inactive.append(target.provider)
    return Route(name, model, tuple(targets), tuple(inactive))


def _priority(target: ModelTarget) -> int:
    return target.priority


def pepper(config: Config, new_secret: str) -> Secret:
    """The pepper of API keys: the configured one, else the one kept in the data folder.

    `new_secret` becomes it if there is none yet; of several processes that start at once, one wins.
    """
    if config.auth.pepper is not None:
        return config.auth.pepper
    path = config.data_dir / "pepper"
    config.data_dir.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"pepper.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(new_secret)
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link, unlike a rename, fails if the name is taken: no key ever loses its pepper.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    # Without this a power cut could leave keys in the database whose pepper is gone.
    folder = os.open(config.data_dir, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return Secret(path.read_text().strip())
