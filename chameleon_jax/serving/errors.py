"""What a client is told when its request fails: a status, and OpenAI's form of an error."""

from __future__ import annotations

from typing import Any

from chameleon_jax.errors import LONGEST_MESSAGE, ChameleonError, printable

RETRY_SECONDS = 5
"""When to try again after the server was too busy."""


class RequestError(ChameleonError):
    """A request that is refused or fails.

    Attributes:
      status: of the HTTP response.
      code: a short name of the reason.
      param: the part of the request that is meant.
      retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after: int | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def body(self) -> dict[str, Any]:
        """`{"error": {...}}`, as OpenAI's clients read it."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        param = None if self.param is None else printable(self.param)
        return {"error": {"message": str(self), "type": kind, "param": param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> RequestError:
    """Status 400: what the request says cannot be asked."""
    return RequestError(400, message, code, param=param)


def too_large(message: str, param: str | None = None) -> RequestError:
    return RequestError(413, message, "too_large", param=param)


def busy(message: str, code: str = "overloaded") -> RequestError:
    return RequestError(503, message, code, retry_after=RETRY_SECONDS)


def failed() -> RequestError:
    """Status 500: a mistake of ours, of which the log tells more than a client should know."""
    return RequestError(500, "the server made a mistake; its log says more", "internal_error")


def of_http(status: int, detail: str, method: str, path: str) -> RequestError:
    """For what the routing refuses: an address that is not there, a method that it does not take."""
    path = printable(path)
    if status == 404:
        return RequestError(404, f"{path}: there is no such address; /docs lists them", "not_found")
    if status == 405:
        return RequestError(405, f"{path} does not take {printable(method)}", "method_not_allowed")
    return RequestError(status, printable(detail, LONGEST_MESSAGE), "invalid_request")
