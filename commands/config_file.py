"""Settings from the file that a flag of the same command line names. Owns the reading; what settings there are is the command's."""

from __future__ import annotations

from cyclopts import App, ArgumentCollection
from cyclopts import config as sources

from ..actors.config import ConfigError

FLAG = "--config"


def named_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A source of settings for cyclopts: the TOML file of `FLAG`, where it is given. Unknown keys are errors.

    Raises `ConfigError` where there is no such file.
    """
    for argument in arguments:
        if FLAG in argument.names and argument.tokens:
            path = argument.tokens[0].value
            file = sources.Toml(path, must_exist=True, use_commands_as_keys=False, allow_unknown=False)
            try:
                file(app, commands, arguments)
            except OSError as error:
                raise ConfigError(f"config: {path} cannot be read: {error.strerror}") from error
            return
