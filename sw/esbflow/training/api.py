"""Train a network by a recipe, from images to integer graph: what `esbflow train` and the demo call."""

import copy
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from esbflow.compiler.errors import CompileError
from esbflow.engines import DEFAULT_ENGINE
from esbflow.engines import engine as named_engine
from esbflow.errors import BadValue
from esbflow.files import check_writable, whole, write_json
from esbflow.graph.doubts import unmoved, warn
from esbflow.graph.execute import execute
from esbflow.graph.file import save
from esbflow.graph.ir import Graph
from esbflow.networks.checkpoints import load_checkpoint
from esbflow.networks.registry import network as named_network
from esbflow.quant.activation import InputQuantizer
from esbflow.quant.export import export
from esbflow.quant.methods.srq import learns_bits, weigh_bits
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.suggest import no_such
from esbflow.training import record
from esbflow.training.bit_costs import pass_cycles
from esbflow.training.data import DataUnavailable, data_folder, load_images
from esbflow.training.loop import evaluate, train
from esbflow.training.machine_options import usable_device
from esbflow.training.post_training import PostTraining, post_train
from esbflow.training.recipes import RECIPES, TrainingRecipe
from esbflow.training.run_state import Interrupted, checksum
from esbflow.training.teacher_cache import CachedTeacher


def train_network(recipe: str | TrainingRecipe, out: str | Path, epochs: int | None = None, seed: int = 0,
                  train_images: int | None = None, test_images: int | None = None, resume: bool = False,
                  progress: bool = True, float_model: Path | None = None, post_training: int | None = None,
                  how: PostTraining = PostTraining(), device: str | None = None, precision: str = "float32",
                  compiled: bool = False, teacher_cache: Path | None = None, engine: str = DEFAULT_ENGINE) -> dict:
    """Train, quantize, train on, export; writes float.pt, model.pt, graph.npz and metrics.json into `out`.

    Returns the metrics: float_top1, fake_quant_top1 and graph_top1 in percent on the test images, `images`, `seconds`,
    `seed` and sizes. `float_model` is the float.pt of an earlier run, in place of the first stage. With `post_training`
    the low-bit stage trains nothing: scales and corrections come from so many training images, without their labels, as
    `how` says. An interrupted run leaves checkpoints in `out`, from which `resume` goes on; without it they are not
    overwritten. Names in the recipe are checked before anything is trained. `teacher_cache` is a file for what the teacher
    says, so that later runs need not ask it again (see teacher_cache.py). Learned bits cost what they cost on `engine`
    (see bit_costs.py).

    Raises
    ------
    ValueError
        for an unknown recipe, naming the known ones; for a name pattern in it that matches nothing; if `out` keeps the
        checkpoint of an interrupted run and `resume` was not asked for, or of another run than this.
    DataUnavailable
        if the data set is not at hand.
    Interrupted
        a KeyboardInterrupt that says how to go on.
    """
    recipe = named(recipe).with_epochs(epochs)
    quant, out = recipe.quant, Path(out)
    usable_device(device)
    _check_names(recipe)
    images, labels = load_images(recipe.data, "train", train_images)
    test, test_labels = load_images(recipe.data, "test", test_images)
    began = time.monotonic()
    checkpoints = [out / "real.ckpt", out / "low_bit.ckpt"]
    kept = [path for path in checkpoints if path.exists()]
    if kept and not resume:
        raise BadValue(f"{out} keeps a training that was interrupted; go on with it by --resume, or train into another "
                         f"folder, or remove {' and '.join(map(str, kept))}")
    check_writable(out / "model.pt")
    with _kept(checkpoints):
        torch.manual_seed(seed)
        model = named_network(recipe.network)()
        stage = dict(mean=quant.mean, std=quant.std, precision=precision, compiled=compiled,
                     origin=_origin(recipe, float_model))
        if float_model:
            model = load_float_model(float_model, recipe.network).to(device)
        elif recipe.start:
            load_weights(model, recipe.start)
            model.to(device)
        else:
            with _Progress("train in real numbers", progress) as report:
                train(model.to(device), images, labels, recipe.real, seed=seed, checkpoint=checkpoints[0], report=report,
                      **stage)
        float_top1 = evaluate(model, test, test_labels, quant.mean, quant.std)
        save_float_model(model.cpu(), recipe.network, out / "float.pt")
        if post_training:
            model = post_train(model, quant, images[:post_training], how, _say if progress else None)
        else:
            teacher = _teacher(recipe, model, teacher_cache)
            model = _quantized(model, quant, images, engine)
            with _Progress(f"train with {quant.weights} weights", progress) as report:
                recipe.low_bit.carry_out(model.to(device), images, labels, seed=seed + 1, checkpoint=checkpoints[1],
                                         report=report, teacher=teacher, **stage)
        model.cpu()
        fake_top1 = evaluate(model, test, test_labels, quant.mean, quant.std)
        graph = export(model, recipe.network, images.shape[1:])
        graph_top1 = top1(execute(graph, test), test_labels)
        warn(unmoved(graph, test))

        metrics = {"float_top1": float_top1, "fake_quant_top1": fake_top1, "graph_top1": graph_top1, "images": len(test),
                   "seconds": round(time.monotonic() - began, 1), "seed": seed, "network": recipe.network,
                   "data": recipe.data, "weights": quant.weights, "activations": quant.activations,
                   "epochs": 0 if post_training else recipe.low_bit.epochs,
                   "weights_bits": record.weights_bits(model), "activation_bits": record.activation_bits(model),
                   "bytes": record.model_bytes(model)}
        # Without the time that it took: equal runs give equal files.
        graph.info.update({key: value for key, value in metrics.items() if key != "seconds"})
        save(graph, out / "graph.npz")
        save_model(model, quant, recipe.network, out / "model.pt")
        write_json(out / "metrics.json", metrics)
        for path in checkpoints:
            path.unlink(missing_ok=True)
        return metrics


