"""Sentence classification: real numbers against low-bit weights on the integer graph.

    esbflow study text --data imdb --results docs/results
    esbflow study text --data thucnews --weights vecq:2 --results docs/results

Each run writes one JSON file, DIR/text-DATA-wBITS.json (with -METHOD for another method than ESB's).
"""

import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from esbflow.errors import BadValue
from esbflow.files import whole
from esbflow.graph.file import save
from esbflow.networks.text_cnn import TextCNN
from esbflow.quant.export import export
from esbflow.quant.recipe import Recipe
from esbflow.quant.text_input import SentenceInput, quantize_sentences
from esbflow.studies.progress import steps
from esbflow.studies.text_data import Vocabulary, load_text, text_source
from esbflow.studies.text_training import TextSchedule, graph_accuracy, text_accuracy, train_text
from esbflow.training import record


@dataclass(frozen=True)
class TextRecipe:
    """What was measured together: vocabulary, sentence length, network and the two stages."""

    vocabulary: int
    length: int
    filters: int
    real: TextSchedule
    low_bit: TextSchedule
    dim: int


RECIPES = {
    "imdb": TextRecipe(10_000, 200, 48, TextSchedule(epochs=4), TextSchedule(epochs=2), dim=32),
    "thucnews": TextRecipe(3_000, 32, 100, TextSchedule(epochs=10), TextSchedule(epochs=8, rate=5e-4), dim=64),
}


