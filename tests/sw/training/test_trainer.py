"""The one training loop: which hook is called when, what quantizers are told, and what a checkpoint brings back."""

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.quant.methods.alq import ALQQuantizer
from esbflow.quant.methods.product import ProductQuantizer
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.alq import ALQSchedule
from esbflow.training.product import ProductSchedule
from esbflow.training.run_state import run_of
from esbflow.training.trainer import Trainer, step_at


class Line(Trainer):
    """Fits y = w x to y = 3 x, with noise from the generators that a unit has, and says which hooks are called."""

    def __init__(self, lengths=(2, 1, 2), seed=0, report=None):
        torch.manual_seed(0)
        super().__init__(nn.Linear(1, 1), list(lengths), seed, report)
        self.optimizer, self.called = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9), []

    def start(self):
        self.called.append("start")

    def begin(self, unit):
        self.called.append(f"begin {unit}")

    def batches(self, unit, random):
        for _ in range(self.lengths[unit]):
            yield torch.from_numpy(random.normal(size=(4, 1))).float()

    def loss(self, batch):
        return (self.model(batch + 0.01 * torch.randn(4, 1)) - 3 * batch).square().mean()

    def step(self, unit, index):
        self.called.append(f"step {unit}.{index}")
        step_at(self.optimizer, 0.1)

    def end(self, unit):
        self.called.append(f"end {unit}")

    def finish(self):
        self.called.append("finish")


def test_hooks_are_called_in_order_and_every_step_is_reported():
    seen = []
    line = Line(report=lambda done, total, loss: seen.append((done, total, type(loss))))
    line.carry_out()
    assert line.called == ["start", "begin 0", "step 0.0", "step 0.1", "end 0", "begin 1", "step 1.0", "end 1",
                           "begin 2", "step 2.0", "step 2.1", "end 2", "finish"]
    assert seen == [(done, 5, float) for done in range(1, 6)]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_killed_training_goes_on_to_the_same_result(number, tmp_path, killed_after):
    whole, images = Line().carry_out(), np.zeros(1, np.uint8)

    def run(line):
        return line.carry_out(tmp_path / "line.ckpt", run_of(line.model, ALQSchedule(), 0, images, None))

    with killed_after(number):
        run(Line())
    seen = []
    again = run(Line(report=lambda done, *_: seen.append(done)))
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)
    assert seen == list(range(sum((2, 1, 2)[:number]) + 1, 6)), "only the units that are left"


def test_what_a_subclass_must_say():
    with pytest.raises(NotImplementedError, match="Trainer does not say what it trains on"):
        Trainer(nn.Linear(1, 1), [1]).carry_out()


@pytest.mark.parametrize("weights, schedule, own", [
    ("alq:2", ALQSchedule(bits=1.5, rounds=1, prunings=2, shadow_epochs=1, batch=16), ALQQuantizer),
    ("pq:4,3", ProductSchedule(images=32, layer_steps=2, epochs=1, batch=16), ProductQuantizer)])
def test_layers_beside_a_method_of_its_own_come_to_their_end_too(weights, schedule, own):
    """Stochastic quantization ends with all filters quantized; without word of the progress half of them stay real."""
    torch.manual_seed(0)
    real = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.ReLU(), nn.Linear(6, 3))
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), random.integers(0, 3, 40)
    model = quantize(nn.Sequential(*real), Recipe(weights, first_weights="sq:twn"))
    schedule.carry_out(model, images, labels, teacher=real)
    quantizers = [module.weight_quantizer for module in model.modules() if hasattr(module, "weight_quantizer")]
    assert quantizers[0].ratio == 1 and isinstance(quantizers[1], own)
