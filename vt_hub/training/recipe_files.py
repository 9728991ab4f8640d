"""Read recipes from YAML files into dataclasses, and check them."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from inspect import formatannotation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ['RECIPES', 'check_stages', 'check_values', 'list_recipe_files', 'read_mapping', 'read_recipe']

RECIPES = Path(__file__).parent / 'recipes'
Recipe = TypeVar('Recipe', bound='DataclassInstance')


def list_recipe_files(task: str = '') -> list[str]:
    """Names of the recipes for a task that come with the package."""
    return sorted(path.stem for path in (RECIPES / task).glob('*.yaml'))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        ValueError: The file is not YAML or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not a recipe: it is not YAML.') from error
    if not isinstance(values, dict):
        raise ValueError(f'{path} is not a recipe: it is not a mapping of arguments.')
    return values


def read_recipe(kind: type[Recipe], task: str, name: str, changes: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe of the package by name, or from a YAML file, and apply changes to its values.

    Raises:
        LookupError: There is no such recipe.
        ValueError: A key or value is not allowed in a recipe.
    """
    path = Path(name) if name.endswith(('.yaml', '.yml')) else RECIPES / task / f'{name}.yaml'
    if not path.is_file():
        known = ', '.join(list_recipe_files(task))
        raise LookupError(f'There is no {task} recipe {name!r}; use {known} or a YAML file.')
    values = {**read_mapping(path), **(changes or {})}
    try:
        return as_dataclass(values, kind, task)
    except TypeError as error:
        raise ValueError(f'{name} is not a complete recipe: {error}.') from error
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error


def check_values(name: str, recipe: Any, counts: Sequence[str], *rules: tuple[str, bool, str]) -> None:
    """Raise ValueError if a setting of a recipe is wrong.

    Args:
        name: Name of the recipe.
        recipe: The recipe.
        counts: Settings that must be 1 or more.
        rules: Further rules: a setting, whether it is right, and what is allowed.
    """
    for key, right, allowed in [*((key, getattr(recipe, key) >= 1, '1 or more') for key in counts), *rules]:
        if not right:
            raise ValueError(f'{name}: {key} is {getattr(recipe, key)!r}; it must be {allowed}.')


def check_stages(name: str, recipe: Any) -> None:
    """Raise ValueError if the warm-up or the stages of a recipe do not fit its steps."""
    warmup = ('warmup_steps', 0 <= recipe.warmup_steps < recipe.steps, f'from 0 to {recipe.steps - 1}')
    check_values(name, recipe, [], warmup)
    ends = [stage.until for stage in recipe.stages]
    if not ends or ends != sorted(ends) or ends[0] <= 0 or ends[-1] != 1:
        raise ValueError(f'{name}: the stages end at {ends}; the ends must increase, and the last must be 1.')


def as_dataclass(values: dict[str, Any], kind: type[Recipe], task: str) -> Recipe:
    """A recipe, or a part of one, from the values of a YAML file.

    Raises:
        TypeError: Values are missing.
        ValueError: A key or value is not allowed.
    """
    known = {field.name: field.type for field in fields(kind)}
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    values = dict(values)
    for key, value in values.items():
        if key not in known:
            raise ValueError(f'{key!r} is not a setting of a {task} recipe; use {", ".join(sorted(known))}.')
        try:
            values[key] = as_type(value, known[key], task)
        except TypeError as error:
            raise ValueError(f'{key} must be {formatannotation(known[key])}, not {value!r}.') from error
    if missing := [key for key in needed if key not in values]:
        raise TypeError(f'it lacks {", ".join(missing)}')
    return kind(**values)


def as_type(value: Any, kind: Any, task: str) -> Any:
    """Convert a value from a YAML file to a setting's type; YAML reads 1e-3 as text.

    Raises:
        TypeError: The value has another type.
    """
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return as_dataclass(value, kind, task)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if ... in kinds else kinds
        if len(value) != len(kinds):
            raise TypeError
        return tuple(as_type(item, of_item, task) for item, of_item in zip(value, kinds, strict=True))
    if kind is float:
        try:
            return float(value)
        except ValueError as error:
            raise TypeError from error
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise TypeError
    elif not isinstance(value, dict if get_origin(kind) is dict else kind):
        raise TypeError
    return value
