"""What holds in every test, and in every process that one starts."""

import os

from flexpipe.actors.event_log import STRICT_VARIABLE

os.environ[STRICT_VARIABLE] = "1"
