"""Settings of the property tests."""

from hypothesis import settings

# How long one example takes depends on what else the machine does: no example fails for that.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
