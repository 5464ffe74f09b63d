"""config.yaml and the environment become one Config, or one list of everything wrong with them."""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from gateway.binding import settings_of
from gateway.config import ConfigErrors, check_config, is_loopback, load, pepper, read, secrets_in
from gateway.settings import Config, Timeouts
from ledger.usage import Unit
from providers.adapter import Operation

SHIPPED = Path(__file__).parents[2] / "config.yaml"
PEPPER = "0123456789abcdef" * 2
PROVIDER = "providers: {own: {kind: custom, base_url: https://llm.example.com/v1}}\n"


def config(text: str, **environ: str) -> Config:
    return read(text, environ)


def mistakes(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        read(text, environ)
    return [str(mistake) for mistake in caught.value.mistakes]


class TestTheShippedFile:
    def test_is_valid_without_any_vendors_key(self) -> None:
        report = check_config(SHIPPED, {})
        assert report.exit_code == 0
        assert "OPENAI_API_KEY is not set" in report.text

    def test_shows_every_setting_with_its_default(self) -> None:
        shown = load(SHIPPED, {})
        by_choice = {"providers", "models", "prices", "data_dir"}
        for field in fields(Config):
            if field.name not in by_choice and not field.metadata.get("derived"):
                assert getattr(shown, field.name) == getattr(Config(), field.name), field.name
        assert shown.data_dir == Path("data").absolute()

    def test_names_every_key_there_is(self) -> None:
        text = SHIPPED.read_text()
        assert [key for key in keys_of(Config) if key not in text] == []

    def test_has_a_reason_or_a_meaning_beside_every_setting(self) -> None:
        explained = ("host:", "port:", "unit:", "per_usd:", "pepper:")
        for line in SHIPPED.read_text().splitlines():
            is_setting = re.match(r" +[a-z_]+: [0-9a-z. ]+(B|null|[0-9])( |$)", line)
            if is_setting and not line.lstrip().startswith(explained):
                assert "#" in line, line

    def test_leads_the_usual_names_of_openai_to_openai(self) -> None:
        shown = load(SHIPPED, {"OPENAI_API_KEY": "sk-1"})
        for name in ("gpt-4o-mini", "gpt-5", "o3", "openai/gpt-4.1", "text-embedding-3-small"):
            route = shown.route(name)
            assert route is not None
            [target] = route.targets
            assert (target.host, target.model) == ("api.openai.com", name.removeprefix("openai/"))


def keys_of(kind: Any) -> list[str]:
    """Every key that is read below this type."""
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return [
            name
            for key, (_, hint) in settings_of(kind).items()
            for name in (f"{key}", *keys_of(hint))
        ]
    return [name for inner in get_args(kind) if get_origin(kind) for name in keys_of(inner)]


class TestMistakes:
    def test_are_all_listed_at_once_in_the_order_of_the_file(self) -> None:
        text = "limits:\n  body_bytes_max: big\n  heders_max: 5\nlogging: {level: loud}\n"
        found = mistakes(text, TOLLGATE_AUTH__KEY_CACHE_S="soon")
        assert len(found) == 4
        assert found[0].startswith("auth.key_cache_s: TOLLGATE_AUTH__KEY_CACHE_S: must be a number")
        assert found[1].startswith("line 2: limits.body_bytes_max")
        assert found[2] == "line 3: limits.heders_max: unknown setting; did you mean 'headers_max'?"
        assert found[3].startswith("line 4: logging.level")

    def test_of_the_environment_are_found_too(self) -> None:
        [found] = mistakes("", TOLLGATE_LIMITS__BODY_BYTE_MAX="5")
        assert "TOLLGATE_LIMITS__BODY_BYTE_MAX: unknown setting" in found

    def test_never_show_a_secret(self) -> None:
        text = "auth:\n  pepper: canary\nredis: {url: http://:canary@host}\npostgres: canary\n"
        assert "canary" not in "".join(mistakes(text))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("- a\n", "must be settings of its own"),
            ("limits: {body_bytes_max: 5}\nlimits: {headers_max: 50}\n", "stands here again"),
            ("ledger: {hold_lease_s: 30, hold_renew_s: 20}", "at most half of hold_lease_s"),
            ("ledger: {journal: {bytes_max: 64 MiB}}", "at most half of bytes_max"),
            ("limits: {body_bytes_in_all: 31 MiB}", "at least body_bytes_max"),
            ("listeners: {metrics: {host: 0.0.0.0}}", "0.0.0.0 is not loopback"),
            ("listeners: {metrics: {port: 8080}}", "is the port of listeners.data, too"),
            ("ledger: {durability: replica}", "replica needs redis.url"),
            (
                "providers: {own: {kind: openai, base_url: https://a.example/v1, quirks: groq}}",
                "belongs to kind: custom",
            ),
            ("redis: {url: localhost:6379}", "must begin with redis://"),
            ("redis: {admin_url: redis://localhost}", "stands without redis.url"),
            ("postgres: {url: postgresql://localhost/x}", "every gateway of the database"),
            ("auth: {pepper: '${NOT_THERE}'}", "the environment variable NOT_THERE is not set"),
            (
                "providers: {own: {kind: custom, base_url: https://a.example, quirks: grok}}",
                "did you mean 'groq'?",
            ),
            (
                "providers: {own: {kind: custom, base_url: https://a.example, prices: opanai}}",
                "did you mean 'openai'?",
            ),
            (
                "providers: {own: {kind: custom, base_url: http://llm.example.com}}",
                "set allow_http: true if that is meant",
            ),
            ("providers: {own: {kind: custom}}", "'base_url' is missing"),
            (
                "providers: {a: {kind: custom, base_url: https://a.example, headers: {'b:': c}}}",
                "is not the name of a header",
            ),
            ("models: {m: {targets: [{provider: own, model: m}]}}", "there is no provider 'own'"),
            (
                PROVIDER + "models: {m: {targets: [{provider: onw, model: m}]}}",
                "did you mean 'own'",
            ),
            (PROVIDER + "models: {m: {targets: []}}", "has no targets"),
            (PROVIDER + "models: {m: {targets: [{provider: own, model: x*}]}}", "has a * though"),
            (
                PROVIDER + "models: {'a*b': {targets: [{provider: own, model: m}]}}",
                "only at its end",
            ),
            (
                PROVIDER + "models: {'a b': {targets: [{provider: own, model: m}]}}",
                "without spaces",
            ),
            (
                PROVIDER + "models: {'a*': {aliases: [b], targets: [{provider: own, model: m}]}}",
                "cannot say what the * of the name stands for",
            ),
            (
                PROVIDER
                + "models: {a: {targets: [{provider: own, model: m}]},"
                + " b: {aliases: [a], targets: [{provider: own, model: m}]}}",
                "'a' already means 'a'",
            ),
            (
                PROVIDER + "prices: [{provider: own, model: m}]",
                "either usd_per_million or free: true",
            ),
            (
                PROVIDER + "prices: [{provider: own, model: m, usd_per_million: {imput: 1}}]",
                "did you mean 'input'?",
            ),
            (
                PROVIDER
                + "prices: [{provider: own, model: m, free: true, from: 2026-02-01,"
                + " until: 2026-01-01}]",
                "must be later than from",
            ),
        ],
    )
    def test_say_what_does_not_fit_together(self, text: str, said: str) -> None:
        [found] = mistakes(text)
        assert said in found

    def test_in_a_provider_are_not_told_again_where_it_is_used(self) -> None:
        text = "providers: {own: {kind: custm, base_url: https://a.example}}\n"
        [found] = mistakes(text + "models: {m: {targets: [{provider: own, model: m}]}}")
        assert "custm" not in found
        assert "custom" in found

    @pytest.mark.parametrize("content", [None, b"\xff\xfe", b"#" * (8 * 1024 * 1024 + 1)])
    def test_of_the_file_itself_are_told_like_any_other(
        self, tmp_path: Path, content: bytes | None
    ) -> None:
        path = tmp_path / "config.yaml"
        if content is not None:
            path.write_bytes(content)
        report = check_config(path, {})
        assert report.exit_code == 1
        assert str(path) in report.text


