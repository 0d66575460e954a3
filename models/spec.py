"""A line: everything that defines one model product, in one typed, hashable record."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, JsonValue, SerializeAsAny, model_validator

from models.data import Data, Features
from models.forms import Form, parts
from models.objectives import Objective, Regression
from models.open import Frozen, Function, Open

if TYPE_CHECKING:
    import torch
    from torch import nn

# Columns a cleaned partition has besides features and target.
RESERVED = {"row", "identity", "split"}
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Family(Open):
    """An architecture. A family is one file with a `Spec` and a size table."""

    @abstractmethod
    def build(self, features: Features, width: int) -> "nn.Module":
        """A fresh network taking `features.inputs` in order and giving float32 [n, width].

        Torch is imported here and not above: cleaning, serving and the command line read lines
        without it.
        """

    def carried(self) -> int:
        """Values of the state that the served network takes and gives back; 0 is no state."""
        return 0


class Augmentation(Open):
    """A random change of training inputs that leaves the target true."""

    @abstractmethod
    def apply(
        self, tensors: dict[str, "torch.Tensor"], generator: "torch.Generator"
    ) -> dict[str, "torch.Tensor"]:
        """The changed tensors; every random number comes from `generator`."""


class Optimizer(Frozen):
    """How weights follow gradients."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    """SGD with momentum, Adam (Kingma, Ba 2015) or AdamW (Loshchilov, Hutter 2019)."""
    lr: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate."""
    weight_decay: float = Field(0.01, ge=0, le=1)
    """L2 regularisation: added to the gradient, or (`adamw`) taken off the weights directly."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; the Adams ignore it."""
    nesterov: bool = False
    """SGD looks ahead along its momentum (Nesterov 1983)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the Adams' mean of gradients."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the Adams' mean of squared gradients."""
    implementation: Literal["fused", "foreach", "forloop"] = "fused"
    """PyTorch's: one kernel for all parameters, one for each operation, or a loop over them. All
    repeat on a like machine; `fused` rounds otherwise, and alike on every CPU."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Optimizer":
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("nesterov needs sgd and a momentum above 0")
        return self


class Schedule(Frozen):
    """The learning rate as a share of its peak, over the run."""

    name: Literal["constant", "cosine", "onecycle", "step"] = "onecycle"
    """What follows the warm-up. `cosine`: half a cosine to zero (Loshchilov, Hutter 2017, without
    restarts). `onecycle`: the same rates, and with `cycle_momentum` Smith's policy (2018)."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of all steps spent rising linearly to the peak; `constant` and `step` too."""
    drop: float = Field(0.1, gt=0, lt=1)
    """Factor of `step` at each third of the run."""
    cycle_momentum: bool = False
    """`onecycle` only: momentum, or the Adams' beta1, falls from 0.95 to 0.85 while the rate rises
    and returns with it (Smith 2018), whatever the optimizer's own is."""

    @model_validator(mode="after")
    def _only_a_cycle_cycles(self) -> "Schedule":
        if self.cycle_momentum and self.name != "onecycle":
            raise ValueError(f"cycle_momentum belongs to onecycle, the schedule is {self.name}")
        return self


