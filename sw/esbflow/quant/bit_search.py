"""Automatic bit selection: find the smallest setting that costs little accuracy, measuring few of very many.

Source: Feng et al., "SGQuant", ICTAI 2020, section on auto-bit selection: measure settings drawn at random, fit a regression
tree from bits to accuracy, explore with it, measure the candidates that it promises with the least memory, and repeat.
Here half of the candidates are one step down from the smallest good setting: a tree fitted to few measurements promises
too much at the edge of what it knows. And the smallest of many noisy measurements flatters itself, so that a second,
independent one can be asked before a setting is taken.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from esbflow.errors import BadValue


@dataclass(frozen=True)
class Trial:
    """A measured setting: `choice` maps names to values, `accuracy` in percent, `memory` in bytes."""

    choice: dict
    accuracy: float
    memory: float


@dataclass(frozen=True)
class Found:
    """`best` is the smallest trial within the allowed drop that was confirmed, or None; `trials` are all, in the order of
    measuring; `refused` are those that were not confirmed."""

    best: Trial | None
    trials: tuple
    refused: tuple = ()


def select_bits(space: dict, measure, memory, reference: float, drop: float = 0.5, first: int = 16, rounds: int = 3,
                each: int = 6, explored: int = 2000, seed: int = 0, report=None, confirm=None, known: tuple = ()) -> Found:
    """Search a space of settings.

    Parameters
    ----------
    space : name -> its possible values: numbers, tuples of numbers (bits a degree bucket), or anything else; in the
        order of their memory.
    measure : choice -> accuracy in percent. Expensive.
    memory : choice -> bytes. Cheap.
    reference : accuracy in real numbers.
    drop : how much less is allowed.
    first : settings measured at the start: the widest, those `known` to be worth it, and others drawn at random.
    rounds, each : how often the tree is fitted, and how many of its candidates are then measured.
    explored : how many settings the tree looks at in a round; all, where there are no more.
    report : called as report(done, total, trial) after each measurement.
    confirm : choice -> whether a second look agrees that the setting is good enough. Asked at the end, of the smallest good
        trial first, then of larger ones that measured better than all that were refused, then of the other larger ones.

    Raises
    ------
    ValueError
        if the space is empty, a number is out of range, a known setting is not in the space, or an accuracy is not finite.
    """
    if not space or any(len(values) == 0 for values in space.values()):
        raise BadValue("the space of settings is empty")
    if first < 2 or rounds < 0 or each < 1 or explored < 1 or drop < 0:
        raise BadValue("first must be at least 2, each and explored at least 1, rounds and drop not negative")
    searched = _Search(space, measure, memory, reference - drop, explored, report, seed)
    searched.run(first, rounds, each, known)
    return searched.found(confirm or (lambda _: True))


class _Search:
    """Settings are tuples of places in the lists of values."""

    def __init__(self, space, measure, memory, least, explored, report, seed):
        self.space, self.measure, self.memory = {name: list(values) for name, values in space.items()}, measure, memory
        self.least, self.explored, self.report = least, explored, report
        self.sizes = [len(values) for values in self.space.values()]
        self.count = math.prod(self.sizes)
        self.random = np.random.default_rng(seed)
        self.trials, self.bytes = {}, {}

    def run(self, first: int, rounds: int, each: int, known: tuple = ()) -> None:
        self.total = min(self.count, first + rounds * each)
        begun = [self._widest(), *(self._places(choice) for choice in known)]
        drawn = self._sample(max(first, self.explored))
        self._measure(list(dict.fromkeys([*begun, *drawn]))[:first])
        for _ in range(rounds):
            candidates = self._candidates(each)
            if not candidates:
                break
            self._measure(candidates)

    def found(self, confirm) -> Found:
        """The smallest confirmed trial. One that measured no better than a smaller one that was refused is asked last."""
        good = sorted((t for t in self.trials.values() if t.accuracy >= self.least), key=lambda t: (t.memory, -t.accuracy))
        refused, later = [], []

        def asked(trial):
            agreed = confirm(trial.choice)
            if not agreed:
                refused.append(trial)
            return agreed

        for trial in good:
            if any(trial.accuracy <= other.accuracy for other in refused):
                later.append(trial)
            elif asked(trial):
                return Found(trial, tuple(self.trials.values()), tuple(refused))
        largest = max((trial.memory for trial in refused), default=0)
        best = next((trial for trial in later if trial.memory > largest and asked(trial)), None)
        return Found(best, tuple(self.trials.values()), tuple(refused))

    def _choice(self, places: tuple) -> dict:
        return {name: values[i] for (name, values), i in zip(self.space.items(), places)}

    def _places(self, choice: dict) -> tuple:
        if set(choice) != set(self.space) or any(choice[name] not in values for name, values in self.space.items()):
            raise BadValue(f"the known setting {choice} is not one of the space")
        return tuple(values.index(choice[name]) for name, values in self.space.items())

    def _bytes(self, places: tuple) -> float:
        if places not in self.bytes:
            self.bytes[places] = self.memory(self._choice(places))
        return self.bytes[places]

    def _widest(self) -> tuple:
        """The setting of most memory, taking each name by itself."""
        base = (0,) * len(self.sizes)
        memory = [[self._bytes((*base[:k], i, *base[k + 1:])) for i in range(size)] for k, size in enumerate(self.sizes)]
        return tuple(counts.index(max(counts)) for counts in memory)

    def _measure(self, settings: list) -> None:
        for places in settings:
            accuracy = float(self.measure(self._choice(places)))
            if not math.isfinite(accuracy):
                raise BadValue(f"the accuracy of {self._choice(places)} is not finite")
            self.trials[places] = Trial(self._choice(places), accuracy, self._bytes(places))
            if self.report:
                self.report(len(self.trials), self.total, self.trials[places])

    def _sample(self, count: int) -> list:
        """Distinct settings in random order; all of a small space."""
        if self.count <= count:
            settings = list(itertools.product(*map(range, self.sizes)))
            return [settings[i] for i in self.random.permutation(len(settings))]
        drawn = self.random.integers(0, self.sizes, (count, len(self.sizes)))
        return list(dict.fromkeys(map(tuple, drawn.tolist())))

    def _candidates(self, each: int) -> list:
        """Half: one step down from the smallest good setting, by what the tree says. Half: what the tree holds to be good
        enough, by least memory; where that is too few, what it holds to be best."""
        from sklearn.tree import DecisionTreeRegressor  # here: only the search needs scikit-learn

        known = list(self.trials)
        tree = DecisionTreeRegressor(min_samples_leaf=2, random_state=0)
        tree.fit([self._vector(p) for p in known], [self.trials[p].accuracy for p in known])
        good = [p for p in known if self.trials[p].accuracy >= self.least]
        near = self._smaller(min(good, key=self._bytes)) if good else []
        settings = [p for p in dict.fromkeys(near + self._sample(self.explored)) if p not in self.trials]
        if not settings:
            return []
        promised = dict(zip(settings, tree.predict([self._vector(p) for p in settings])))

        def promise(places):
            return -promised[places], self._bytes(places), places

        steps = sorted((p for p in near if p in promised), key=promise)[:(each + 1) // 2]
        enough = sorted((p for p in settings if promised[p] >= self.least and p not in steps), key=self._bytes)
        chosen = steps + enough[:each - len(steps)]
        return chosen + sorted(set(settings) - set(chosen), key=promise)[:each - len(chosen)]

    def _smaller(self, places: tuple) -> list:
        """Settings with one value a step smaller."""
        return [(*places[:k], i - 1, *places[k + 1:]) for k, i in enumerate(places) if i]

    def _vector(self, places: tuple) -> list:
        """Numbers for the tree: bits, those of all buckets, or the place of what is no number."""
        vector = []
        for (_, values), i in zip(self.space.items(), places):
            numeric = all(isinstance(v, int | float) or isinstance(v, tuple) for v in values)
            width = max((len(v) for v in values if isinstance(v, tuple)), default=1) if numeric else 1
            value = values[i] if numeric else i
            vector += list(value) if isinstance(value, tuple) else [value] * width
        return vector
