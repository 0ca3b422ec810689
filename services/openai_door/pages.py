"""The other routes: models, health, metrics, and what there is none of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.common.log import Logger
from services.openai_door.convert import model_json
from services.openai_door.errors import HttpError, Problem, problem_of
from services.openai_door.gate import Gate
from services.openai_door.generation import Generation
from services.openai_door.head import Head
from services.openai_door.metrics import DoorMetrics
from services.openai_door.models import ModelNames

Page = Callable[[Request], Awaitable[Response]]
_OTHER = "other"
"""Route, for metrics, of every path that there is none of."""


class Application:
    """Everything that is served; what answers prompts is found without going through Starlette.

    Args:
        prompts: What answers prompts, by path.
        rest: Everything, these too where the method is wrong.
    """

    def __init__(self, prompts: Mapping[str, Generation], rest: Starlette) -> None:
        self._prompts = prompts
        self._rest = rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        found = self._prompts.get(scope["path"]) if scope["method"] == "POST" else None
        await (found or self._rest)(scope, receive, send)


class Pages:
    """Answers everything but prompts.

    Args:
        models: What a request may name as its model.
        created: When this process started, seconds since 1970.
        gate: Who may ask.
        metrics: What is counted.
        registry: What `/metrics` shows; None shows nothing there.
        is_serving: Tells whether requests would be answered.
        log: Where bugs are told.
    """

    def __init__(
        self,
        *,
        models: ModelNames,
        created: int,
        gate: Gate,
        metrics: DoorMetrics,
        registry: CollectorRegistry | None,
        is_serving: Callable[[], bool],
        log: Logger,
    ) -> None:
        self._log = log
        self._models = models
        self._created = created
        self._gate = gate
        self._metrics = metrics
        self._registry = registry
        self._is_serving = is_serving

    def application(self, prompts: Mapping[str, Generation]) -> Application:
        """Returns the whole application; `prompts` answer prompts, by their paths."""
        routes = [
            *(Route(path, each, methods=["POST"]) for path, each in prompts.items()),
            self._route("/v1/models", self._list_models),
            self._route("/v1/models/{name:path}", self._show_model),
            self._route("/health", self._health),
            self._route("/health/live", self._live),
        ]
        if self._registry is not None:
            routes.append(self._route("/metrics", self._show_metrics))
        handlers: Any = {HTTPException: self._not_here}
        return Application(prompts, Starlette(routes=routes, exception_handlers=handlers))

    def _route(self, path: str, page: Page) -> Route:
        async def counted(request: Request) -> Response:
            try:
                response = await page(request)
                code = ""
            except Exception as error:
                problem = problem_of(error)
                if problem.is_bug:
                    self._log.exception("request_failed", error, route=path)
                response, code = _response(problem), problem.code
            self._metrics.count(path, response.status_code, code)
            return response

        return Route(path, counted, methods=["GET"])

    async def _list_models(self, request: Request) -> Response:
        self._check(request)
        data = [model_json(name, self._created) for name in self._models.names]
        return JSONResponse({"object": "list", "data": data})

    async def _show_model(self, request: Request) -> Response:
        self._check(request)
        name = request.path_params["name"]
        self._models.find(name)
        return JSONResponse(model_json(name, self._created))

    async def _health(self, _: Request) -> Response:
        """Says whether requests would be answered: one router at least serves."""
        serving = self._is_serving()
        text = {"status": "serving" if serving else "not_serving"}
        return JSONResponse(text, status_code=200 if serving else 503)

    async def _live(self, _: Request) -> Response:
        """Says that the process answers."""
        return JSONResponse({"status": "live"})

    async def _show_metrics(self, request: Request) -> Response:
        self._gate.check_host(Head.of(request.scope["headers"]).host)
        assert self._registry is not None
        text = await asyncio.to_thread(generate_latest, self._registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    def _check(self, request: Request) -> None:
        head = Head.of(request.scope["headers"])
        self._gate.check(head.authorization, head.host)

    async def _not_here(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = "METHOD_NOT_ALLOWED" if error.status_code == 405 else "NOT_FOUND"
        method, path = request.method[:16], request.url.path[:128]
        text = f"there is no {method} {path} here; see docs/doors.md"
        headers = tuple(
            (name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()
        )
        problem = problem_of(HttpError(error.status_code, code, text, headers))
        self._metrics.count(_OTHER, problem.status, problem.code)
        return _response(problem)


def _response(problem: Problem) -> Response:
    headers = {name.decode(): value.decode() for name, value in problem.all_headers()}
    return Response(problem.body(), problem.status, headers=headers, media_type="application/json")
