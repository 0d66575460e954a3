"""What every peer of `benchmarks.cleaning` is to do, taken from the line itself."""

from typing import Any, cast

from models.lines.flights import line
from models.objectives import Regression
from models.splits import ByTime
from models.tables import Tables

DATA = cast(Tables, line.data)
OBJECTIVE = cast(Regression, line.objective)
HELD_OUT_SHARE = cast(ByTime, DATA.split).validation
BOUNDS = {number.name: (number.low, number.high) for number in DATA.numbers}
TARGET = {OBJECTIVE.target: (OBJECTIVE.low, OBJECTIVE.high)}
NUMBERS = [*BOUNDS, OBJECTIVE.target]
SCHEDULE = ("sched_dep_time", "sched_arr_time")
KEPT = [*DATA.kept, OBJECTIVE.target]
Statistics = dict[str, dict[str, Any]]
