"""A cached teacher says what the teacher says, and is asked only once."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from esbflow.studies import methods as studies
from esbflow.training import loop
from esbflow.training.api import train_network
from esbflow.training.data import load_images
from esbflow.training.recipes import RECIPES
from esbflow.training.teacher_cache import CachedTeacher


class Counting(nn.Module):
    """A linear teacher that counts its calls."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.calls = nn.Linear(6, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1))


def test_answers_are_the_teachers_and_outlive_the_process(tmp_path):
    teacher, batches = Counting(), [torch.randn(n, 6) for n in (1, 4, 4)]
    cached = CachedTeacher(teacher, tmp_path / "new" / "answers")
    wanted = [teacher(x).detach() for x in batches]
    teacher.calls = 0
    for _ in range(2):
        for x, y in zip(batches, wanted):
            torch.testing.assert_close(cached(x), y, rtol=0, atol=0)
    assert teacher.calls == 3
    again = CachedTeacher(Counting(), tmp_path / "new" / "answers")
    torch.testing.assert_close(again(batches[1]), wanted[1], rtol=0, atol=0)
    assert again.teacher.calls == 0 and not again.teacher.training


def test_other_batches_shapes_and_weights_are_asked_anew(tmp_path):
    cached = CachedTeacher(Counting(), tmp_path / "answers")
    x = torch.randn(2, 6)
    cached(x)
    almost = x.clone()
    almost[1, 5] = torch.nextafter(almost[1, 5], torch.tensor(torch.inf))
    cached(almost)
    cached(x.reshape(2, 3, 2))
    assert cached.teacher.calls == 3
    other = CachedTeacher(Counting(seed=1), tmp_path / "answers")
    assert not torch.equal(other(x), cached(x)) and other.teacher.calls == 1 and cached.teacher.calls == 3


def test_mixed_precision_has_answers_of_its_own(tmp_path):
    cached = CachedTeacher(Counting(), tmp_path / "answers")
    x = torch.randn(2, 6)
    exact = cached(x)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            mixed = cached(x)
    assert cached.teacher.calls == 2 and mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact) and torch.allclose(mixed, exact, atol=0.05)
    assert torch.equal(cached(x), exact) and cached.teacher.calls == 2


def test_the_order_in_memory_does_not_matter(tmp_path):
    cached = CachedTeacher(Counting(), tmp_path / "answers")
    x = torch.randn(2, 2, 1, 3)
    cached(x)
    cached(x.to(memory_format=torch.channels_last))
    assert cached.teacher.calls == 1


def test_two_share_a_file(tmp_path):
    one, two = (CachedTeacher(Counting(), tmp_path / "answers") for _ in range(2))
    x = torch.randn(2, 6)
    one(x), two(x)
    assert (one.teacher.calls, two.teacher.calls) == (1, 0)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "answers").write_bytes(b"not a data base" * 100)
    with pytest.raises(ValueError, match="is no file of a teacher's answers"):
        CachedTeacher(Counting(), tmp_path / "answers")
    assert (tmp_path / "answers").read_bytes() == b"not a data base" * 100


def test_training_with_a_cached_teacher_gives_the_same_network(tmp_path):
    images, labels = load_images("digits", "train", 96)
    schedule = loop.Schedule(epochs=2, batch=32, rate=0.05, shift=1, distill=0.5, temperature=2.0)
    states = []
    for path in (None, "answers", "answers"):
        torch.manual_seed(0)
        model, teacher = (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)) for _ in range(2))
        asked = []
        teacher.register_forward_hook(lambda *_, asked=asked: asked.append(1))
        loop.train(model, images, labels, schedule, teacher=CachedTeacher(teacher, tmp_path / path) if path else teacher)
        states.append((model.state_dict(), len(asked)))
    assert [asked for _, asked in states] == [6, 6, 0]
    for other, _ in states[1:]:
        assert all(torch.equal(value, states[0][0][name]) for name, value in other.items())


def test_a_recipe_keeps_its_teachers_answers(tmp_path):
    recipe = RECIPES["digits"]
    recipe = replace(recipe, real=replace(recipe.real, epochs=1), low_bit=replace(recipe.low_bit, epochs=1, distill=0.5))
    tops = [train_network(recipe, tmp_path / name, train_images=64, test_images=50, progress=False,
                          teacher_cache=tmp_path / "answers")["graph_top1"] for name in "ab"]
    assert tops[0] == tops[1]
    size = (tmp_path / "answers").stat().st_size
    train_network(RECIPES["digits"].with_epochs(1), tmp_path / "c", train_images=64, test_images=50, progress=False,
                  teacher_cache=tmp_path / "unused")
    assert size > 0 and not (tmp_path / "unused").exists()  # that recipe asks no teacher


def test_runs_of_a_study_share_the_answers(tmp_path, monkeypatch):
    seen = []

    def train_network(recipe, folder, **options):
        seen.append(options["teacher_cache"])
        folder.mkdir(parents=True)
        (folder / "float.pt").write_bytes(b"")
        return {}

    monkeypatch.setattr(studies, "train_network", train_network)
    monkeypatch.setattr(studies.record, "of_training", lambda *arguments: {})
    monkeypatch.setattr(studies.record, "write", lambda path, record: None)
    for only in ("vecq2", "esb2"):
        studies.carry_out("lenet5", tmp_path, tmp_path / "results", only, progress=False)
    assert seen == [tmp_path / "lenet5-teacher.sqlite"] * 2
