"""Graph networks on citation graphs: real numbers against SGQuant over several seeds, and the automatic bit selection.

    esbflow study citations --data cora --network gcn --seeds 10 --results docs/results
    esbflow study citations --data cora --network gcn --seeds 10 --search --results docs/results

Each run writes one JSON file, DIR/sgquant-NETWORK-DATA-SETTING.json; the setting is w4a4 (bits of
weights and of features) or search.
"""

import dataclasses
import json
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from esbflow.errors import BadValue
from esbflow.files import write_json
from esbflow.graph.file import save
from esbflow.networks.agnn import AGNN
from esbflow.networks.gcn import GCN
from esbflow.networks.message_passing import Topology
from esbflow.quant.bit_search import Found, select_bits
from esbflow.quant.citation_export import integer_network
from esbflow.quant.methods.registry import weight_quantizer
from esbflow.quant.methods.sgquant import FULL, RANGES, GraphRecipe, feature_bits, memory, quantize_graph_network
from esbflow.studies.citation_data import GraphData, load_graph_data
from esbflow.studies.citation_training import GraphSchedule, accuracy, train_graph
from esbflow.suggest import no_such
from esbflow.training.record import command_line

NETWORKS = {"gcn": GCN, "agnn": AGNN}
REAL = GraphSchedule(every=5)
LOW_BIT = GraphSchedule(epochs=100, every=5)
SEARCH_SEEDS, SEARCH_EPOCHS = 2, 30
CONFIRM_SEEDS = 8
CONFIRM_MOST = 32
DROP = 0.5
"""Points that a setting may cost."""
SEARCH = dict(first=16, rounds=4, each=4, explored=600)
WIDTHS = (1, 2, 3, (4, 3, 2, 1), (4, 4, 2, 2), 4, 8)
"""What the search may give a tensor: bits, or bits of the four degree buckets."""
SEARCH_WEIGHTS = ("twn", "esb3.0", "esb4.1", "s8")
UNIFORM = tuple((bits, weights) for bits in (2, 3, 4) for weights in ("esb3.0", "esb4.1"))
"""Bits of all tensors, and weights, that the search measures first."""


@dataclass(frozen=True, eq=False)
class Task:
    """A graph, ready for training."""

    data: GraphData
    topology: Topology
    network: str
    inputs: dict = field(default_factory=dict, repr=False)
    trained: dict = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, data: str, network: str) -> "Task":
        """ValueError for unknown names, DataUnavailable if the graph is not at hand."""
        if network not in NETWORKS:
            raise BadValue(no_such("graph network", network, NETWORKS))
        graph = load_graph_data(data)
        return cls(graph, Topology(graph.edges, len(graph.labels)), network)

    def stored(self, network):
        """What network.read() gives, made once for each width of the input; None where the engine's side quantizes it."""
        if network.engine:
            return None
        point = next(iter(network.POINTS))
        bits = network.quantizers[point].bits if point in network.quantizers else FULL
        if bits not in self.inputs:
            self.inputs[bits] = network.read(torch.from_numpy(self.data.features), self.topology)
        return self.inputs[bits]

    def float_network(self, seed: int, schedule: GraphSchedule = REAL, checkpoint: Path | None = None):
        """A network trained in real numbers, once for each seed and schedule; read from its checkpoint, if there is one."""
        if (seed, schedule) not in self.trained:
            torch.manual_seed(seed)
            network = NETWORKS[self.network](self.data.features.shape[1], self.data.classes)
            self.trained[seed, schedule] = train_graph(network, self.data, self.topology, schedule, seed,
                                                       stored=self.stored(network), checkpoint=checkpoint)
        return self.trained[seed, schedule]

    def low_bit_network(self, real, recipe: GraphRecipe, seed: int, schedule: GraphSchedule = LOW_BIT,
                        checkpoint: Path | None = None):
        """`real`, quantized and trained on, with the labels and with what `real` says of all nodes."""
        network = quantize_graph_network(real, recipe)
        with torch.no_grad():
            teacher = real.eval()(self.stored(real), self.topology).softmax(dim=1)
        return train_graph(network, self.data, self.topology, schedule, 1000 + seed, stored=self.stored(network),
                           teacher=teacher, checkpoint=checkpoint, origin=str(recipe))

    def accuracy(self, network, part: str = "test") -> float:
        """Percent of the nodes of a part that a network answers rightly."""
        return accuracy(network, self.data, self.topology, part, self.stored(network))