class TestProviders:
    def test_without_its_key_a_provider_is_inactive_and_so_are_its_models(self) -> None:
        text = (
            "providers:\n"
            "  one: {kind: openai, base_url: https://a.example/v1, api_key: '${ONE_KEY}'}\n"
            "  two: {kind: custom, base_url: https://b.example/v1, api_key: '${TWO_KEY}'}\n"
            "models:\n"
            "  m: {targets: [{provider: one, model: m}, {provider: two, model: n}]}\n"
            "  only: {targets: [{provider: one, model: m}]}\n"
        )
        found = config(text, TWO_KEY="secret")
        assert not found.providers["one"].is_active
        assert found.providers["one"].missing == "ONE_KEY"
        both, only = found.route("m"), found.route("only")
        assert both is not None
        assert [target.provider for target in both.targets] == ["two"]
        assert only is not None
        assert (only.targets, only.inactive) == ((), ("one",))

    def test_a_missing_variable_anywhere_else_is_a_mistake(self) -> None:
        [found] = mistakes(
            "providers: {own: {kind: custom, base_url: https://a.example,"
            " headers: {x-team: '${TEAM}'}}}"
        )
        assert "TEAM is not set" in found

    def test_what_a_provider_does_not_say_of_timeouts_comes_from_the_limits(self) -> None:
        found = config(
            "limits: {timeouts: {connect_s: 2, idle_s: 3}}\n"
            "providers: {own: {kind: custom, base_url: https://a.example,"
            " timeouts: {idle_s: 9}}}"
        )
        assert found.providers["own"].timeouts == Timeouts(connect_s=2, first_byte_s=600, idle_s=9)

    def test_a_target_carries_all_that_sending_needs(self) -> None:
        found = config(
            "providers: {own: {kind: custom, base_url: 'http://127.0.0.1:8000/v1/',"
            " allow_http: true, api_key: k, quirks: vllm, headers: {x-a: b}}}\n"
            "models: {m: {targets: [{provider: own, model: n}]}}"
        )
        route = found.route("m")
        assert route is not None
        [target] = route.targets
        assert (target.scheme, target.host, target.port) == ("http", "127.0.0.1", 8000)
        assert (target.path, target.model, target.quirks) == ("/v1", "n", "vllm")
        assert target.api_key.reveal() == "k"
        assert {name: value.reveal() for name, value in target.headers.items()} == {"x-a": "b"}


