"""Names of models in the API: the name of what is served means its newest model, NAME/STAGE that of a run's stage."""

from __future__ import annotations

from liuli.server.desk import Desk
from liuli.server.errors import ApiError
from liuli.server.replies import ModelOut
from liuli.server.runs import ModelFile


def served(desk: Desk) -> dict[str, ModelFile]:
    """The models there are by their ids, the default one first."""
    return desk.keeper.ids()


def stage_of(desk: Desk, name: str) -> str:
    """What the desk knows a model's id by, "" for the newest model (as no name does); 404 for any other name."""
    if name in ("", desk.keeper.name):
        return ""
    models = served(desk)
    if name not in models:
        ids = ", ".join(repr(id) for id in models or [desk.keeper.name])
        message = f"The model {name[:200]!r} does not exist; this server serves {ids}."
        raise ApiError(404, message, param="model", code="model_not_found")
    return name


def model_out(id: str, model: ModelFile | None) -> ModelOut:
    """A model in OpenAI's shape; None: its first one is still to come."""
    return {"id": id, "object": "model", "created": int(model.made) if model else 0, "owned_by": "liuli"}