def run(data: str, weights: str = "esb2.0", activations: str = "u4", seed: int = 0, epochs: int | None = None,
        sentences: int | None = None, out: Path | None = None, floats: Path | None = None, control: bool = False,
        report=None) -> dict:
    """Train, quantize, train on, export, execute; returns the record.

    Parameters
    ----------
    data : "imdb" or "thucnews".
    weights, activations : of all layers, as `esbflow.quant.methods.registry` reads them.
    epochs : of each stage, in place of the recipe's. sentences : of each part of the split, evenly taken, for trials.
    out : a folder for graph.npz (the integer graph) and host.npz (vocabulary and bytes of the embedding), and for
        checkpoints from which an interrupted run goes on.
    floats : file of the network in real numbers; it is read if it is there and written if not.
    control : train the network in real numbers on with the schedule of the low-bit stage too, which tells what is due to the
        longer training: "top1_float_trained_on" of the record.

    Raises
    ------
    ValueError
        for an unknown data set, method or a number out of range, or if `floats` holds another network.
    DataUnavailable
        if the data set is not at hand.
    """
    began, source = time.monotonic(), text_source(data)
    recipe = RECIPES[data]
    if epochs is not None:
        recipe = replace(recipe, real=replace(recipe.real, epochs=epochs), low_bit=replace(recipe.low_bit, epochs=epochs))
    quant = Recipe(weights=weights, first_weights=weights, last_weights=weights, activations=activations)
    say = report or (lambda _: None)
    train, labels = _part(data, "train", sentences)
    test, test_labels = _part(data, "test", sentences)
    vocabulary = Vocabulary.of(train, recipe.vocabulary)
    train, test = (vocabulary.numbers(part, recipe.length) for part in (train, test))

    def stage(model, name, title, schedule, offset):
        return train_text(model, train, labels, schedule, seed + offset, steps(report, title),
                          out / f"{name}.ckpt" if out else None)

    torch.manual_seed(seed)
    model = TextCNN(len(vocabulary), source.classes, recipe.length, recipe.dim, filters=recipe.filters)
    if floats and floats.exists():
        _load(model, floats)
    else:
        stage(model, "real", "real numbers", recipe.real, 0)
        if floats:
            with whole(floats) as temporary:
                torch.save(model.state_dict(), temporary)
    float_top1 = text_accuracy(model, test, test_labels)
    say(f"real numbers: {float_top1:.2f} %")
    extra = {}
    if control:
        longer = stage(copy.deepcopy(model), "control", "real numbers on", recipe.low_bit, 1)
        extra["top1_float_trained_on"] = round(text_accuracy(longer, test, test_labels), 2)
    model.sentence = quantize_sentences(model.embedding.weight, model.sentence, quant)
    stage(model, "low_bit", f"{weights} weights", recipe.low_bit, 1)
    fake_top1 = text_accuracy(model, test, test_labels)
    graph = export(model.sentence, f"text-{data}", (recipe.dim, recipe.length, 1))
    host = SentenceInput.of(model.embedding.weight, model.sentence)
    graph_top1 = graph_accuracy(graph, host, test, test_labels)
    say(f"integer graph: {graph_top1:.2f} %, fake quantization {fake_top1:.2f} %")
    if out:
        save(graph, out / "graph.npz")
        with whole(out / "host.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, bytes=host.bytes_, vocabulary=np.array(vocabulary.entries))
        for name in ("real", "control", "low_bit"):
            (out / f"{name}.ckpt").unlink(missing_ok=True)
    return {
        "method": weights, "network": "text-cnn", "data": data, "weights_bits": record.weights_bits(model),
        "activations": activations, "activation_bits": record.activation_bits(model.sentence),
        "top1_integer_graph": round(graph_top1, 2), "top1_fake_quantization": round(fake_top1, 2),
        "top1_float": round(float_top1, 2), **extra, "images": len(test), "bytes": record.model_bytes(model),
        "bytes_embedding": host.bytes_.size, "vocabulary": len(vocabulary), "length": recipe.length, "dim": recipe.dim,
        "filters": recipe.filters, "epochs_float": recipe.real.epochs, "epochs": recipe.low_bit.epochs, "seed": seed,
        "command": record.command_line(
            "esbflow study text", data=data, weights=weights, activations=activations, seed=seed or None,
            epochs=epochs, sentences=sentences, control=control), "hardware": record.hardware(),
        "minutes": round((time.monotonic() - began) / 60, 1)}


def _part(data: str, split: str, count: int | None) -> tuple:
    if count is not None and count < 1:
        raise BadValue(f"the number of sentences must be at least 1, not {count}")
    sentences, labels = load_text(data, split)
    if count is not None:
        # The file is sorted by class: its beginning would be one class only.
        chosen = np.linspace(0, len(sentences) - 1, min(count, len(sentences))).astype(int)
        sentences, labels = [sentences[i] for i in chosen], labels[chosen]
    return sentences, labels


def _load(model, path: Path) -> None:
    try:
        model.load_state_dict(torch.load(path, weights_only=True))
    except Exception as error:  # whatever torch raises on a damaged file
        raise BadValue(f"{path} does not hold this network ({error}); remove it to train again") from None


def record_name(result: dict) -> str:
    """The file's name: text-imdb-w2 for ESB, text-imdb-w2-vecq for another method, with -u8 for activations but u4."""
    method, _, options = result["method"].partition(":")
    esb = method.startswith("esb")
    bits = method[3:].partition(".")[0] if esb else options.partition(",")[0]
    name = f"text-{result['data']}-w{bits}" + ("" if esb else f"-{method}")
    return name + ("" if result["activations"] == "u4" else f"-{result['activations'].replace(':', '')}")


def table(folder: Path) -> str:
    """The records of a folder as the Markdown table of docs/text.md."""
    lines = ["| data | weights, activations | real | real, trained on | fake quantization | integer graph | "
             "bytes of weights | of the embedding |",
             "|---|---|--:|--:|--:|--:|--:|--:|"]
    for path in sorted(folder.glob("text-*.json")):
        result = json.loads(path.read_text())
        lines.append(f"| {result['data']} | [{result['method']}, {result['activations']}](results/{path.name}) | "
                     f"{result['top1_float']:.2f} | {result.get('top1_float_trained_on', '')} | "
                     f"{result['top1_fake_quantization']:.2f} | "
                     f"{result['top1_integer_graph']:.2f} | {result['bytes']:,} | {result['bytes_embedding']:,} |")
    return "\n".join(lines)


def study(given, say=None) -> dict:
    """What `esbflow study text` does with its options: `run`, and the record written into the folder `results`."""
    result = run(given.data, given.weights, given.activations, given.seed, given.epochs, given.sentences, given.out,
                 given.floats, given.control, say)
    if given.results:
        record.write(given.results / f"{record_name(result)}.json", result)
    return result