@contextmanager
def _kept(checkpoints: list):
    """Ctrl-C says how to go on, if an epoch is done."""
    try:
        yield
    except KeyboardInterrupt:
        kept = [path for path in checkpoints if path.exists()]
        if not kept:
            raise
        raise Interrupted(f"stopped; {kept[-1]} keeps what was trained: go on with the same command and --resume") from None


def _check_names(recipe: TrainingRecipe) -> None:
    """The patterns of a recipe against its network, by formats that take no time, before hours of training."""
    quant = recipe.quant
    texts = dict.fromkeys(("weights", "first_weights", "last_weights"), "s8")
    quantize(named_network(recipe.network)(), replace(
        quant, **texts, overrides=tuple((pattern, "s8") for pattern, _ in quant.overrides)))


def _origin(recipe: TrainingRecipe, float_model) -> str:
    """What a stage of training starts and learns from, for its checkpoint."""
    given = checksum(np.fromfile(float_model, np.uint8)) if float_model and Path(float_model).exists() else recipe.start
    return f"{recipe.network} from {given or 'nothing'}, teacher {recipe.teacher and recipe.teacher[1]}"


def _quantized(model, quant, images, engine):
    """The model with quantizers; learned bits cost what a second pass takes on the engine, or the same in all layers of a
    network that the compiler does not take."""
    low = quantize(copy.deepcopy(model), quant)
    if learns_bits(low):
        with suppress(CompileError):
            weigh_bits(low, pass_cycles(model, quant, images, named_engine(engine)))
    return low


def _teacher(recipe, model, cache):
    """What the low-bit stage distils from, or None if it does not; its answers are kept in the file `cache`, if any."""
    if not recipe.low_bit.needs_teacher:
        return None
    if recipe.teacher is None:
        teacher = copy.deepcopy(model)
    else:
        network, weights = recipe.teacher
        teacher = named_network(network)()
        load_weights(teacher, weights)
    return CachedTeacher(teacher, cache) if cache else teacher.eval()


def load_weights(model, name: str) -> None:
    """Load the trained weights ESBFLOW_DATA/weights/NAME.npz into a model.

    Raises
    ------
    DataUnavailable
        if they are not there.
    ValueError
        if they do not fit.
    """
    folder = data_folder()
    path = folder / "weights" / f"{name}.npz" if folder else None
    if path is None or not path.exists():
        raise DataUnavailable(f"the weights {name} are not at hand; set ESBFLOW_DATA to a folder that holds "
                              f"weights/{name}.npz")
    load_checkpoint(model, path)


def named(recipe: str | TrainingRecipe) -> TrainingRecipe:
    """The recipe of that name, or itself.

    Raises
    ------
    ValueError
        for an unknown name, naming the known ones.
    """
    if isinstance(recipe, TrainingRecipe):
        return recipe
    if recipe not in RECIPES:
        raise BadValue(no_such("recipe", recipe, RECIPES))
    return RECIPES[recipe]


def top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose largest output, the first of equals, is the label's."""
    return 100 * float((outputs.reshape(len(outputs), -1).argmax(axis=1) == labels).mean())