class Training(Frozen):
    """How the weights are found. All of it is part of a version's recipe."""

    epochs: int = Field(10, ge=1, le=10_000)
    """How often every training row is seen."""
    batch_size: int = Field(128, ge=1, le=65_536)
    """Rows of one step."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augmentation: SerializeAsAny[Augmentation] | None = None
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target probability spread over all classes (classification)."""
    clip: float = Field(0.0, ge=0)
    """Largest gradient norm; 0 leaves gradients as they are."""
    l1: float = Field(0.0, ge=0, le=1)
    """L1 regularisation: this times the sum of absolute weights, biases left out, in the loss."""
    loss: Literal["objective", "huber", "l1"] = "objective"
    """The objective's own loss (squared error, cross-entropy), or for a regression one that
    outliers move less, of the standardised target: Huber (1964) or absolute error."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: every class counts alike, however many training rows it has."""
    initialisation: Literal["default", "xavier", "he"] = "default"
    """First weights: PyTorch's, Glorot and Bengio's (2010, uniform) or He's (2015, normal). Of
    recurrent layers what takes the input follows it, what takes the state is orthogonal (Saxe,
    McClelland, Ganguli 2014), gate by gate; embeddings, which add no inputs up, keep PyTorch's."""
    patience: int = Field(0, ge=0, le=10_000)
    """Stop after so many epochs without a better primary metric on the validation rows and keep the
    best epoch's weights; 0 trains all epochs and keeps the last."""
    accumulate: int = Field(1, ge=1, le=1024)
    """Equal parts a batch is computed in, one after the other: less memory, the same step, but that
    every part counts alike (with `class_weights`, or texts of unlike length, its rows do not)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of products; weights stay float32. `auto`: bfloat16 on CUDA, else float32."""
    window_mb: int = Field(64, ge=1, le=1_000_000)
    """Training rows shuffled together, in units of 1e6 bytes of encoded rows; more than that is
    streamed from the store. Another window gives another order where the rows exceed it."""
    seed: Seed = 0
    """Every random number of the run is a function of the seed, the epoch and the step."""
    threads: int = Field(1, ge=1, le=256)
    """Compute threads. Another number gives other bits."""
    ranks: int = Field(1, ge=1, le=1024)
    """Processes that train together, each on its share of every batch, spread over the Dask
    workers. Another number gives other bits; another number of workers does not."""
    profile: Literal["fast", "portable"] = "fast"
    """Numeric profile: weights repeat on a like machine, or (`portable`) across CPU vendors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is settled before the run starts and recorded."""

    @model_validator(mode="after")
    def _batches_divide(self) -> "Training":
        parts = self.accumulate * self.ranks
        if self.batch_size % parts:
            raise ValueError(f"batch_size {self.batch_size} cannot be cut into {parts} equal parts")
        return self

    @model_validator(mode="after")
    def _portable_is_fused(self) -> "Training":
        if self.profile == "portable" and self.optimizer.implementation != "fused":
            raise ValueError(
                "profile portable takes optimizer.implementation fused, since"
                f" {self.optimizer.implementation} rounds as the processor likes"
            )
        return self


class Gate(Frozen):
    """What a version must show before it may serve."""

    floors: dict[str, float] = {}
    """Worst allowed value of a metric, on the test rows, after compression. For classes also of
    `calibration_error` and `brier`."""
    margin: float = Field(0.01, ge=0, lt=1)
    """How much worse than the champion, as a fraction, is still no regression."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence of the intervals and of the paired test against the champion."""
    noninferior: bool = False
    """Demand proof that the version is less than the margin worse than the champion, where
    otherwise it takes proof that it is more. Needs test rows enough for a margin of three standard
    errors of the difference, or equal versions are held too."""
    slices: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    """Margin of a slice of the test rows (`origin=JFK`), or of every slice of a column or of the
    target (`origin`): none may be found worse than the champion by more."""
    incomparable: Literal["hold", "promote"] = "hold"
    """What to decide when the champion cannot be scored on these rows: other features, classes."""


class Retraining(Frozen):
    """How a pruned network or a student learns: from the targets, and from what the trained network
    answers (Hinton, Vinyals, Dean 2015). All else is as in the line's training."""

    epochs: int = Field(0, ge=0, le=10_000)
    """0: as many as the training has."""
    lr: float = Field(1.0, gt=0, le=100)
    """Peak learning rate, as a multiple of the training's."""
    soft: float = Field(0.5, ge=0, le=1)
    """Share of the loss that is the distance to the trained network's answer."""
    temperature: float = Field(4.0, ge=1, le=100)
    """Both networks' scores of classes are divided by it first, which shows what the trained one
    takes for similar."""


class Budget(Frozen):
    """What compression may cost, and what it must reach."""

    quality_loss: float = Field(0.01, ge=0, lt=1)
    """Largest loss of the primary metric, as a fraction of its uncompressed value."""
    size_mb: float | None = Field(None, gt=0)
    """Largest size of the served model, in units of 1e6 bytes."""
    slowdown: float = Field(1.5, ge=1)
    """Largest CPU time of a request as a multiple of the uncompressed model's (batch 1 and 32).
    The gate refuses a slower model; the choice itself never follows a stopwatch."""
    candidates: tuple[Form, ...] = ("int8-dynamic", "int8-static", "int8-weights")
    """Forms of compression to build and measure, beside the uncompressed one: a quantizer
    (`int8-dynamic`, `int8-static`, `int8-weights`, `int4-weights`, `fp16`), a smaller network that
    is trained for it (`pruned-50`: half of the channels; `student-small`: a size of the family), or
    both, as `student-small+int8-static`. A line has to ask for `int4-weights`, the smallest, which
    saves less time than `int8-static`, and for `fp16`, which halves the size and saves no time on a
    CPU. There is no bf16: ONNX Runtime has no bfloat16 products on the CPU."""
    exclude: tuple[Form | Literal["fp32"], ...] = ()
    """Forms of compression not to choose, the uncompressed one too; a version for which none is
    left is refused."""
    retraining: Retraining = Retraining()
    exhaustive: bool = False
    """Train to the end and measure also the smaller networks that are too large to be chosen, or
    that have lost half of the primary metric halfway through their training."""

    @property
    def trains(self) -> bool:
        """Whether a candidate is a network that has to be trained."""
        return any(parts(form).network for form in self.candidates)


