"""Frozen training recipes: data set, network, formats and schedules that were measured together (docs/quantization.md)."""

from dataclasses import dataclass, field, replace

from esbflow.quant.recipe import Recipe
from esbflow.training.loop import Schedule


@dataclass(frozen=True)
class TrainingRecipe:
    """Train in real numbers with `real`, then quantize by `quant` and train on with `low_bit`."""

    network: str
    data: str
    real: Schedule
    low_bit: Schedule
    quant: Recipe = field(default_factory=Recipe)

    def with_epochs(self, epochs: int | None) -> "TrainingRecipe":
        """The same with another number of epochs in each stage."""
        if epochs is None:
            return self
        return replace(self, real=replace(self.real, epochs=epochs), low_bit=replace(self.low_bit, epochs=epochs))


RECIPES = {
    "lenet5-mnist": TrainingRecipe(
        network="lenet5", data="mnist", real=Schedule(epochs=2, batch=64, rate=0.03, shift=1),
        low_bit=Schedule(epochs=1, batch=64, rate=0.01, shift=1),
        quant=Recipe(weights="esb4.1", activations="u4", first_weights="esb4.1", last_weights="esb4.1")),
    "digits": TrainingRecipe(
        network="digits", data="digits", real=Schedule(epochs=30, batch=32, rate=0.05, shift=1),
        low_bit=Schedule(epochs=15, batch=32, rate=0.02, shift=1),
        quant=Recipe(weights="esb4.1", activations="u4", first_weights="esb4.1", last_weights="esb4.1")),
}
