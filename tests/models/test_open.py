import json
from abc import abstractmethod

import pytest
from pydantic import SerializeAsAny, ValidationError
from pydantic_core import PydanticSerializationError

from models.open import Frozen, Function, Open, name_of, resolve


class Shape(Open):
    side: float

    @abstractmethod
    def area(self) -> float: ...


class Square(Shape):
    def area(self) -> float:
        return self.side**2


class Prism(Shape):
    height: float
    base: SerializeAsAny[Shape]

    def area(self) -> float:
        return self.base.area()


class Colour(Open):
    name: str = "red"


class Drawing(Frozen):
    shape: SerializeAsAny[Shape]
    paint: Function


def brush(stroke: int) -> int:
    return stroke + 1


def _decorated() -> object:
    def inner() -> None: ...

    inner.__qualname__ = "brush"
    return inner


def test_objects_of_an_open_class_come_back_from_json_as_what_they_were() -> None:
    drawing = Drawing(shape=Prism(side=1, height=2, base=Square(side=3)), paint=brush)
    found = Drawing.model_validate_json(drawing.model_dump_json())
    assert found == drawing
    assert found.shape.area() == 9
    assert found.paint(1) == 2


def test_json_names_the_class_and_the_function() -> None:
    shown = Drawing(shape=Square(side=1), paint=brush).model_dump(mode="json")
    assert shown["shape"] == {"type": f"{__name__}:Square", "side": 1.0}
    assert shown["paint"] == f"{__name__}:brush"


@pytest.mark.parametrize("target", [f"{__name__}:Colour", f"{__name__}:brush", "builtins:dict"])
def test_a_type_that_is_no_such_class_is_refused(target: str) -> None:
    text = json.dumps({"shape": {"type": target, "side": 1}, "paint": f"{__name__}:brush"})
    with pytest.raises(ValidationError, match="is not a Shape"):
        Drawing.model_validate_json(text)


@pytest.mark.parametrize("target", ["no_such_module:X", f"{__name__}:Nothing", "nonsense", ""])
def test_a_name_of_nothing_is_refused(target: str) -> None:
    with pytest.raises(ValidationError, match="names nothing that can be imported here"):
        Drawing.model_validate({"shape": {"type": target, "side": 1}, "paint": brush})
    with pytest.raises(ValueError, match="names nothing that can be imported here"):
        resolve(target)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="colour"):
        Square(side=1, colour="red")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="colour"):
        Shape.model_validate({"type": f"{__name__}:Square", "side": 1, "colour": "red"})


def test_a_record_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Square(side=1).side = 2  # type: ignore[misc]


def test_a_function_without_a_name_of_its_own_cannot_be_sent() -> None:
    def local(stroke: int) -> int:
        return stroke

    for function in (lambda stroke: stroke, local):
        with pytest.raises(PydanticSerializationError, match="names nothing that can be imported"):
            Drawing(shape=Square(side=1), paint=function).model_dump_json()


def test_a_function_that_took_the_name_of_another_cannot_be_sent() -> None:
    with pytest.raises(PydanticSerializationError, match="at the top level of its module"):
        Drawing(shape=Square(side=1), paint=_decorated()).model_dump_json()


def test_names_lead_back() -> None:
    assert resolve(name_of(brush)) is brush
    assert resolve(name_of(Square)) is Square
