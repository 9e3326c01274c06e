"""The HTTP gateway: OpenAI's routes over a token source, health, metrics, status and refactoring.

Owns the route table and the order of what happens to a generation request: check, tokenise, submit, answer. It must never
know how tokens are made or a pipeline is refactored, and imports neither torch nor the transport.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.interface import Tokenizer
from ..cluster_nodes import ClusterNodes
from ..event_log import EventLog
from ..generation import FailureKind, GenerationFailedError, TokenSource
from ..refactor import Refactorer
from .boundary import BodyLimits, Boundary, read_json_body
from .decisions_api import Decisions, last_decisions
from .drain import Drain
from .generation_answer import GenerationAnswer
from .generation_run import GenerationRun
from .http_server import HttpServer, ServerLimits
from .metrics import GatewayMetrics
from .nodes_api import all_nodes, drain
from .openai_api import ChatRequest, CompletionRequest, decode_chat, decode_completion
from .openai_errors import ApiError, generation_failed, refactor_unsupported, refused
from .openai_responses import AnswerFormat, ChatFormat, CompletionFormat
from .prompts import Job, PromptReader
from .refactor_answer import RefactorAnswer
from .refactor_api import decode_refactor
from .request_machine import RequestMachine, TextStream

NOT_READY_RETRY_AFTER_S = 2.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """``api_keys``: any of them opens every route; with none, every route is open."""

    api_keys: tuple[str, ...] = ()
    body: BodyLimits = field(default_factory=BodyLimits)


def make_app(
    source: TokenSource,
    tokenizer: Tokenizer,
    text_stream_factory: Callable[[], TextStream],
    model_name: str,
    config: GatewayConfig,
    log: EventLog,
    refactorer: Refactorer | None = None,
    decisions: Decisions | None = None,
    cluster: ClusterNodes | None = None,
) -> Starlette:
    """The application.

    Without a ``refactorer`` it refuses to refactor, without ``decisions`` none were made, without a ``cluster`` it has no nodes.
    Its ``state.drain`` is the `Drain` that `serve` begins when it is to stop.
    """
    gateway = _Gateway(source, tokenizer, text_stream_factory, model_name, config, log, refactorer, decisions, cluster)
    app = Starlette(
        routes=gateway.routes(),
        middleware=[Middleware(Boundary, api_keys=config.api_keys, limits=config.body, log=log)],
        exception_handlers={HTTPException: _no_such_route},
    )
    app.router.redirect_slashes = False
    app.state.drain = gateway.drain
    return app


async def serve(
    app: Starlette,
    host: str,
    port: int,
    shutdown: trio.Event,
    limits: ServerLimits,
    log: EventLog,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an application of `make_app` until ``shutdown``, then drain it and return.

    Reports its addresses as "host:port". Raises `ListenError` where it cannot listen.
    """
    await HttpServer(app, limits, log).run(host, port, shutdown, app.state.drain.begin, task_status=task_status)


