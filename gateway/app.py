"""A worker, put together: reading this shows what the data plane consists of.

What is built first is closed last. Every task belongs to the worker's task group, so none fails
unseen: a worker with a broken part dies and is started again, and the journal makes that safe.
"""

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from pathlib import Path

from gateway.config import load
from gateway.settings import Config

log = logging.getLogger(__name__)