class Example(Frozen):
    """Real data a newcomer can land: `load(slice)` gives (object name, bytes) pairs."""

    slices: tuple[str, ...]
    """Every slice there is."""
    default: tuple[str, ...]
    """The slices landed when none is named."""
    load: Function
    source: str
    """Where the data comes from and its licence."""


class Line(Frozen):
    """A named model product: data, objective, architecture, training, gate and budget."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{1,40}$")
    title: str
    data: SerializeAsAny[Data]
    objective: SerializeAsAny[Objective]
    model: SerializeAsAny[Family]
    training: Training = Training()
    gate: Gate = Gate()
    budget: Budget = Budget()
    example: Example | None = None

    @model_validator(mode="after")
    def _names_are_free(self) -> "Line":
        taken = RESERVED & {*self.data.kept, self.objective.target}
        if taken:
            raise ValueError(f"column {', '.join(sorted(taken))} is ours: give it another name")
        return self

    @model_validator(mode="after")
    def _parts_go_together(self) -> "Line":
        return self._sound()

    def _sound(self) -> "Line":
        """This line; raises ValueError where its objective has no classes to smooth labels over,
        its family lacks a size that a candidate names, or carries a state and a candidate would
        have to be retrained."""
        if self.training.label_smoothing and isinstance(self.objective, Regression):
            raise ValueError("training.label_smoothing: a number has no classes, set it to 0")
        for form in self.budget.candidates:
            size = parts(form).size
            if parts(form).network is not None and self.model.carried():
                raise ValueError(
                    f"{form}: a network that carries a state from call to call is quantized, not"
                    " retrained; take it out of budget.candidates"
                )
            if size is not None:
                student(self.model, size)
        return self

    def changed(
        self,
        model: dict[str, JsonValue] | None = None,
        training: Training | None = None,
        gate: Gate | None = None,
        budget: Budget | None = None,
    ) -> "Line":
        """This line with other settings; a field that was not given stays as the line has it.

        Raises ValidationError for a field the family lacks.
        """
        family = type(self.model).model_validate({**dict(self.model), **(model or {})})
        sections = {"training": training, "gate": gate, "budget": budget}
        return self.model_copy(
            update={
                "model": family,
                **{name: _over(getattr(self, name), given) for name, given in sections.items()},
            }
        )._sound()

    def on(self, device: Literal["cpu", "cuda"]) -> "Line":
        """This line with the device settled, where its training left it open."""
        if self.training.device != "auto":
            return self
        training = self.training.model_copy(update={"device": device})
        return self.model_copy(update={"training": training})


def student(model: Family, size: str) -> Family:
    """The family at another size of its table; raises ValueError when there is none."""
    field = type(model).model_fields.get("size")
    if field is None:
        raise ValueError(f"student-{size}: {type(model).__module__} has no table of sizes")
    known = get_args(field.annotation)
    if size not in known:
        raise ValueError(
            f"student-{size}: {type(model).__module__} has no such size; there are"
            f" {', '.join(map(str, known))}"
        )
    return model.model_copy(update={"size": size})


def _over(section: Frozen, given: Frozen | None) -> Frozen:
    """The section with the fields that were set in `given`, those inside its fields included."""
    if given is None:
        return section
    changed = {name: getattr(given, name) for name in given.model_fields_set}
    for name, value in changed.items():
        before = getattr(section, name)
        if isinstance(value, Frozen) and type(value) is type(before):
            changed[name] = _over(before, value)
    # Fields that are sound alone may not go together.
    return type(section).model_validate({**dict(section), **changed})
