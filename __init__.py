"""FlexPipe: an LLM server whose pipeline of stages reshapes itself while it serves.

The names below are the public face. They are loaded when first used, so that `import flexpipe` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import AsyncClient, Client
    from .client_errors import FlexPipeError

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "FlexPipeError", "__version__"]


def __getattr__(name: str) -> object:
    if name in {"AsyncClient", "Client"}:
        from . import client

        return getattr(client, name)
    if name == "FlexPipeError":
        from .client_errors import FlexPipeError

        return FlexPipeError
    raise AttributeError(f"module 'flexpipe' has no attribute {name!r}")
