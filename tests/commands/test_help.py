"""What `--help` shows."""

import pytest
from flexpipe.cli import app


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "generate",
        "chat",
        "ps",
        "refactor",
        "plan",
        "pull",
        "bench engine",
        "certify microgrid9",
        "certify controller",
    ],
)
def test_the_help_of_a_command_has_examples(command, capsys):
    app.help_print(command.split())
    usage, _, rest = capsys.readouterr().out.partition("\n")
    assert usage.startswith(f"Usage: flexpipe {command}")
    assert f" flexpipe {command}" in rest.partition("╭")[0]
