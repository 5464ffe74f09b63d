"""How much a scenario does: enough to prove its rule, or, with LONG=1, as much as one likes."""

import os
import time

LONG = bool(os.environ.get("LONG"))  # noqa: TID251 - chosen by whoever runs the tests

# Where nobody reads what was skipped, nothing may be.
IS_CI = bool(os.environ.get("CI"))  # noqa: TID251 - as above

# Of what is drawn by chance. A test that uses it prints it: STORM_SEED=N draws the same again.
SEED = int(os.environ.get("STORM_SEED") or time.time_ns() % 1_000_000)  # noqa: TID251 - as above