class TestRoutes:
    TEXT = PROVIDER + (
        "models:\n"
        "  '*': {targets: [{provider: own, model: any/*}]}\n"
        "  gpt-*: {targets: [{provider: own, model: gpt-*}]}\n"
        "  gpt-4*: {targets: [{provider: own, model: fixed}]}\n"
        "  gpt-4.1: {aliases: [four], targets: [{provider: own, model: m}]}\n"
    )

    @pytest.mark.parametrize(
        ("name", "model", "label"),
        [
            ("gpt-4.1", "m", "gpt-4.1"),
            ("four", "m", "gpt-4.1"),
            ("gpt-4o", "fixed", "gpt-4*"),
            ("gpt-5", "gpt-5", "gpt-*"),
            ("llama", "any/llama", "*"),
            ("gpt-*", "gpt-*", "gpt-*"),
        ],
    )
    def test_the_closest_name_decides(self, name: str, model: str, label: str) -> None:
        route = config(self.TEXT).route(name)
        assert route is not None
        assert (route.targets[0].model, route.name) == (model, label)

    def test_a_name_nobody_configured_has_none(self) -> None:
        found = config(PROVIDER + "models: {a/*: {targets: [{provider: own, model: '*'}]}}")
        assert [found.route(name) for name in ("b", "a/", "a")] == [None, None, None]

    def test_the_lowest_priority_is_tried_first_and_equals_as_listed(self) -> None:
        targets = [("c", 2), ("a", 1), ("b", 1)]
        listed = [{"provider": "own", "model": m, "priority": p} for m, p in targets]
        found = config(PROVIDER + yaml.safe_dump({"models": {"m": {"targets": listed}}}))
        route = found.route("m")
        assert route is not None
        assert [target.model for target in route.targets] == ["a", "b", "c"]

    def test_names_that_clients_invent_do_not_pile_up(self) -> None:
        found = config(self.TEXT)
        for number in range(3_000):
            assert found.route(f"x{number}") is not None
        assert len(found._matched) <= 1_000


