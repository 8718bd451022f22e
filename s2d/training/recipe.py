"""A recipe: every number of a training run, in one TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from s2d.data.clips import ClipSettings
from s2d.errors import InputError
from s2d.models.config import ModelConfig
from s2d.training.settings import (
    ExecutionSettings,
    LossSettings,
    OptimizerSettings,
    RoundSettings,
    TeacherSettings,
)


@dataclass(frozen=True)
class Recipe:
    """What a TOML file of ``s2d/recipes`` says; each part is a table of that name, the rounds are ``[[rounds]]``.

    Attributes:
        name: stem of the file.
        seed: of the weights and of everything drawn.
        checkpoint_every: steps between two checkpoints.
        validate_every: steps between two validations, where there is data for it.
    """

    name: str
    seed: int = 0
    checkpoint_every: int = 100
    validate_every: int = 1000
    model: ModelConfig = field(default_factory=ModelConfig)
    clips: ClipSettings = field(default_factory=ClipSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    rounds: tuple[RoundSettings, ...] = ()


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("s2d") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(recipe: str | Path | Recipe, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by the name of one that comes with the package, or by the path of a TOML file.

    Args:
        recipe: name or path; a `Recipe` is taken as it is.
        changes: values to put in place of the recipe's, such as ``"loss.num_points=1000"``, ``"model.norm='GN'"`` or
            ``"rounds.0.steps=10"``; the value is TOML, or a bare word.

    Raises:
        InputError: no such recipe, not TOML, or a name or value that a recipe does not have.
    """
    if isinstance(recipe, Recipe):
        return recipe
    text = str(recipe)
    if text in recipe_names():
        source, content = text, (resources.files("s2d") / "recipes" / f"{text}.toml").read_text()
    elif Path(text).is_file():
        source, content = text, Path(text).read_text()
    else:
        raise InputError(f"expected a recipe ({', '.join(recipe_names())}) or a path of a .toml file, got {text}")
    try:
        tables = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"expected TOML in the recipe {source}: {error}") from None
    for change in changes:
        _change(tables, change)
    loaded = _build(Recipe, {"name": Path(text).stem, **tables}, f"recipe {source}")
    _check(loaded, source)
    return loaded


def _change(tables: dict, change: str) -> None:
    """Put one value into the tables of a recipe."""
    key, equals, text = change.partition("=")
    *path, name = key.strip().split(".")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    try:
        for part in path:
            tables = tables[int(part)] if isinstance(tables, list) else tables.setdefault(part, {})
        tables[name] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        equals = ""
    if not (equals and name):
        raise InputError(f"expected a change such as loss.num_points=1000, got {change!r}")


def _build(kind: type, values: dict, where: str) -> object:
    """A dataclass from a table, tables within it becoming dataclasses; refuses unknown names and wrong types."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"expected only {', '.join(sorted(hints))} in {where}, got {', '.join(unknown)}")
    try:
        return kind(**{name: _convert(hints[name], value, f"{name} in {where}") for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{where}: {error}") from None


def _convert(hint: object, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise InputError(f"expected a table for {where}, got {value!r}")
        return _build(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"expected a list for {where}, got {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise InputError(f"expected {len(kinds)} values for {where}, got {value!r}")
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is not hint:
        raise InputError(f"expected {hint.__name__} for {where}, got {value!r}")
    return value


def _check(recipe: Recipe, source: str) -> None:
    allowed = {
        "frames in [loss]": (recipe.loss.frames, ("annotated", "all")),
        "distill_frames in [loss]": (recipe.loss.distill_frames, ("annotated", "all")),
        "behaviour in [loss]": (recipe.loss.behaviour, ("corrected", "official")),
        "precision in [execution]": (recipe.execution.precision, ("fp32", "bf16", "fp16")),
        "schedule in [optimizer]": (recipe.optimizer.schedule, ("cosine", "step")),
        **{
            f"annotations of round {r.name}": (r.annotations, ("keymasks", "predictions") if i else ("keymasks",))
            for i, r in enumerate(recipe.rounds)
        },
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise InputError(f"expected {' or '.join(choices)} for {name} of recipe {source}, got {value!r}")
    if not recipe.rounds or min(r.steps for r in recipe.rounds) < 1:
        raise InputError(f"expected at least one round of at least one step in recipe {source}")
