"""A recipe: what to build, as TOML. Every word of it is known and in range before anything is made."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from liuli.errors import UsageError
from liuli.stages.ppo import PPOOptions
from liuli.stages.pretrain import check_preset
from liuli.stages.reward import RewardOptions
from liuli.stages.training import TrainOptions, check_option
from liuli.text.tokenizer import SMALLEST

O = TypeVar("O")
BUDGETS = {"minutes", "steps", "tokens", "flops"}
SECTIONS = {"pretrain": TrainOptions, "sft": TrainOptions, "reward": RewardOptions, "ppo": PPOOptions}


@dataclass(frozen=True)
class Recipe:
    """What to build; every field has a default that is right on a laptop."""

    name: str = "laptop"
    minutes: float = 15.0  # the whole build
    seed: int = 0
    preset: str = "qwen3"  # qwen3 or racer
    context: int = 256  # tokens
    vocab: int = 0  # vocabulary size; 0: from the model's size
    layers: int = 0  # 0: from the budget
    width: int = 0  # 0: from the budget
    curriculum_mb: float = 0.0  # text that the classroom writes; 0: from the budget
    text: tuple[str, ...] = ()  # folders, files or Hub datasets of real text
    text_share: float = 0.5  # part of the pretraining bytes that is real text, where there is any
    chats: tuple[str, ...] = ()  # folders, files or Hub datasets of the user's own conversations
    chats_share: float = 0.1  # part of the fine-tuning tokens that is those, where there are any
    skip_bad: bool = False  # bad rows of either are counted and left out
    pretrain_share: float = 0.5  # part of the training time that is pretraining; the rest is fine-tuning
    align_share: float = 0.27  # part of the training time for preferences: the reward model and PPO; 0: none
    evaluate_minutes: float = 0.0  # 0: a twelfth of the budget
    pretrain: dict[str, Any] = field(default_factory=dict)  # options of the stage (TrainOptions)
    sft: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)  # RewardOptions
    ppo: dict[str, Any] = field(default_factory=dict)  # PPOOptions


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """A recipe from TOML with `key=value` changes; an unknown key is an error that names the nearest known one."""
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError("there is no such recipe", path, "try recipes/laptop.toml") from None
    except IsADirectoryError:
        raise UsageError("a folder is no recipe", path, f"a run goes on with its own: {path / 'recipe.toml'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"this recipe is not valid TOML: {error}", path) from None
    for change in changes:
        key, value = parse_change(change, "options of the recipe")
        section, _, inner = key.partition(".")
        target = values.setdefault(section, {}) if inner else values
        if not isinstance(target, dict):
            raise UsageError(f"{section} has no parts, and so no {inner}", change, f"write {section}=…")
        target[inner or section] = value
    check_keys(values, [f.name for f in fields(Recipe)], path)
    for section, options in SECTIONS.items():
        check_section(given := values.get(section, {}), f"{path}, [{section}]", options)
        if budgets := BUDGETS & given.keys():
            fix = "leave it out: the build deals out its minutes"
            raise UsageError(f"a stage of a build has no {min(budgets)} of its own", f"{path}, [{section}]", fix)
    recipe = Recipe(**values | {name: paths_of(values.get(name, []), name, path) for name in ("text", "chats")})
    check_values(recipe, path)
    return recipe


def paths_of(value: Any, name: str, where: Path) -> tuple[str, ...]:
    """One path or a list of them."""
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UsageError(f"{name} = {value!r} is not a list of paths", where)
    return tuple(paths)


def parse_change(change: str, where: str) -> tuple[str, Any]:
    """`key=value`: the key, and the value as JSON if it is JSON, as it stands if not."""
    key, separator, value = change.partition("=")
    if not separator:
        raise UsageError(f"{change!r} is not of the form key=value", where)
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def check_keys(values: dict[str, Any], known: Sequence[str], where: str | Path) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.6)
            fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"unknown option {key!r}", where, fix)


def check_section(values: Any, where: str, options: type[Any]) -> None:
    """Options of a stage: known names, right types and ranges."""
    if not isinstance(values, dict):
        raise UsageError(f"{values!r} is not a section", where, "write key = value lines under its heading")
    check_keys(values, [part.name for part in fields(options)], where)
    for name, value in values.items():
        check_option(options, name, value, where)


def option_values(options: type[Any], budget: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The budget and key=value changes as fields of a stage's options; an unknown key names the nearest."""
    values: dict[str, Any] = {key: value for key, value in budget.items() if value is not None}
    values.update(parse_change(change, "--option") for change in changes)
    check_section(values, "--option", options)
    return values


def options_of(kind: type[O], budget: dict[str, Any], changes: Sequence[str]) -> O:
    """`option_values` as the options of a stage."""
    return kind(**option_values(kind, budget, changes))


def check_values(recipe: Recipe, where: str | Path) -> None:
    """Types and ranges, by the defaults' types."""
    for part in fields(Recipe):
        value, default = getattr(recipe, part.name), getattr(Recipe(), part.name)
        if isinstance(default, str | int | float):
            check_option(Recipe, part.name, value, where)
        elif not isinstance(value, type(default)):
            raise UsageError(f"{part.name} = {value!r} is not {type(default).__name__}", where)
    if not 0 <= recipe.align_share < 1:
        raise UsageError(f"align_share = {recipe.align_share} is not between 0 and 1", where)
    for name in ("pretrain_share", "text_share", "chats_share"):
        if not 0 < (share := getattr(recipe, name)) < 1:
            raise UsageError(f"{name} = {share} is not between 0 and 1", where)
    check_preset(recipe.preset, where)
    for name, least in (("vocab", SMALLEST), ("curriculum_mb", 0.1)):
        if 0 < (size := getattr(recipe, name)) < least:
            raise UsageError(f"{name} = {size} is too little", where, f"give {least} or more, or 0: from the budget")
    if not recipe.name:
        raise UsageError("a recipe needs a name", where, "the run folder is runs/NAME")


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as TOML, every field in it."""
    values = asdict(recipe)
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{inner} = {toml_value(v)}" for inner, v in value.items() if v is not None)]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """JSON's scalars and lists are TOML's."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
