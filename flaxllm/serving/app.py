"""The routes of a server, and what is true of all of them: who may ask, how much, and what is counted."""

import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from types import ModuleType
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flaxllm.serving import chat, completions, embeddings, tokenization
from flaxllm.serving.errors import ApiError, failed
from flaxllm.serving.fields import parse, read_fields
from flaxllm.serving.metrics import CONTENT_TYPE
from flaxllm.serving.service import Service

MAX_BODY = 8 * 2**20  # bytes
_ROUTE = "flaxllm.route"
_GONE = 499  # what is noted down of a client that did not wait (nginx's number)
_log = logging.getLogger("flaxllm")

Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service, api_key: str | None = None, report: Callable[[str], None] = lambda line: None) -> Starlette:
    """The application. `report` is told a line of each request, without any text of it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if service.scheduler is not None:
            await run_in_threadpool(service.scheduler.close)

    def route(path: str, handler: Callable[[Service, Request], Awaitable[Response]], method: str, is_open: bool = False) -> Route:
        async def handle(request: Request) -> Response:
            request.scope[_ROUTE] = path
            if api_key is not None and not is_open:
                _check_key(request, api_key)
            return await handler(service, request)

        return Route(path, handle, methods=[method])

    routes = [
        route("/health", _health, "GET", is_open=True),
        route("/metrics", _metrics, "GET"),
        route("/v1/models", _models, "GET"),
        route("/v1/models/{name:path}", _model, "GET"),
        route("/tokenize", _asked(tokenization.tokenize), "POST"),
        route("/detokenize", _asked(tokenization.detokenize), "POST"),
        route("/tokenizer_info", _tokenizer_info, "GET"),
    ]
    if service.scheduler is not None:
        routes += [
            route("/v1/completions", _writes(completions), "POST"),
            route("/v1/engines/{name:path}/completions", _writes(completions), "POST"),
            route("/v1/chat/completions", _writes(chat), "POST"),
        ]
    else:
        routes.append(route("/v1/embeddings", _asked(_embed), "POST"))
    handlers = {ApiError: _refused, HTTPException: _not_found}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.add_middleware(_Counting, service=service, report=report)
    return app


def _writes(kind: ModuleType) -> Callable[[Service, Request], Awaitable[Response]]:
    """A route whose answer is written, at once or in a stream."""

    async def handle(service: Service, request: Request) -> Response:
        body = await _body(request)
        if "name" in request.path_params:
            body = {"model": request.path_params["name"]} | body
        asked = await run_in_threadpool(kind.read_request, service, body)
        if not asked.given["stream"]:
            return await _unless_gone(request, lambda: _whole(kind, service, asked))
        await kind.begin(service, asked)
        return StreamingResponse(_events(kind, service, asked), media_type="text/event-stream")

    return handle


async def _whole(kind: ModuleType, service: Service, asked: Any) -> Response:
    await kind.begin(service, asked)
    try:
        return JSONResponse(await kind.answer(service, asked))
    finally:
        _count_tokens(service, asked)


async def _events(kind: ModuleType, service: Service, asked: Any) -> AsyncIterator[str]:
    try:
        async with aclosing(kind.stream(service, asked)) as chunks:
            async for chunk in chunks:
                yield _event(chunk)
        yield "data: [DONE]\n\n"
    except ApiError as error:  # the status is sent already
        yield _event(error.body)
    except Exception:
        _log.exception("a stream failed")
        yield _event(failed().body)
    finally:
        _count_tokens(service, asked)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _count_tokens(service: Service, asked: Any) -> None:
    used = asked.usage()
    service.metrics.prompt_tokens.inc(used["prompt_tokens"])
    service.metrics.completion_tokens.inc(used["completion_tokens"])
    if asked.writing.seconds_to_first is not None:
        service.metrics.first_token.observe(asked.writing.seconds_to_first)


async def _unless_gone(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
    """The answer; what makes it ends when the client goes."""
    response = Response(status_code=_GONE)
    raised: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def finish() -> None:
            nonlocal response
            try:
                response = await answer()
            except Exception as error:  # kept out of the group, which would wrap it
                raised.append(error)
            tasks.cancel_scope.cancel()

        tasks.start_soon(finish)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()
    if raised:
        raise raised[0]
    return response


def _asked(answer: Callable[[Service, dict[str, Any]], dict[str, Any]]) -> Callable[[Service, Request], Awaitable[Response]]:
    """A route whose answer is made in a thread."""

    async def handle(service: Service, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(answer, service, await _body(request)))

    return handle


def _embed(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    given = read_fields(body, embeddings.FIELDS, embeddings.REFUSED)
    name = service.check_name(given["model"])
    rows = service.read_rows(given["input"], "input", embeddings.MAX_TEXTS)
    for row in rows:
        service.check_room(len(row), 0, "input", "input")
    used = sum(map(len, rows))
    service.metrics.prompt_tokens.inc(used)
    return embeddings.response(service.encoder(rows), name, given["encoding_format"], used)


async def _health(service: Service, request: Request) -> Response:
    well = service.scheduler is None or service.scheduler.is_alive
    return JSONResponse({"status": "ok" if well else "failed"}, 200 if well else 503)


async def _metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _models(service: Service, request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_described(service, name) for name in service.names]})


async def _model(service: Service, request: Request) -> Response:
    return JSONResponse(_described(service, service.check_name(request.path_params["name"])))


def _described(service: Service, name: str) -> dict[str, Any]:
    about = {"id": name, "object": "model", "created": service.created, "owned_by": "flaxllm"}
    return about | {"max_model_len": service.max_len}


async def _tokenizer_info(service: Service, request: Request) -> Response:
    return JSONResponse(tokenization.info(service))


async def _body(request: Request) -> dict[str, Any]:
    """The parameters that a request gives.

    Raises:
      ApiError: the body is too large, or no JSON object.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise ApiError(f"the body has more than the {MAX_BODY} bytes that this server takes: send less at once", None, 413)
    return parse(bytes(body))


def _check_key(request: Request, api_key: str) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), api_key.encode()):
        message = "the API key is wrong or missing: send it as 'Authorization: Bearer KEY'"
        raise ApiError(message, None, 401, code="invalid_api_key")


async def _refused(request: Request, error: ApiError) -> Response:
    return error.response()


async def _not_found(request: Request, error: HTTPException) -> Response:
    said = {404: f"there is no {request.url.path} here", 405: f"{request.url.path} takes no {request.method}"}
    return ApiError(said.get(error.status_code, error.detail), None, error.status_code, headers=error.headers).response()


class _Counting:
    """Notes down each request when its answer is sent: its path as routed, status and seconds."""

    def __init__(self, app: Any, service: Service, report: Callable[[str], None]):
        self._app, self._metrics, self._report = app, service.metrics, report

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), _GONE

        async def noted(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            _log.exception("a request failed")
            if status == _GONE:
                await failed().response()(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - begun
            path = scope.get(_ROUTE, "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.latency.labels(path).observe(seconds)
            self._report(f"{scope['method']} {path} {status} {seconds:.3f} s")