class TestPrices:
    def test_are_exact_however_they_are_written(self) -> None:
        found = config(
            PROVIDER + "prices:\n"
            "- {provider: own, model: a*, from: 2026-01-01, usd_per_million:"
            " {input: 0.1, output: '0.3', requests: 10_000}}\n"
            "- {provider: own, model: b, free: true}\n"
        )
        [first, second] = found.prices
        assert first.nanos_per_million == {
            Unit.INPUT: 100_000_000,
            Unit.OUTPUT: 300_000_000,
            Unit.REQUESTS: 10_000_000_000_000,
        }
        assert (first.from_s, first.until_s) == (1_767_225_600, None)
        assert second.free


class TestModels:
    def test_allow_every_operation_unless_told(self) -> None:
        found = config(
            PROVIDER + "models:\n"
            "  a: {targets: [{provider: own, model: m}]}\n"
            "  b: {targets: [{provider: own, model: m}], operations: [embeddings]}\n"
        )
        assert found.models["a"].operations == tuple(Operation)
        assert found.models["b"].operations == (Operation.EMBEDDINGS,)


class TestTheEnvironment:
    @pytest.mark.parametrize(
        ("variable", "text", "path", "wanted"),
        [
            ("TOLLGATE_LISTENERS__DATA__PORT", "9000", ("listeners", "data", "port"), 9000),
            ("tollgate_limits__body_bytes_max", "1 MiB", ("limits", "body_bytes_max"), 1024**2),
            (
                "TOLLGATE_LEDGER__DURABILITY",
                "journal-group",
                ("ledger", "durability"),
                "journal-group",
            ),
        ],
    )
    def test_overrides_the_file(
        self, variable: str, text: str, path: tuple[str, ...], wanted: object
    ) -> None:
        found: Any = load(SHIPPED, {variable: text})
        for step in path:
            found = getattr(found, step)
        assert found == wanted

    def test_can_add_a_provider_a_model_and_its_price(self) -> None:
        found = load(
            SHIPPED,
            {
                "TOLLGATE_PROVIDERS__LOCAL": "{kind: custom, base_url: http://127.0.0.1:9/v1,"
                " allow_http: true}",
                "TOLLGATE_MODELS__SMOLLM2__TARGETS": "[{provider: local, model: smollm2}]",
                "TOLLGATE_PRICES": '[{provider: local, model: "*", free: true}]',
            },
        )
        route = found.route("smollm2")
        assert route is not None
        assert route.targets[0].provider == "local"
        assert found.prices[0].free


class TestSecrets:
    def test_do_not_show_in_what_is_printed(self) -> None:
        found = config(
            "redis: {url: redis://:canary@host}\npostgres: {url: postgresql://u:canary@h/d}\n"
            f"auth: {{pepper: canary{PEPPER}}}\n"
            "providers: {own: {kind: custom, base_url: https://a.example, api_key: canary,"
            " headers: {x-a: canary}}}\n"
            "models: {m: {targets: [{provider: own, model: m}]}}"
        )
        assert "canary" not in repr({**vars_of(found), "exact": ()})
        assert len([text for text in secrets_in(found) if "canary" in text]) >= 5

    def test_the_pepper_is_made_once_and_only_its_owner_may_read_it(self, tmp_path: Path) -> None:
        found = config(f"data_dir: {tmp_path}/data")
        first = pepper(found, "a" * 43)
        assert first.reveal() == "a" * 43
        assert pepper(found, "b" * 43).reveal() == "a" * 43
        [file] = (tmp_path / "data").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600

    def test_a_configured_pepper_leaves_the_folder_alone(self, tmp_path: Path) -> None:
        found = config(f"data_dir: {tmp_path}/data\nauth: {{pepper: {PEPPER}}}")
        assert pepper(found, "a" * 43).reveal() == PEPPER
        assert not (tmp_path / "data").exists()


def vars_of(found: Config) -> Mapping[str, object]:
    return {field.name: getattr(found, field.name) for field in fields(found)}


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - nothing listens there
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_loopback_is_what_only_this_machine_can_reach(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) is loopback
