"""Frozen, typed records that turn into JSON and back, functions and open class families included.

A line names functions (its `clean`) and classes of open families (`mlp.Spec`). In JSON a function
is `module:name` and such an object carries its class as `type`, so a line reaches a Dask worker or
a child process as text and is never pickled.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)


def name_of(target: Any) -> str:
    """`module:qualified name` of a module-level function or class."""
    return f"{target.__module__}:{target.__qualname__}"


def resolve(name: str) -> Any:
    """The module-level object called `module:name`; raises ValueError when there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} names nothing that can be imported here: {error}") from error


def _function(value: Any) -> Any:
    return resolve(value) if isinstance(value, str) else value


def _module_level(value: Any) -> str:
    name = name_of(value)
    if resolve(name) is not value:
        raise ValueError(f"{name} must be a function at the top level of its module")
    return name


Function = Annotated[
    Callable[..., Any], BeforeValidator(_function), PlainSerializer(_module_level, return_type=str)
]


class Frozen(BaseModel):
    """An immutable record; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Open(Frozen):
    """A frozen base whose subclasses anyone may add: JSON carries the class as `type`.

    Only subclasses of the declared class are accepted, so text can name no other class.
    """

    @model_serializer(mode="wrap")
    def _with_type(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"type": name_of(type(self)), **handler(self)}

    @model_validator(mode="wrap")
    @classmethod
    def _of_type(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, dict) and "type" in value:
            fields = dict(value)
            found = resolve(fields.pop("type"))
            if not (isinstance(found, type) and issubclass(found, cls)):
                raise ValueError(f"{value['type']} is not a {cls.__name__}")
            return found.model_validate(fields)
        if isinstance(value, dict) and inspect.isabstract(cls):
            raise ValueError(f"it has no `type`, which says what {cls.__name__} it is")
        return handler(value)


def first(error: Exception, within: str = "") -> str:
    """The first fault in one line, with the path of its field."""
    if not isinstance(error, ValidationError):
        return str(error)
    one = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, (*filter(None, [within]), *one['loc'])))}: {one['msg']}"
