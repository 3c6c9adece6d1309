"""Recipes refuse nonsense, read back from text, and give each layer its format."""

import pytest

from esbflow.networks.lenet5 import LeNet5
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe


@pytest.mark.parametrize("fields, message", [
    (dict(weights="fp4"), r"'fp4' is neither a format \(esb4.1, s8\) nor a method \(ul2q:BITS.*"),
    (dict(overrides=(("conv1", "esb4.9"),)), r"'esb4.9' is neither a format .*"),
    (dict(weights="lqnet:2"), r"'lqnet:2' is neither a format .*, sq:METHOD\); did you mean lqnets\?"),
    (dict(activations="pcat:4"), r"'pcat:4' is neither a format .*; did you mean pact\?"),
    (dict(weights="vecq:0"), r"'vecq:0' \(vecq:BITS\[,norm\]\): a half-integer grid has 1 to 15 bits, not 0"),
    (dict(weights="vecq:2,loud"), r"'vecq:2,loud' .*: 'loud' is no option here; known: norm"),
    (dict(weights="sq:"), r"'sq:': write sq:METHOD or .*"),
    (dict(weights="sq(often):twn"), r"schedule must be one of staged, ramped, not 'often'"),
    (dict(weights="u4"), r"weights need a signed format, not u4: negative ones would be lost"),
    (dict(activations="pact:x"), r"'pact:x' \(pact:BITS\): write pact:BITS, with the number of bits"),
    (dict(activations="s4"), r"activations follow a ReLU and need an unsigned format, not s4"),
    (dict(signed_activations="u8"), r"signed_activations needs a signed format, not u8"),
    (dict(activations="cb[-1,1]"), r"an activation format must contain zero, cb\[-1,1\] does not"),
    (dict(activations="bin"), r"an activation format must contain zero, bin does not"),
    (dict(input_bits=9), r"input_bits must be an integer in 1..8, not 9"),
    (dict(input_bits=0), r"input_bits must be an integer in 1..8, not 0"),
    (dict(input_bits=1, mean=(0.0, 0.5), std=(1.0, 1.0)), r"input_bits must be an integer in 2..8, not 1"),
    (dict(output_bits=24), r"output_bits must be 16 or 32, not 24"),
    (dict(scale_mode="max"), r"scale_mode must be one of closed_form, laplace, refined, learned, pow2, not 'max'"),
    (dict(activation_scale="max"), r"activation_scale must be one of learned, ema, not 'max'"),
    (dict(mean=(0.0, 1.0)), r"mean and std need one entry a channel, and std must be positive"),
    (dict(mean=(123.675, 116.28, 103.53), std=(58.4, 57.1, 57.4)),
     r"mean 123.675 and std 58.4 leave the input 2 codes of 256: they are of pixels divided by 255, so that a mean is in 0..1; "
     r"divide both by 255"),
    (dict(mean=(-128.0,)), r"mean -128 and std 1 leave the input . codes of 256: .*"),
    (dict(mean=("a",)), r"mean must be finite numbers, one for all channels or one each, not \('a',\)"),
    (dict(std=(float("nan"),)), r"std must be finite numbers, .*"),
    (dict(overrides="conv1"), r"overrides must be a dict of name patterns, \{'conv1': ...\}, or pairs of them, not 'conv1'"),
    (dict(overrides=("conv1", "s8")), r"overrides must be a dict .*, not \('conv1', 's8'\)"),
    (dict(activation_overrides=3), r"activation_overrides must be a dict .*, not 3"),
    (dict(exclude=(1,)), r"exclude must be a name pattern or several, not \(1,\)"),
    (dict(exclude=None), r"exclude must be a name pattern or several, not None"),
    (dict(input_bits="8"), r"input_bits must be an integer in 1..8, not '8'"),
    (dict(overrides={"conv1": 8}), r"overrides: 'conv1' needs the text of a format or method, such as 's8', not 8"),
    (dict(activation_overrides={"conv1": None}), r"activation_overrides: 'conv1' needs the text .*, not None"),
    (dict(std=(0.0,)), r"mean and std need one entry a channel, and std must be positive"),
])
def test_a_recipe_refuses_nonsense_when_it_is_made(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Recipe(**fields)


def test_a_recipe_reads_back_from_its_text():
    recipe = Recipe(weights="esb6.3", overrides=(("layer1.*", "s8"), ("fc*", "esb3.0")), mean=(0.5, 0.4, 0.3),
                    std=(0.2, 0.2, 0.1), output_bits=32)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_first_last_and_overridden_layers_get_their_formats():
    recipe = Recipe(weights="esb4.1", first_weights="s8", last_weights="esb6.3", overrides=(("conv2", "s4"),))
    model = quantize(LeNet5(), recipe)
    assert [str(model.get_submodule(name).weight_quantizer.form) for name in ("conv1", "conv2", "fc1", "fc2")] == [
        "s8", "s4", "esb4.1", "esb6.3"]


def test_what_patterns_and_numbers_may_be_written_as():
    recipe = Recipe(overrides={"conv1": "s4"}, activation_overrides=[["conv1", "u2"]], exclude="fc2", mean=0.5, std=[0.25])
    assert recipe == Recipe(overrides=(("conv1", "s4"),), activation_overrides=(("conv1", "u2"),), exclude=("fc2",),
                            mean=(0.5,), std=(0.25,))
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("fields, message", [
    (dict(overrides={"conv9": "s4"}), r"overrides: no layer with weights is called 'conv9'; there are conv1, conv2, fc1, fc2; "
                                   r"did you mean conv\d\?"),
    (dict(overrides={"conv*": "s4", "relu1": "s4"}), r"overrides: no layer with weights is called 'relu1'; there are .*"),
    (dict(exclude="conv"), r"exclude: no layer with weights is called 'conv'; there are conv1, conv2, fc1, fc2; "
                           r"did you mean conv\d\?"),
    (dict(activation_overrides={"fc2": "u3"}), r"activation_overrides: no stored tensor is called 'fc2'; there are conv1, conv2, "
                                               r"fc1; did you mean fc1\?")])
def test_a_pattern_that_matches_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        quantize(LeNet5(), Recipe(**fields))
