"""How much a scenario does: enough to prove its rule, or, with LONG=1, as much as one likes."""

import os

LONG = bool(os.environ.get("LONG"))  # noqa: TID251 - chosen by whoever runs the tests
