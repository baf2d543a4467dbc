"""Configs to nested plain data and back, with the types checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mvl_dist.config.schema import RunConfig
from mvl_dist.errors import UserError
from mvl_dist.place import RemotePlace, store_place


def to_plain(config: Any) -> dict[str, Any]:
    """Nested plain data of a config: what is logged and saved beside a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, (Path, RemotePlace)) else value

    return plain(dataclasses.asdict(config))


def from_plain(plain: dict[str, Any], base: RunConfig, source: str) -> RunConfig:
    """Lay nested plain data over a config.

    Raises:
        UserError: a key that no config has, or a value of another type.
    """

    def overlay(config: Any, values: Any, where: str) -> Any:
        if not isinstance(values, dict):
            raise UserError(f"{source}: '{where}' must be a mapping, not {values!r}")
        kinds = get_type_hints(type(config))
        changes = {}
        for key, value in values.items():
            path = f"{where}.{key}" if where else str(key)
            if key not in kinds:
                raise UserError(f"{source}: unknown key '{path}'; known: {', '.join(kinds)}")
            if dataclasses.is_dataclass(kinds[key]):
                changes[key] = overlay(getattr(config, key), value, path)
            elif _fits(value, kinds[key]):
                changes[key] = _as(value, kinds[key])
            else:
                raise UserError(f"{source}: '{path}' takes {_words(kinds[key])}, not {value!r}")
        return dataclasses.replace(config, **changes)

    return overlay(base, plain, "")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from YAML or JSON is of a field's type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis and value else inner
        if not isinstance(value, (list, tuple)):
            return False
        return not value or (len(value) == len(kinds) and all(map(_fits, value, kinds)))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (str if kind in (Path, RemotePlace) else kind)


def _as(value: Any, kind: Any) -> Any:
    if RemotePlace in get_args(kind):
        return store_place(value)
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if _fits(value, one))
    if isinstance(value, list):
        return tuple(value)
    return kind(value) if kind in (float, Path) else value


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"'{choice}'" for choice in inner)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner)
    if origin is tuple:
        many = "a list" if inner[-1] is Ellipsis else f"a list of {len(inner)}"
        return f"{many} {inner[0].__name__}"
    return f"a {kind.__name__}"
