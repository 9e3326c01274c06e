"""Every error that the SDK raises, and which HTTP answer becomes which."""

from __future__ import annotations

import msgspec


class FlexPipeError(Exception):
    """Base of all. ``status`` is the HTTP status (None without an answer), ``param`` the parameter that is wrong.

    ``code`` is the server's short name of the error, ``retry_after_s`` its hint, ``request_id`` what its log calls the
    request; each None where the server did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class InvalidRequestError(FlexPipeError):
    """The request is wrong (400, 405, 408, 413, 415): change it."""


class AuthenticationError(FlexPipeError):
    """The API key is missing or wrong (401)."""


class NotFoundError(FlexPipeError):
    """There is no such model or path (404)."""


class OverloadedError(FlexPipeError):
    """The server's queue is full (429): try again after ``retry_after_s``."""


class UnavailableError(FlexPipeError):
    """The model is loading, lost a stage, or is shutting down (503): try again after ``retry_after_s``."""


class ServerError(FlexPipeError):
    """The server failed (other 5xx); its log has the cause under ``request_id``."""


class ConnectionFailedError(FlexPipeError):
    """The server could not be reached, did not answer in time, or broke off."""


class StreamInterruptedError(FlexPipeError):
    """A stream ended before the answer did; what came before is in the stream's ``text``."""


class NodeRefusedError(FlexPipeError):
    """What was asked of a node of the cluster cannot be; nothing was changed."""


class RefactorError(FlexPipeError):
    """A refactoring did not come off. Its kinds say what serves now."""


class RefactorRefusedError(RefactorError):
    """It cannot be carried out as asked, or another one runs; nothing was changed."""


class RefactorAbortedError(RefactorError):
    """It was broken off before its decision; the stages of before serve on."""


class RefactorRecoveredError(RefactorError):
    """A stage died after the decision: the new stages are brought up again, and go on with every request."""


class RefactorLostError(RefactorError):
    """The cluster's leader was lost on the way; its successor carries through what was decided, and its status says what serves."""


_BY_CODE: dict[str | None, type[FlexPipeError]] = {
    "node_refused": NodeRefusedError,
    "refactor_refused": RefactorRefusedError,
    "refactor_aborted": RefactorAbortedError,
    "refactor_recovered": RefactorRecoveredError,
    "refactor_lost": RefactorLostError,
}
_BY_STATUS: dict[int, type[FlexPipeError]] = {
    401: AuthenticationError,
    404: NotFoundError,
    429: OverloadedError,
    503: UnavailableError,
}


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of OpenAI's error body."""

    message: str
    param: str | None = None
    code: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


def error_of_answer(status: int, body: bytes, retry_after: str | None, request_id: str | None) -> FlexPipeError:
    """The error of an HTTP answer that is not 2xx, whoever sent it (a proxy's error page has no JSON)."""
    try:
        detail = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        detail = ErrorDetail(f"The server answered with HTTP status {status}.")
    by_status = _BY_STATUS.get(status, ServerError if status >= 500 else InvalidRequestError)
    error = _BY_CODE.get(detail.code, by_status)
    retry_after_s = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
    return error(
        detail.message,
        status=status,
        param=detail.param,
        code=detail.code,
        retry_after_s=retry_after_s,
        request_id=request_id,
    )


def refactor_error(code: str, sentence: str) -> FlexPipeError:
    """The error of a refactoring that failed after its answer had begun."""
    return _BY_CODE.get(code, RefactorError)(sentence, code=code)