def run_seeds(task: Task, recipe: GraphRecipe, seeds: int, real: GraphSchedule = REAL, low_bit: GraphSchedule = LOW_BIT,
              report=None, out: Path | None = None) -> dict:
    """Train with seeds 0 .. seeds - 1: accuracies in percent on the test nodes, bytes, and times.

    `report(seed, float, fake, integer)` is called after each. With a folder `out`, the integer graphs of seed 0 are written
    there. So are the trained networks, until all are done: an interrupted run trains none of them again.

    Raises
    ------
    ValueError
        if there are no seeds.
    """
    if seeds < 1:
        raise BadValue(f"the number of seeds must be at least 1, not {seeds}")
    began, rows = time.monotonic(), []
    for seed in range(seeds):
        kept = [out and out / f"{seed}-{kind}.ckpt" for kind in ("real", "low_bit")]
        network = task.float_network(seed, real, kept[0])
        low = task.low_bit_network(network, recipe, seed, low_bit, kept[1])
        integer = integer_network(low, task.topology.nodes)
        rows.append((task.accuracy(network), task.accuracy(low), task.accuracy(integer)))
        if report:
            report(seed, *rows[-1])
        if out and seed == 0:
            for name, product in integer.engine.items():
                save(product.graph, out / f"{name}.npz")
    for path in out.glob("*-*.ckpt") if out else ():
        path.unlink()
    counted = memory(low, task.topology)
    rest, rest_float = counted["total"] - counted["input"], counted["total_float"] - counted["input_float"]
    means, deviations = np.mean(rows, axis=0), np.std(rows, axis=0)
    result = {"method": "SGQuant", "network": task.network.upper(), "data": task.data.name.capitalize(),
              "weights_bits": low.lin1.weight_quantizer.form.bits, "activation_bits": feature_bits(low, task.topology),
              "weights": recipe.weights, "widths": {name: q.bits for name, q in low.quantizers.items()}}
    for i, name in enumerate(("float", "fake", "integer")):
        result[f"accuracy_{name}"] = round(float(means[i]), 2)
        result[f"std_{name}"] = round(float(deviations[i]), 2)
    return {**result, "seeds": seeds, "accuracies": [[round(v, 2) for v in row] for row in rows],
            "bytes": counted["total"], "bytes_float": counted["total_float"],
            "memory_ratio": round(counted["total_float"] / counted["total"], 2),
            "bytes_without_input": rest, "memory_ratio_without_input": round(rest_float / rest, 2),
            "memory": counted, "recipe": dataclasses.asdict(recipe),
            "minutes": round((time.monotonic() - began) / 60, 2)}


def search_space(network: str) -> dict:
    """What may be chosen: a width for each stored tensor but the input, the ranges, the weights."""
    points = {name: WIDTHS for name, component in NETWORKS[network].POINTS.items() if component != "input"}
    return {**points, "ranges": RANGES, "weights": SEARCH_WEIGHTS}


def recipe_of(choice: dict) -> GraphRecipe:
    """The recipe of a point of `search_space`."""
    widths = tuple((name, bits) for name, bits in choice.items() if name not in ("ranges", "weights"))
    return GraphRecipe(choice["weights"], overrides=widths, ranges=choice["ranges"])


class SearchResult(NamedTuple):
    """What a search of bit widths found, and the validation accuracy in real numbers."""

    found: Found
    reference: float


