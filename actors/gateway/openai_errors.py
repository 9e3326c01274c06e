"""Every way the HTTP API says no: one exception with an HTTP status and OpenAI's error body.

Owns statuses, types and codes. It must never know of requests' contents beyond the name of a parameter.
"""

from __future__ import annotations

import math

import msgspec

from ..generation import FailureKind, GenerationFailedError
from ..refactor import RefactorFailed

RETRY_AFTER_S = 1.0
"""What a client is told to wait where the source of tokens gave no hint."""

_FAILURES: dict[FailureKind, tuple[int, str, str]] = {
    # kind: HTTP status, type, code
    "overloaded": (429, "rate_limit_error", "overloaded"),
    "not_ready": (503, "server_error", "not_ready"),
    "too_long": (400, "invalid_request_error", "context_length_exceeded"),
    "stage_lost": (503, "server_error", "stage_lost"),
    "cancelled": (503, "server_error", "cancelled"),
    "shutting_down": (503, "server_error", "shutting_down"),
}


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of OpenAI's error body."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error body; also the payload of a stream's error frame."""

    error: ErrorDetail


class ApiError(Exception):
    """A request cannot be answered. ``retry_after_s`` becomes the Retry-After header, None for none."""

    def __init__(self, status: int, detail: ErrorDetail, retry_after_s: float | None = None) -> None:
        super().__init__(detail.message)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON to send."""
        return msgspec.json.encode(ErrorBody(self.detail))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the answer that carries this error."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def invalid_parameter(param: str | None, message: str, code: str | None = "invalid_value") -> ApiError:
    """400: a parameter has a value that it cannot have."""
    return ApiError(400, ErrorDetail(message, "invalid_request_error", param, code))


def unsupported_parameter(param: str, message: str | None = None) -> ApiError:
    """400: OpenAI's API has this, FlexPipe does not yet."""
    message = message or f"`{param}` is not supported yet; leave it out."
    return ApiError(400, ErrorDetail(message, "invalid_request_error", param, "unsupported_parameter"))


def refused(status: int, code: str, message: str, param: str | None = None) -> ApiError:
    """A 4xx that is about the HTTP request rather than one parameter's value."""
    return ApiError(status, ErrorDetail(message, "invalid_request_error", param, code))


def internal_error() -> ApiError:
    """500. The cause is in the log under the request's id, never in the answer."""
    sentence = "The server failed to handle this request; its log has the cause under the id in X-Request-Id."
    return ApiError(500, ErrorDetail(sentence, "server_error", None, "internal_error"))


def generation_failed(error: GenerationFailedError) -> ApiError:
    """The HTTP form of a refused or lost generation."""
    status, kind, code = _FAILURES[error.kind]
    retry_after_s = error.retry_after_s if error.retry_after_s is not None else RETRY_AFTER_S
    return ApiError(status, ErrorDetail(error.sentence, kind, None, code), None if status == 400 else retry_after_s)


def refactor_failed(failed: RefactorFailed) -> ApiError:
    """The HTTP form of a refactoring that was refused or did not come off, where no event was sent before."""
    code = f"refactor_{failed.reason}"
    if failed.reason == "refused":
        return refused(409, code, failed.sentence)
    status = 409 if failed.reason == "aborted" else 503
    return ApiError(status, ErrorDetail(failed.sentence, "server_error", None, code))


def refactor_unsupported() -> ApiError:
    """501: nothing here can change the pipeline's shape."""
    sentence = "This server cannot refactor its pipeline; start one with `flexpipe serve`."
    return ApiError(501, ErrorDetail(sentence, "server_error", None, "refactor_unsupported"))
