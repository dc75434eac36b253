"""What a client is told when its request fails: OpenAI's form of an error, with the status that goes with it."""

from starlette.responses import JSONResponse

INVALID = "invalid_request_error"


class ApiError(Exception):
    """A request that is not answered, and why; `param` names the parameter that is to blame."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        kind: str = INVALID,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def not_served(name: str, names: tuple[str, ...]) -> ApiError:
    return ApiError(f"there is no model {name!r} here: ask for {' or '.join(names)}", "model", 404, code="model_not_found")


def too_busy() -> ApiError:
    message = "the server is busy and its queue is full: try again in a second"
    return ApiError(message, None, 429, "rate_limit_error", "queue_full", {"Retry-After": "1"})


def timed_out(seconds: float) -> ApiError:
    return ApiError(f"the request took longer than {seconds:g} seconds and was given up", None, 504, "server_error", "timeout")


def failed() -> ApiError:
    return ApiError("the server failed on this request; its log says why", None, 500, "server_error", "internal_error")


def closing() -> ApiError:
    return ApiError("the server is shutting down", None, 503, "server_error", "shutting_down", {"Retry-After": "1"})