class _Gateway:
    def __init__(
        self,
        source: TokenSource,
        tokenizer: Tokenizer,
        text_stream_factory: Callable[[], TextStream],
        model_name: str,
        config: GatewayConfig,
        log: EventLog,
        refactorer: Refactorer | None,
        decisions: Decisions | None,
        cluster: ClusterNodes | None,
    ) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._text_stream_factory = text_stream_factory
        self._model_name = model_name
        self._config = config
        self._log = log
        self._refactorer = refactorer
        self._decisions = decisions
        self._cluster = cluster
        self._prompts = PromptReader(tokenizer)
        self._metrics = GatewayMetrics(source, model_name)
        self._created_s = int(time.time())
        self.drain = Drain()

    def routes(self) -> list[Route]:
        """The route table."""
        return [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._exposition),
            Route("/flexpipe/v1/status", self._status),
            Route("/flexpipe/v1/refactor", self._refactor, methods=["POST"]),
            Route("/flexpipe/v1/decisions", self._decisions_made),
            Route("/flexpipe/v1/nodes", self._nodes),
            Route("/flexpipe/v1/nodes/{node}/drain", self._drain, methods=["POST"]),
        ]

    # --- generation

    async def _chat(self, request: Request) -> Response:
        return await self._generation(request, self._chat_job, ChatFormat, "chatcmpl")

    async def _completion(self, request: Request) -> Response:
        return await self._generation(request, self._completion_job, CompletionFormat, "cmpl")

    async def _chat_job(self, body: bytes) -> Job:
        request = decode_chat(body)
        return await self._prompts.chat(request, self._served(request))

    async def _completion_job(self, body: bytes) -> Job:
        request = decode_completion(body)
        return await self._prompts.completion(request, self._served(request))

    async def _generation(
        self,
        request: Request,
        read_job: Callable[[bytes], Awaitable[Job]],
        make_format: Callable[..., AnswerFormat],
        prefix: str,
    ) -> Response:
        arrived_s = trio.current_time()
        request_id: str = request.state.request_id
        try:
            job = (await read_job(await read_json_body(request, self._config.body))).traced(request_id)
        except ApiError as error:
            self._metrics.ended(error.detail.code or "invalid_value", trio.current_time() - arrived_s)
            raise
        answer_format = make_format(
            f"{prefix}-{request_id}", int(time.time()), self._model_name, usage_asked=job.include_usage
        )
        run = GenerationRun(job, self._source, self._machine, self.drain, self._metrics, arrived_s)

        def ended(outcome: str, output_tokens: int) -> None:
            duration_s = trio.current_time() - arrived_s
            self._metrics.ended(outcome, duration_s)
            self._log.emit(
                "http_generation_ended",
                http_request=request_id,
                outcome=outcome,
                prompt_tokens=job.prompt_tokens,
                output_tokens=output_tokens,
                duration_s=round(duration_s, 6),
            )

        return GenerationAnswer(job, run, answer_format, ended, partial(self._broke, request_id))

    def _machine(self, stops: tuple[str, ...]) -> RequestMachine:
        return RequestMachine(self._text_stream_factory(), stops, self._tokenizer.token_text)

    def _served(self, request: ChatRequest | CompletionRequest) -> int:
        """The context of the model asked for. Raises `ApiError` where it is another (404) or cannot serve now (503)."""
        if request.model != self._model_name:
            raise _unknown_model(request.model)
        ready, reason = self._readiness()
        if not ready:
            kind: FailureKind = "shutting_down" if self.drain.draining else "not_ready"
            raise generation_failed(GenerationFailedError(kind, reason, NOT_READY_RETRY_AFTER_S))
        return self._source.status().model.context_tokens

    # --- control

    async def _refactor(self, request: Request) -> Response:
        if self._refactorer is None:
            raise refactor_unsupported()
        arrived_s = trio.current_time()
        wanted = decode_refactor(await read_json_body(request, self._config.body))
        request_id: str = request.state.request_id

        def ended(outcome: str) -> None:
            duration_s = round(trio.current_time() - arrived_s, 6)
            self._log.emit("http_refactor_ended", http_request=request_id, outcome=outcome, duration_s=duration_s)

        broke = partial(self._broke, request_id)
        streamed = not _wants_one_body(request)
        return RefactorAnswer(self._refactorer, wanted, self.drain, ended, broke, streamed=streamed)

    def _broke(self, request_id: str, error: Exception) -> None:
        trace = "".join(traceback.format_exception(error))
        self._log.emit("http_request_broke", http_request=request_id, error=trace)

    # --- facts

    async def _models(self, _request: Request) -> Response:
        return _json({"object": "list", "data": [self._model_card()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["model"] != self._model_name:
            raise _unknown_model(request.path_params["model"])
        return _json(self._model_card())

    async def _health(self, _request: Request) -> Response:
        """200 while the process lives; the body says what is true."""
        ready, reason = self._readiness()
        return _json({"alive": True, "ready": ready, "reason": reason})

    async def _ready(self, _request: Request) -> Response:
        ready, reason = self._readiness()
        headers = {} if ready else {"retry-after": f"{NOT_READY_RETRY_AFTER_S:.0f}"}
        return _json({"ready": ready, "reason": reason}, status=200 if ready else 503, headers=headers)

    async def _exposition(self, _request: Request) -> Response:
        return Response(self._metrics.exposition(), media_type=METRICS_TYPE)

    async def _status(self, _request: Request) -> Response:
        ready, reason = self._readiness()
        return _json(msgspec.structs.replace(self._source.status(), ready=ready, reason=reason))

    async def _decisions_made(self, request: Request) -> Response:
        return _json(await last_decisions(self._decisions, request.query_params))

    async def _nodes(self, _request: Request) -> Response:
        return _json(await all_nodes(self._cluster))

    async def _drain(self, request: Request) -> Response:
        return _json(await drain(self._cluster, request.path_params["node"]), status=202)

    def _readiness(self) -> tuple[bool, str]:
        if self.drain.draining:
            return False, "The server is shutting down."
        status = self._source.status()
        return status.ready, status.reason

    def _model_card(self) -> dict[str, object]:
        return {
            "id": self._model_name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "flexpipe",
            "max_model_len": self._source.status().model.context_tokens,
        }


def _wants_one_body(request: Request) -> bool:
    """Whether the client takes JSON, and no stream of events."""
    accepted = request.headers.get("accept", "").lower()
    return "application/json" in accepted and "text/event-stream" not in accepted


def _unknown_model(name: str) -> ApiError:
    return refused(
        404, "model_not_found", f"The model {name[:256]!r} is not served here; GET /v1/models says which is.", "model"
    )


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


async def _no_such_route(request: Request, error: Exception) -> Response:
    """404 and 405 in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = refused(405, "method_not_allowed", f"{request.method} is not a method of this path.")
    else:
        refusal = refused(404, "not_found", "There is nothing at this path.")
    return Response(refusal.body(), refusal.status, error.headers, "application/json")
