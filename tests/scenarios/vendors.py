"""The providers of a scenario's deployment: the one scripted vendor under many names.

A model `<provider>/<name>` reaches it through that provider, any other model through `vendor`.
"""

from typing import Any

from providers.custom import QUIRKS
from tests.scenarios.deployment import P1

API_KEY = "sk-platform-0123456789abcdef"

# Every accent of OpenAI's dialect, so that what a vendor really sent can be read as it should be.
ACCENTS = sorted(QUIRKS.keys() - {"azure-deployments"})

_DEAD_PORT = 1  # nobody listens there


def providers(vendor_port: int) -> dict[str, Any]:
    """What a test may want of a provider; all but `dead` and `nowhere` lead to the vendor."""
    url = f"http://127.0.0.1:{vendor_port}/v1"
    plain: dict[str, Any] = {
        "kind": "custom",
        "base_url": url,
        "allow_http": True,
        "api_key": API_KEY,
        "input_overhead_tokens": 0,
        "input_overhead_tokens_embeddings": 0,
    }
    hasty = {"connect_s": 1, "first_byte_s": 0.5, "idle_s": 0.5}
    return {
        "cancel": {**plain, "on_disconnect": "cancel"},
        "hasty": {**plain, "timeouts": hasty},
        "unpriced": plain,
        "free": plain,
        "small": plain,
        "odd": plain,
        "dead": {**plain, "base_url": f"http://127.0.0.1:{_DEAD_PORT}/v1"},
        "nowhere": {**plain, "base_url": "http://no-such-host.invalid/v1"},
        "keyless": {**plain, "api_key": "${TOLLGATE_TEST_KEY_THAT_IS_NOT_SET}"},
        **{name: {**plain, "quirks": name} for name in ACCENTS},
    }


def prices(names: list[str]) -> list[dict[str, Any]]:
    """P1 for everything but what a test prices otherwise, or not at all."""
    special = {
        "small": {"input": "0.02"},  # 20 nano-USD a token, as the smallest embeddings cost
        "odd": {"input": "1.5", "output": "2"},
    }
    priced = [
        {"provider": name, "model": "*", "usd_per_million": special.get(name, P1)}
        for name in names
        if name not in ("unpriced", "free")
    ]
    return [*priced, {"provider": "free", "model": "*", "free": True}]


def many_names(vendor_port: int) -> dict[str, Any]:
    """Changes to a deployment's configuration that bring all of it in."""
    found = providers(vendor_port)
    return {
        "providers": found,
        "models": {
            "gpt-4o-mini": {"targets": [{"provider": "vendor", "model": "gpt-4o-mini"}]},
            "embed-only": {
                "targets": [{"provider": "vendor", "model": "embed-only"}],
                "operations": ["embeddings"],
            },
            **{f"{name}/*": {"targets": [{"provider": name, "model": "*"}]} for name in found},
        },
        "prices": prices(["vendor", *found]),
    }
