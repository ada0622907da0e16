"""OpenAI's API, so that any of its clients talks to a model made here: one file an endpoint, put together here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from liuli.server.chat_completions import chat_routes
from liuli.server.completions import completion_routes
from liuli.server.desk import Desk
from liuli.server.embeddings import embedding_routes
from liuli.server.openapi import describes, openapi_routes
from liuli.server.replies import ModelList, ModelOut
from liuli.server.responses import response_routes
from liuli.server.runs import ModelFile
from liuli.server.token_api import token_routes


def openai_routes(desk: Desk) -> APIRouter:
    """The routes under /v1, those about tokens beside it, and what describes them."""
    routes = APIRouter()
    for part in (chat_routes, completion_routes, embedding_routes, response_routes, token_routes):
        routes.include_router(part(desk))
    routes.include_router(openapi_routes())

    @routes.get("/v1/models", **describes(None, ModelList))
    def models() -> ModelList:
        return {"object": "list", "data": [model_out(id, model) for id, model in desk.keeper.ids().items()]}

    @routes.get("/v1/models/{name:path}", **describes(None, ModelOut))
    def model(name: str) -> Any:
        desk.stage_of(name)
        return model_out(name, desk.keeper.ids().get(name))

    return routes


def model_out(id: str, model: ModelFile | None) -> ModelOut:
    """A model in OpenAI's shape; None: its first one is still to come."""
    return {"id": id, "object": "model", "created": int(model.made) if model else 0, "owned_by": "liuli"}
