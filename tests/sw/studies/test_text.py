"""Text networks: data and their errors, the embedding as an image, integers against fake quantization, the command."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from esbflow import cli
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import DEFAULT_ENGINE, engine
from esbflow.graph.bounds import check
from esbflow.graph.execute import execute
from esbflow.graph.file import load
from esbflow.networks.text_cnn import SentenceCNN, TextCNN, pools_over
from esbflow.quant.export import export
from esbflow.quant.recipe import Recipe
from esbflow.quant.text_input import SentenceInput, input_recipe, quantize_sentences
from esbflow.studies.text_data import TEXTS, Vocabulary, load_text
from esbflow.studies.text_training import TextSchedule, graph_accuracy, text_accuracy, train_text
from esbflow.training import record
from esbflow.training.data import DataUnavailable

NEEDS_DATA = pytest.mark.skipif(
    not all(os.path.exists(os.path.join(os.environ.get("ESBFLOW_DATA", ""), source.file)) for source in TEXTS.values()),
    reason="ESBFLOW_DATA/{imdb,text_small}.tsv are not at hand")
W2 = Recipe("esb2.0", first_weights="esb2.0", last_weights="esb2.0")
LENGTH = 20


def small_texts(count: int = 120, seed: int = 0):
    """Sentences of two classes, each with words of its own among common ones; some are empty."""
    random, sentences = np.random.default_rng(seed), []
    labels = np.arange(count) % 2
    for i, label in enumerate(labels):
        own = [f"w{label}{k}" for k in random.integers(0, 5, 4)] + [f"common{k}" for k in random.integers(0, 9, 9)]
        sentences.append([] if i in (7, 8) else list(random.permutation(own)))
    return sentences, labels.astype(np.int64)


@pytest.fixture(scope="module")
def trained():
    """(model of 2-bit weights, numbers, labels) after a short training."""
    sentences, labels = small_texts()
    numbers = Vocabulary.of(sentences, 25).numbers(sentences, LENGTH)
    torch.manual_seed(0)
    model = TextCNN(25, 2, LENGTH, 8, filters=6)
    train_text(model, numbers, labels, TextSchedule(6, 16, 1e-2))
    assert text_accuracy(model, numbers, labels) > 90  # half is chance
    model.sentence = quantize_sentences(model.embedding.weight, model.sentence, W2)
    train_text(model, numbers, labels, TextSchedule(4, 16, 3e-3), seed=1)
    return model, numbers, labels


# -- the network ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 30, 198, 226, 500])
def test_a_chain_of_pools_is_the_maximum(length):
    x = torch.randn(3, 2, length, 1)
    assert torch.equal(pools_over(length)(x), x.amax(dim=2, keepdim=True))


def test_the_sum_of_heads_is_kims_linear_layer():
    torch.manual_seed(0)
    model = TextCNN(30, 4, LENGTH, 8, filters=5).eval()
    numbers = torch.randint(0, 30, (6, LENGTH))
    x = model.embedding(numbers).transpose(1, 2)
    parts = [torch.conv1d(x, conv.weight[..., 0], conv.bias).relu().amax(dim=2) for conv in model.sentence.convs]
    weight = torch.cat([head.weight.flatten(1) for head in model.sentence.heads], dim=1)
    assert torch.allclose(model(numbers), torch.cat(parts, dim=1) @ weight.T + model.sentence.heads[0].bias, atol=1e-6)
    assert not model.embedding.weight[0].any()


def test_sentences_shorter_than_a_filter_are_refused():
    with pytest.raises(ValueError, match="sentences of 4 tokens are shorter than a filter of 5"):
        SentenceCNN(2, 4)


# -- the embedding as an image -------------------------------------------------------------------------------------
def test_every_code_comes_through_the_input_table():
    codes = torch.arange(-127, 128).float()
    embedding = torch.cat([torch.zeros(1), codes])[:, None].repeat(1, 2) * 0.0123
    network = quantize_sentences(embedding, SentenceCNN(2, 300, 2, filters=3), W2)
    network(torch.randn(4, 2, 300, 1))  # gives the activations their scales
    graph, host = export(network, shape=(2, 300, 1)), SentenceInput.of(embedding, network)
    assert graph.input.scale == pytest.approx(0.0123, rel=1e-6)
    images = host.images(np.arange(256)[None].repeat(2, axis=0))
    images = np.pad(images, ((0, 0), (0, 0), (0, 44), (0, 0)), constant_values=128)
    found = execute(graph, images, keep=True)["input"][0, :, :256, 0]
    assert np.array_equal(found, np.tile(np.r_[0, np.arange(-127, 128)], (2, 1)))


def test_integers_equal_fake_quantization(trained):
    model, numbers, labels = trained
    graph, host = export(model.sentence, shape=(8, LENGTH, 1)), SentenceInput.of(model.embedding.weight, model.sentence)
    with torch.no_grad():
        fake = model.double()(torch.from_numpy(numbers)).numpy()
    model.float()
    exact = execute(graph, host.images(numbers)).reshape(fake.shape) * graph.output.scale
    assert np.abs(exact - fake).max() < 0.1 * np.abs(fake).max()
    assert (exact.argmax(axis=1) == fake.argmax(axis=1)).mean() > 0.97
    assert graph_accuracy(graph, host, numbers, labels) == pytest.approx(text_accuracy(model, numbers, labels), abs=2)
    assert graph_accuracy(graph, host, numbers, labels) > 85


def test_empty_sentences_and_unknown_words_have_a_class(trained):
    model, _, _ = trained
    vocabulary = Vocabulary.of(small_texts()[0], 25)
    numbers = vocabulary.numbers([[], ["never", "seen"], ["never"] * 99], LENGTH)
    assert not numbers[0].any() and numbers[1, :3].tolist() == [1, 1, 0] and (numbers[2] == 1).all()
    graph, host = export(model.sentence, shape=(8, LENGTH, 1)), SentenceInput.of(model.embedding.weight, model.sentence)
    assert (host.images(numbers)[0] == 128).all()
    exact = execute(graph, host.images(numbers)).reshape(3, 2) * graph.output.scale
    fake = model(torch.from_numpy(numbers)).detach().numpy()
    assert np.isfinite(fake).all() and np.abs(exact - fake).max() < 0.1 * max(1, np.abs(fake).max())


def test_the_graph_is_compiled_for_the_engine(trained):
    graph, config = export(trained[0].sentence, shape=(8, LENGTH, 1)), engine(DEFAULT_ENGINE)
    check(graph, config.accumulator_width)
    assert len(compile_graph(graph, config, 1).instructions)


def test_bad_embeddings_and_numbers_are_refused(trained):
    model = trained[0]
    with pytest.raises(ValueError, match="embedding holds NaN or infinity"):
        input_recipe(W2, torch.tensor([[0.0, torch.nan]]))
    assert input_recipe(W2, torch.zeros(2, 2)).std == (0.5,)
    with pytest.raises(ValueError, match="the network's input is not quantized"):
        SentenceInput.of(model.embedding.weight, SentenceCNN(2, LENGTH))
    host = SentenceInput.of(model.embedding.weight, model.sentence)
    with pytest.raises(ValueError, match=r"sentences must have shape \(n, length\), not \(3,\)"):
        host.images(np.zeros(3, int))
    for bad in (-1, 25):
        with pytest.raises(ValueError, match=r"vocabulary numbers must be in 0..24"):
            host.images(np.full((1, LENGTH), bad))
    assert host.images(np.zeros((0, LENGTH), int)).shape == (0, 8, LENGTH, 1)


# -- training ------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_network():
    sentences, labels = small_texts(40)
    numbers = Vocabulary.of(sentences, 25).numbers(sentences, LENGTH)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        model = TextCNN(25, 2, LENGTH, 4, filters=3)
        model.sentence = quantize_sentences(model.embedding.weight, model.sentence, W2)
        states.append(train_text(model, numbers, labels, TextSchedule(2, 16), seed=3).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))


def test_a_killed_training_goes_on_to_the_same_result(tmp_path, killed_after):
    sentences, labels = small_texts(40)
    numbers = Vocabulary.of(sentences, 25).numbers(sentences, LENGTH)

    def run(checkpoint=None):
        torch.manual_seed(3)
        model = TextCNN(25, 2, LENGTH, 4, filters=3)
        model.sentence = quantize_sentences(model.embedding.weight, model.sentence, W2)
        return train_text(model, numbers, labels, TextSchedule(3, 16), seed=3, checkpoint=checkpoint).state_dict()

    whole = run()
    for number in (1, 3):
        with killed_after(number):
            run(tmp_path / f"{number}.ckpt")
        again = run(tmp_path / f"{number}.ckpt")
        assert all(torch.equal(value, whole[name]) for name, value in again.items())
    with pytest.raises(ValueError, match=r"is of another run .*epochs is 3 there and 2 here"):
        train_text(TextCNN(25, 2, LENGTH, 4, filters=3), numbers, labels, TextSchedule(2, 16), 3, checkpoint=tmp_path / "3.ckpt")


def test_training_refuses_nonsense():
    model = TextCNN(5, 2, LENGTH, 4, filters=3)
    none, labels = np.zeros((0, LENGTH), np.int32), np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="there are no sentences to train on"):
        train_text(model, none, labels, TextSchedule())
    with pytest.raises(ValueError, match="there are no sentences to evaluate on"):
        text_accuracy(model, none, labels)
    with torch.no_grad():
        model.sentence.heads[0].bias[0] = torch.nan
    with pytest.raises(ValueError, match="the loss is nan in step 1 of 4"):
        train_text(model, np.ones((4, LENGTH), np.int32), np.zeros(4, np.int64), TextSchedule())
    with pytest.raises(ValueError, match="epochs and batch must be at least 1"):
        TextSchedule(epochs=0)
    with pytest.raises(ValueError, match="learning rate must be positive"):
        TextSchedule(rate=0)


# -- data ----------------------------------------------------------------------------------------------------------
GOOD = "train\t1\t9\tGood, <br />it's GOOD!\ntrain\t0\t2\t\ntest\t0\t1\tbad\x85film\n"
TITLES = "".join(f"thucnews\t{part}\t{label}\t股票 {label}涨\n" for part in ("dev", "test") for label in range(10))


def folder_with(tmp_path, monkeypatch, imdb=GOOD, small="mr\tall\t1\tfine film\n" + TITLES):
    for name, content in (("imdb.tsv", imdb), ("text_small.tsv", small)):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path))
    return tmp_path


def test_lines_become_tokens(tmp_path, monkeypatch):
    folder_with(tmp_path, monkeypatch)
    sentences, labels = load_text("imdb", "train")
    assert sentences == [["good", "it's", "good"], []] and labels.tolist() == [1, 0]
    assert load_text("imdb", "test")[0] == [["bad", "film"]]
    sentences, labels = load_text("thucnews", "train")
    assert sentences[3] == list("股票3涨") and labels.tolist() == list(range(10))
    folder_with(tmp_path, monkeypatch, imdb=GOOD.replace("\n", "\r\n"))  # as some editors save it
    assert load_text("imdb", "train")[0] == [["good", "it's", "good"], []]


def test_a_vocabulary_has_the_most_frequent_tokens_first():
    vocabulary = Vocabulary.of([list("cabab"), list("ad")], 5)
    assert vocabulary.entries == ("a", "b", "c") and len(vocabulary) == 5
    assert vocabulary.numbers([list("abd"), []], 2).tolist() == [[2, 3], [0, 0]]
    with pytest.raises(ValueError, match="a vocabulary has at least 3 entries"):
        Vocabulary.of([["a"]], 2)
    with pytest.raises(ValueError, match="there are no tokens"):
        Vocabulary.of([[], []], 9)
    with pytest.raises(ValueError, match="the length of sentences must be at least 1"):
        vocabulary.numbers([["a"]], 0)


@pytest.mark.parametrize("content, message", [
    (GOOD + "train\t1\ttext\n", "is damaged: line 4 has 3 fields, not 4"),
    (GOOD[:8], "is damaged: line 1 has 3 fields"),  # cut off
    ("train\t2\t9\ttext\n", "line 1 has label '2', not 0 to 1"), ("train\t-1\t9\ttext\n", "has label '-1'"),
    ("train\tx\t9\ttext\n", "has label 'x'"), ("train\t²\t9\ttext\n", "has label '²'"),
    (GOOD.encode() + b"train\t1\t9\t\xff\n", "line 4 is not UTF-8"),
    ("", "holds no lines of imdb, train"), ("test\t1\t9\ttext\n", "holds no lines of imdb, train")])
def test_damaged_files_are_refused_in_one_sentence(content, message, tmp_path, monkeypatch):
    folder_with(tmp_path, monkeypatch, imdb=content)
    with pytest.raises(DataUnavailable, match=message):
        load_text("imdb", "train")


def test_unknown_names_and_missing_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no text data set named 'yelp'; known: imdb, thucnews"):
        load_text("yelp", "train")
    with pytest.raises(ValueError, match="split must be train or test, not 'dev'"):
        load_text("thucnews", "dev")
    monkeypatch.delenv("ESBFLOW_DATA", raising=False)
    with pytest.raises(DataUnavailable, match=r"the texts imdb are not at ESBFLOW_DATA \(not set\)/imdb.tsv"):
        load_text("imdb", "train")
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path))
    with pytest.raises(DataUnavailable, match=r"the texts thucnews are not at .*text_small.tsv"):
        load_text("thucnews", "test")


@NEEDS_DATA
def test_the_published_texts():
    for name, count in (("imdb", 12_500), ("thucnews", 10_000)):
        for split in ("train", "test"):
            sentences, labels = load_text(name, split)
            assert len(sentences) == count and np.ptp(np.bincount(labels)) == 0 and min(map(len, sentences)) > 0


# -- the command ---------------------------------------------------------------------------------------------------
def main(words):
    return cli.main(["study", "text", *words])


def test_the_command_writes_a_record_and_the_graph(tmp_path, monkeypatch, capsys):
    folder_with(tmp_path, monkeypatch)
    words = ["--data", "thucnews", "--epochs", "1", "--results", str(tmp_path), "--out", str(tmp_path / "x"),
             "--float", str(tmp_path / "real.pt"), "--json"]
    assert main(words) == 0
    result = json.loads((tmp_path / "text-thucnews-w2.json").read_text())
    assert set(record.KEYS) <= set(result) and result["images"] == 10 and result["vocabulary"] == 2 + 13
    assert result["activation_bits"] == 4 and 2 <= result["weights_bits"] < 2.2
    graph = load(tmp_path / "x" / "graph.npz")
    host = np.load(tmp_path / "x" / "host.npz")
    scores = execute(graph, SentenceInput(host["bytes"]).images(np.zeros((1, 32), int)))
    assert scores.shape == (1, 10, 1, 1) and "涨" in host["vocabulary"]
    assert json.loads(capsys.readouterr().out)["network"] == "text-cnn"
    assert main([*words, "--weights", "vecq:2", "--activations", "u8", "--control"]) == 0  # from the same real numbers
    other = json.loads((tmp_path / "text-thucnews-w2-vecq-u8.json").read_text())
    assert other["top1_float"] == result["top1_float"] and other["activation_bits"] == 8
    assert "--control" in other["command"] and "--control" not in result["command"]
    assert 0 <= other["top1_float_trained_on"] <= 100 and "top1_float_trained_on" not in result
    (tmp_path / "real.pt").write_bytes(b"no network")
    assert main(words) == 2
    assert "does not hold this network" in capsys.readouterr().err


@pytest.mark.parametrize("words, message", [
    (["--data", "yelp"], "no text data set named 'yelp'; known: imdb, thucnews"), (["--weights", "u4"], "signed format"),
    (["--activations", "s4"], "activations follow a ReLU"), (["--epochs", "0"], "epochs and batch must be at least 1"),
    (["--sentences", "0"], "the number of sentences must be at least 1"), ([], "has 1 fields, not 4")])
def test_the_command_refuses_bad_input_in_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    folder_with(tmp_path, monkeypatch, imdb="no tabs\n")
    assert main(words) == 2
    assert message in capsys.readouterr().err.split("\n")[-2]


def test_the_committed_records_are_within_a_point_of_real_numbers(capsys):
    folder = Path(__file__).parents[3] / "docs" / "results"
    assert main(["--table", str(folder)]) == 0
    assert capsys.readouterr().out in (folder.parent / "text.md").read_text()
    for path in folder.glob("text-*.json"):
        result = json.loads(path.read_text())
        assert set(record.KEYS) <= set(result) and result["images"] >= 10_000
        real = max(result["top1_float"], result.get("top1_float_trained_on", 0))
        assert result["top1_integer_graph"] >= real - 1, path.stem
