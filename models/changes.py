"""Settings changed from the command line: `training.epochs=3` on top of what a line says."""

import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from models.spec import Line

SECTIONS = ("model", "training", "gate", "budget")


class UnknownSettingError(ValueError):
    """A setting no line has, or a value it cannot take; the message says what would do."""


def changed(line: Line, changes: Iterable[str]) -> dict[str, Any]:
    """The sections of `line` that the changes `section.field=value` touch, with them made.

    A value is JSON, or else text. Raises UnknownSettingError.
    """
    sections: dict[str, Any] = {}
    for change in changes:
        path, equals, value = change.partition("=")
        section, *fields = path.split(".")
        if not equals or section not in SECTIONS or not fields:
            raise UnknownSettingError(
                f"--set {change}: expected section.field=value with a section of"
                f" {', '.join(SECTIONS)}"
            )
        if section not in sections:
            sections[section] = getattr(line, section).model_dump(mode="json")
        _assign(sections[section], fields, _value(value), path)
    try:
        return {name: _checked(getattr(line, name), fields) for name, fields in sections.items()}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnknownSettingError(f"--set: {where}: {first['msg']}") from None


def _checked(current: BaseModel, fields: dict[str, Any]) -> Any:
    fields.pop("type", None)
    checked = type(current).model_validate(fields)
    if "type" in current.model_dump():
        # An open family stays text, as the flow takes it: the line knows its class.
        return {name: fields[name] for name in type(current).model_fields if name in fields}
    return checked


def _assign(section: dict[str, Any], fields: list[str], value: Any, path: str) -> None:
    *parents, last = fields
    for name in parents:
        inner = section.get(name)
        section = inner if isinstance(inner, dict) else {}
    if last not in section and parents != ["floors"]:
        known = ", ".join(n for n in section if n != "type") or "nothing"
        raise UnknownSettingError(f"--set: there is no setting {path!r}; there is {known}")
    section[last] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