def search(task: Task, seeds: int | None = None, epochs: int = SEARCH_EPOCHS, report=None, real: GraphSchedule = REAL,
           low_bit: GraphSchedule = LOW_BIT, drop: float = DROP, **options) -> SearchResult:
    """Automatic bit selection by accuracy on the validation nodes, the mean of some seeds.

    `real` trains the networks of which each setting is a fine-tuning for `epochs`; the best settings are then trained in
    full by `low_bit` (`SecondLook`). `report`, if given, is called with a sentence a setting. `options` are those of
    `select_bits`.

    Returns
    -------
    Found, and the validation accuracy in real numbers.
    """
    seeds = seeds or SEARCH_SEEDS
    networks = [task.float_network(seed, real) for seed in range(seeds)]
    reference = float(np.mean([task.accuracy(network, "val") for network in networks]))
    schedule = dataclasses.replace(low_bit, epochs=epochs)

    def measure(choice):
        return np.mean([task.accuracy(task.low_bit_network(network, recipe_of(choice), seed, schedule), "val")
                        for seed, network in enumerate(networks)])

    def size(choice):
        return memory(quantize_graph_network(networks[0], recipe_of(choice)), task.topology)["total"]

    space = search_space(task.network)
    known = tuple({**dict.fromkeys(space, bits), "ranges": "node", "weights": weights} for bits, weights in UNIFORM)
    say = report or (lambda _: None)
    look = SecondLook(task, seeds, drop, real, low_bit)

    def confirm(choice):
        mean, error = look.cost(choice)
        say(f"second look at {size(choice)} bytes: {mean:.2f} points lost, standard error {error:.2f}")
        return mean <= drop

    def measured(done, total, trial):
        say(f"setting {done}/{total}: {trial.accuracy:.1f} % of the validation nodes, {trial.memory} bytes")

    found = select_bits(space, measure, size, reference, drop, report=measured, known=known, confirm=confirm,
                        **{**SEARCH, **options})
    return SearchResult(found, reference)


class MeanCost(NamedTuple):
    """Points of accuracy that a setting costs, the mean of some seeds, and their standard error."""

    points: float
    error: float


class SecondLook:
    """What a setting costs, by as many full trainings as tell it from `drop` points, with seeds unknown to the search.

    An accuracy by which the best epoch was chosen, and then the best of many settings, promises too much. So half of the
    validation nodes choose the epoch and the other half judge, the halves taking turns. The test nodes are not looked at.

    Trainings come by `seeds` until the mean is a standard error or more from `drop`, or there are `most`.
    """

    def __init__(self, task: Task, first_seed: int, drop: float, real: GraphSchedule, low_bit: GraphSchedule,
                 seeds: int = CONFIRM_SEEDS, most: int = CONFIRM_MOST):
        val = np.random.default_rng(0).permutation(task.data.val)
        one, two = np.sort(val[::2]), np.sort(val[1::2])
        self.tasks = [dataclasses.replace(task, data=dataclasses.replace(task.data, val=chooses, test=judges), trained={})
                      for chooses, judges in ((one, two), (two, one))]
        self.first_seed, self.seeds, self.most = first_seed, seeds, most
        self.drop, self.real, self.low_bit = drop, real, low_bit

    def cost(self, choice: dict) -> MeanCost:
        """(points that the setting costs, their standard error)."""
        lost = []
        while len(lost) < self.most:
            lost += [self.loss(choice, self.first_seed + len(lost) + i) for i in range(self.seeds)]
            mean, error = float(np.mean(lost)), float(np.std(lost, ddof=1)) / len(lost) ** 0.5
            if abs(mean - self.drop) >= error:
                break
        return MeanCost(mean, error)

    def loss(self, choice: dict, seed: int) -> float:
        """Points that the setting costs by one training, on the nodes that judge."""
        task = self.tasks[seed % 2]
        network = task.float_network(seed, self.real)
        return task.accuracy(network) - task.accuracy(task.low_bit_network(network, recipe_of(choice), seed, self.low_bit))