def save_model(model, quant: Recipe, network: str, path: Path, shape: tuple | None = None) -> None:
    """The quantized model's state and what rebuilds it.

    Parameters
    ----------
    network : a name of the registry, or MODULE:FACTORY of your own.
    shape : (c, h, w) of the images; needed for a network of your own whose factory has no `shape`.

    Raises
    ------
    ValueError
        if there is no such network, or its shape is not known.
    """
    sized = next((module.shape for module in model.modules() if isinstance(module, InputQuantizer)), None)
    shape = shape or sized or named_network(network).shape
    if not shape:
        raise BadValue(f"the shape of {network}'s images is not known; give shape=(channels, height, width)")
    content = {"state": model.state_dict(), "recipe": quant.to_json(), "network": network, "shape": list(map(int, shape)),
               "sized": sized is not None}
    with whole(path) as temporary:
        torch.save(content, temporary)


def load_model(path, network: str | None = None):
    """The quantized model that `save_model` wrote, in eval mode.

    network : MODULE:FACTORY of your own, which is imported: a file alone is not trusted with that. None where the file
        names a network of the registry.

    Raises
    ------
    ValueError
        if the file is not such a model.
    """
    return _load_model(path, network)[0]


class ExportedModel(NamedTuple):
    """The integer graph of a saved model, and the quantized model itself."""

    graph: Graph
    model: torch.nn.Module


def export_model(path, network: str | None = None) -> ExportedModel:
    """(integer graph, quantized model) of a file that `save_model` wrote; raises what `load_model` and `export` raise."""
    model, saved = _load_model(path, network)
    name = saved["network"].partition(":")[2] or saved["network"]
    return ExportedModel(export(model, name, saved["shape"]), model)


def _load_model(path, given: str | None) -> tuple:
    """(model, content) of a file that `save_model` wrote."""
    saved = _read(path, f"there is no model file {path}; make one with `esbflow train`", "recipe",
                  "a quantized model that `esbflow train` or `save_model` wrote")
    make = _network_of(saved, path, given)
    saved["shape"] = tuple(saved.get("shape") or make.shape)
    model = quantize(make(), Recipe.from_json(saved["recipe"]), saved["shape"] if saved.get("sized") else None)
    _fill(model, saved, path)
    return model.eval(), saved


def save_float_model(model, network: str, path: Path) -> None:
    """The real-valued model's state, as it was before quantization."""
    with whole(path) as temporary:
        torch.save({"state": model.state_dict(), "network": network}, temporary)


def load_float_model(path, network: str | None = None):
    """The model that `save_float_model` wrote, in eval mode.

    network : the name that it must have; or MODULE:FACTORY of your own, whatever the file calls it.

    Raises
    ------
    ValueError
        if the file is not such a model, or of another network than `network`.
    """
    saved = _read(path, f"there is no file {path}; `esbflow train` writes float.pt into its folder", "network",
                  "a network in real numbers that `esbflow train` wrote")
    if network not in (None, saved["network"]) and ":" not in network:
        raise BadValue(f"{path} holds {saved['network']}, and {network} is to be trained")
    model = _network_of(saved, path, network)()
    _fill(model, saved, path)
    return model.eval()


def _read(path, missing: str, needed: str, what: str) -> dict:
    try:
        saved = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise BadValue(missing) from None
    except Exception as error:  # whatever torch raises on a damaged file
        raise BadValue(f"{path} is not {what} ({_first_line(error)})") from None
    lacking = [key for key in ("state", "network", needed) if not isinstance(saved, dict) or key not in saved]
    if lacking:
        raise BadValue(f"{path} is not {what}: it has no {lacking[0]!r}")
    return saved


def _first_line(error: Exception) -> str:
    """What torch says, without its advice to trust the file."""
    return str(error).strip().split("\n")[0].split(" (1)")[0].rstrip(". ") or type(error).__name__


def _network_of(saved: dict, path, given: str | None):
    """The registry's entry of a file's network, or the one that was given. A file alone has nothing imported."""
    name = given or saved["network"]
    if given is None and ":" in name:
        raise BadValue(f"{path} is of a network of your own; say that it may be imported: --network {name} "
                       f"(network={name!r} in Python)")
    return named_network(name)


def _fill(model, saved: dict, path) -> None:
    try:
        model.load_state_dict(saved["state"])
    except (RuntimeError, TypeError, AttributeError, ValueError, KeyError) as error:
        raise BadValue(f"{path} does not fit the network {saved['network']} ({' '.join(str(error).split())[:200]}); it was "
                       "saved by another version of it") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Progress:
    """A bar for one stage, or nothing."""

    def __init__(self, title: str, shown: bool):
        self._title, self._shown, self._bar = title, shown, None

    def __enter__(self):
        if not self._shown:
            return None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
                             TimeRemainingColumn(), console=Console(stderr=True))
        self._bar.start()
        task = self._bar.add_task(self._title, total=None, loss=0.0)
        return lambda done, total, loss: self._bar.update(task, completed=done, total=total, loss=loss)

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()
