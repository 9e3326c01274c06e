"""Flags that several commands have, with the same words."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from ..actors.config import ServeConfig

DEFAULT_URL = "http://127.0.0.1:8000"

Settings = Annotated[ServeConfig, Parameter(name="*")]
AsJson = Annotated[bool, Parameter(negative="", help="Print facts as JSON, for machines.")]
Url = Annotated[str, Parameter(help="Address of the running server.")]
ApiKey = Annotated[str | None, Parameter(help="Key of the running server, if it wants one.")]