def table(folder: Path) -> str:
    """The records of a folder as the Markdown table of docs/graph_networks.md."""
    lines = ["| data | network | features, weights | real | fake quantization | integer | bytes | "
             "float32 / bytes | without input |",
             "|---|---|---|--:|--:|--:|--:|--:|--:|"]
    for path in sorted(folder.glob("sgquant-*.json"), key=lambda p: (p.stem.split("-")[2::-1], p.stem)):
        record = json.loads(path.read_text())
        inner = [bits for name, bits in record["widths"].items() if name != "layer1_input"]
        words = "/".join(str(b) if isinstance(b, int) else "(" + ",".join(map(str, b)) + ")" for b in inner)
        words += f" bits a {record['recipe']['ranges']}, {record['weights']}"
        top = " | ".join(f"{record[f'accuracy_{k}']:.2f} ± {record[f'std_{k}']:.2f}" for k in ("float", "fake", "integer"))
        lines.append(f"| {record['data']} | {record['network']} | [{words}](results/{path.name}) | {top} | "
                     f"{record['bytes']:,} | {record['memory_ratio']:.1f} | {record['memory_ratio_without_input']:.1f} |")
    return "\n".join(lines)


def study(options, say=None) -> dict:
    """What `esbflow study citations` does with its options: the search if it is asked for, the trainings by each seed, and
    the record written into the folder `results`.

    Raises
    ------
    ValueError
        for an unknown graph, network, format or number out of range, or if no setting costs as little as asked for.
    DataUnavailable
        if the graph is not at hand.
    """
    say = say or (lambda _: None)
    began = time.monotonic()
    task = Task.load(options.data, options.network)
    real, low = (s if options.epochs is None else dataclasses.replace(s, epochs=options.epochs) for s in (REAL, LOW_BIT))
    recipe, extra, setting = GraphRecipe.uniform(options.bits, options.weights, ranges=options.ranges), {}, "search"
    if options.search:
        drop = DROP if options.drop is None else options.drop
        found, reference = search(task, real=real, low_bit=low, drop=drop, report=say)
        if found.best is None:
            raise BadValue(f"no setting stayed within {drop:g} points of real numbers on the validation nodes; "
                             f"{len(found.refused)} did in the search, and not in trainings with other seeds; allow "
                             "more by --drop")
        recipe = recipe_of(found.best.choice)
        extra = {"search": {"reference": reference, "validation": found.best.accuracy, "seeds": SEARCH_SEEDS,
                            "refused": len(found.refused)},
                 "trials": [dataclasses.asdict(trial) for trial in found.trials]}
    else:
        setting = f"w{weight_quantizer(options.weights).form.bits}a{options.bits}"
        setting += "".join(f"-{v.replace(':', '')}" for v, usual in ((options.weights, "esb4.1"), (options.ranges, "node"))
                           if v != usual)
    result = run_seeds(task, recipe, options.seeds, real, low, lambda seed, *top: say(
        f"seed {seed + 1}/{options.seeds}: real {top[0]:.1f}, fake {top[1]:.1f}, integer {top[2]:.1f} %"),
        options.out)
    shown = dict(bits=options.bits, weights=options.weights, ranges=options.ranges)
    if options.search:
        shown = dict(search=True, drop=options.drop)
    command = command_line("esbflow study citations", data=options.data, network=options.network,
                           seeds=options.seeds, **shown, epochs=options.epochs)
    result.update(command=command, **extra,
                  hardware=f"{torch.get_num_threads()} thread(s) of a {platform.machine()} CPU, torch {torch.__version__}",
                  minutes=round((time.monotonic() - began) / 60, 2))
    if options.results:
        write_json(options.results / f"sgquant-{options.network}-{options.data}-{setting}.json", result)
    return result

