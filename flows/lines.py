"""The produce flow of one line, with a form of its own: `flows.lines.digits` in prefect.yaml.

The parameters are typed as the line's architecture and settings are, and default to the line's own
values. A form that only shows them, and sends back all it shows, then changes nothing.
"""

from types import NoneType
from typing import Any, Literal, get_args

from prefect import Flow, flow
from pydantic import create_model
from pydantic.fields import FieldInfo

from flows.produce import Production, produce
from models import catalog
from models.open import Frozen


def __getattr__(name: str) -> "Flow[..., Production]":
    """The flow of the line of that name; AttributeError when there is none."""
    if name.startswith("__"):
        # Python asks for some of its own, `__path__` for one, before it asks for a line.
        raise AttributeError(name)
    try:
        return produce_line(name)
    except LookupError as error:
        raise AttributeError(f"{__name__}.{name}: {error}") from None


def produce_line(name: str) -> "Flow[..., Production]":
    """A `produce` flow for the line alone; raises LookupError for a name that is no line's."""
    chosen = catalog.find(name)

    def run(
        line: str = name,
        model: Any = None,
        training: Any = None,
        gate: Any = None,
        budget: Any = None,
    ) -> Production:
        """Turn what is in the bucket into a gated, compressed, registered and served version.

        Args:
            line: This line; the watcher tells runs apart by it.
            model: The architecture, instead of as the line has it.
            training: How to train, instead of as the line says.
            gate: What to demand, instead of what the line demands.
            budget: What compression may cost, instead of what the line allows.
        """
        return produce.fn(
            line,
            model=_fields(model),
            training=None if training is None else type(chosen.training)(**_fields(training)),
            gate=None if gate is None else type(chosen.gate)(**_fields(gate)),
            budget=None if budget is None else type(chosen.budget)(**_fields(budget)),
        )

    run.__annotations__["line"] = Literal[name]
    for section in ("model", "training", "gate", "budget"):
        run.__annotations__[section] = form(getattr(chosen, section)) | None
    as_flow = flow(name=produce.name, flow_run_name=f"produce {name}", persist_result=False)
    return as_flow(run)


def form(settings: Frozen) -> type[Frozen]:
    """The class of these settings with their values as defaults, settings inside them included."""
    kind = type(settings)
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        value = getattr(settings, name)
        changed: dict[str, Any] = {"annotation": field.annotation}
        if isinstance(value, Frozen):
            inner = form(value)
            value = inner(**_fields(value))
            optional = NoneType in get_args(field.annotation)
            changed["annotation"] = inner | None if optional else inner
            # Not with the class that an open record carries: a form has one class to offer.
            changed["json_schema_extra"] = {"default": _fields(value)}
        merged = FieldInfo.merge_field_infos(field, default=value, **changed)
        fields[name] = changed["annotation"], merged
    # Under its own name, so that what a form gives is written down as the line's class.
    return create_model(kind.__name__, __base__=kind, __module__=kind.__module__, **fields)


def _fields(settings: Frozen | None) -> dict[str, Any]:
    """The fields as JSON, from which the line's own classes are made again."""
    if settings is None:
        return {}
    given = settings.model_dump(mode="json")
    given.pop("type", None)
    return given
