"""Read by every Python process that has this folder on its path, before anything else."""

from tests.scenarios.crash import deaths

deaths.install()
