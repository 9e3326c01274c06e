"""Where FlexPipe keeps what can be made again: converted models, captured programs, profiles.

Owns the one rule for the place. Must never know what is stored there.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "FLEXPIPE_CACHE"
"""Environment variable that moves the whole cache."""


def cache_folder(*parts: str) -> Path:
    """The folder ``parts`` under the user's cache, made if it is missing.

    ``$FLEXPIPE_CACHE`` wins over the platform's own place (``~/.cache/flexpipe`` on Linux). Raises `OSError` where the
    folder cannot be made.
    """
    override = os.environ.get(CACHE_VARIABLE)
    root = Path(override).expanduser() if override else Path(platformdirs.user_cache_dir("flexpipe"))
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
