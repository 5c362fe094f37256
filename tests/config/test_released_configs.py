"""The YAML files of the released models are those models: parameter counts to the last one."""

from __future__ import annotations

import math

import jax
import pytest

from chameleon_jax.config import ImageTokenizerConfig, TrainConfig, TransformerConfig, find_configs, read_config
from chameleon_jax.tokens.documents import abstract_image_params
from chameleon_jax.training.prepared import with_context_length
from chameleon_jax.weights.checkpoint import abstract_params
from chameleon_jax.weights.layout import image_tokenizer_entries, transformer_entries
from chameleon_jax.weights.meta import feed_forward_width, meta_params

MODELS = find_configs() / "models"


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "parameters"), [("chameleon_7b", 7_013_158_912), ("chameleon_34b", 34_293_522_432)])
def test_transformer_has_the_released_number_of_parameters(name, parameters):
    assert count(abstract_params(read_config(TransformerConfig, MODELS / f"{name}.yaml"))) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("chameleon_7b", 7_013_666_816), ("chameleon_34b", 34_294_308_864)])
def test_huggingface_files_have_the_released_number_of_parameters(name, parameters):
    config = read_config(TransformerConfig, MODELS / f"{name}.yaml")
    assert sum(math.prod(entry.stored) for entry in transformer_entries(config, "H1")) == parameters


def test_image_tokenizer_has_the_released_number_of_parameters_and_tensors():
    config = read_config(ImageTokenizerConfig, MODELS / "image_tokenizer.yaml")
    assert count(abstract_image_params(config)) == 68_718_467
    assert count(abstract_image_params(config, with_decoder=False)) == 29_423_616
    assert len(image_tokenizer_entries(config)) == 293
    assert (config.codes_per_image, config.num_codes) == (1024, 8192)


def test_files_say_what_the_defaults_are():
    seven = read_config(TransformerConfig, MODELS / "chameleon_7b.yaml")
    assert seven == TransformerConfig()
    assert read_config(ImageTokenizerConfig, MODELS / "image_tokenizer.yaml") == ImageTokenizerConfig()


@pytest.mark.parametrize(
    ("dim", "width"), [(512, 1536), (1024, 2816), (2048, 5632), (4096, 11008), (5120, 13824), (8192, 22016)]
)
def test_feed_forward_width_follows_metas_rule(dim, width):
    """V5."""
    assert feed_forward_width(dim, None, 256) == width
    assert feed_forward_width(dim, 1.0, 256) == width


@pytest.mark.parametrize("width", [1, 40, 341, 342, 1000, 1536, 5000])
def test_any_feed_forward_width_can_be_said_in_metas_words(width):
    said = meta_params(TransformerConfig(d_model=512, num_heads=4, num_kv_heads=4, mlp_dim=width))
    assert feed_forward_width(512, said["ffn_dim_multiplier"], said["multiple_of"]) == width


@pytest.mark.parametrize(("size", "tokens"), [("7b", 2**23), ("34b", 3 * 2**22)])
def test_pretraining_recipes_are_the_papers_models_and_batches(size, tokens):
    recipe = read_config(TrainConfig, find_configs() / f"pretrain_{size}.yaml")
    assert with_context_length(recipe, None).model == read_config(TransformerConfig, MODELS / f"chameleon_{size}.yaml")
    assert recipe.batch_size * recipe.sequence_length == tokens
    assert round(recipe.steps * tokens / 1e12, 1) == 9.2
