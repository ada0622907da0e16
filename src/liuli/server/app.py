"""Puts the server together: guard, APIs, the built page."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from liuli.assistant import Judgements, Store
from liuli.assistant.voices import ModelVoice, Voice
from liuli.server.app_api import app_routes
from liuli.server.desk import Desk, missing
from liuli.server.errors import ApiError, error_response
from liuli.server.guard import Guard, is_local
from liuli.server.keys import Door, Keys, Logins, login_routes
from liuli.server.label_api import label_routes
from liuli.server.limits import Limits
from liuli.server.metrics import Front, Metrics, measured, metrics_routes
from liuli.server.openai_api import openai_routes
from liuli.server.runs import store_of
from liuli.server.trace_api import trace_routes
from liuli.server.voices import Keeper
from liuli.server.worker import Worker

LOG = logging.getLogger("liuli.server")
PAGE = Path(__file__).parent / "page"
NO_PAGE = (
    "The web page is not built in this installation.\nBuild it with `python hatch_build.py` in the source folder.\n"
    "这次安装没有构建网页。请在源码文件夹里运行 `python hatch_build.py`。\n"
)
# A report brings its own styles and scripts; in a sandbox they cannot reach this server or what the page stored.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)


def create_app(
    path: Path,
    *,
    host: str = "127.0.0.1",
    load: Callable[[Path], Voice] = ModelVoice,
    elsewhere: str = "",
    more: Sequence[Path] = (),
    loaded: int = 2,
    store: str | Path | None = None,
    prompts: Path | None = None,
    seconds: float = 0,
) -> FastAPI:
    """The ASGI application that serves a model folder or a run folder.

    host: the address it will listen on, which decides the Host headers it answers to. load: how a model folder becomes
    a voice. elsewhere: the one model to talk to, which lies in no folder here. more: other model folders; loaded: how
    many models are in memory at most. store: path or URL for keys, chats and
    judgements, by default in the run folder. prompts: what is to be judged. seconds: that an answer may take; 0: any
    time. The app's `state` has the desk, and `logins` for its page.
    Raises UsageError when `path` is neither.
    """
    keeper = Keeper(path, load, elsewhere, more, loaded)
    place = store_of(path, store)
    kept = Store(place) if place else None
    keys, logins, limits, metrics = Keys(kept), Logins(), Limits(), Metrics(keeper.reused)
    worker = Worker(died=keeper.forget)
    watched = partial(measured, metrics=metrics, limits=limits)
    desk = Desk(keeper, worker, before=share_cores(keeper), seconds=seconds, watched=watched)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()
        if kept:
            kept.close()

    app = FastAPI(title="Liuli", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.desk, app.state.logins = desk, logins
    # the last one added is passed first
    app.add_middleware(Door, keys=keys, logins=logins, limits=limits, local=is_local(host))
    app.add_middleware(Guard, bound_to=host)
    app.add_middleware(Front, metrics=metrics)
    app.include_router(openai_routes(desk))
    app.include_router(app_routes(desk, kept))
    app.include_router(label_routes(desk, Judgements(kept) if kept else None, prompts))
    app.include_router(trace_routes(keeper.run))
    app.include_router(login_routes(logins))
    app.include_router(metrics_routes(metrics))
    add_errors(app)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "model": keeper.name if keeper.newest() else None, "answers": len(worker)}

    @app.get("/ready")
    def ready() -> dict[str, Any]:
        if keeper.newest() is None:
            raise missing(keeper, "")
        return {"status": "ready"}

    @app.get("/report.html")
    def report() -> Response:
        file = keeper.run / "report.html" if keeper.run else None
        if file is None or not file.is_file():
            raise ApiError(404, "There is no report yet.")
        return FileResponse(file, headers={"content-security-policy": REPORT_POLICY, "cache-control": "no-cache"})

    add_page(app)
    return app


def share_cores(keeper: Keeper) -> Callable[[], None]:
    """Gives answers one core while a build is running, so that they do not stall it, and all of them otherwise."""
    all_cores = torch.get_num_threads()

    def share() -> None:
        wanted = 1 if keeper.is_training() else all_cores
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    return share


def add_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape (one that nobody expected: see Front)."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = error_response(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))
        response.headers.update(error.headers or {})
        return response


def add_page(app: FastAPI) -> None:
    """The built page: index.html is asked for anew each time, its hashed assets are kept by browsers."""

    @app.get("/")
    def index() -> Response:
        if not (PAGE / "index.html").is_file():
            return PlainTextResponse(NO_PAGE, status_code=503)
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    if (PAGE / "assets").is_dir():
        app.mount("/assets", StaticFiles(directory=PAGE / "assets"))

    @app.get("/icon.svg")
    def icon() -> Response:  # no parameters: what a route's function takes, a query may set
        return FileResponse(PAGE / "icon.svg")
