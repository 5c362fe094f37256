"""Model cards say what is known of a model, in a form that the Hub reads, and never replace what people wrote."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest
import yaml
from tiny_models import joined_tokenizer, released_model, transformer_for, transformer_params

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import LoRAConfig
from chameleon_jax.console.cli import main
from chameleon_jax.errors import FileError
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.weights.native import write_trained

TRAINING = "Trained from scratch: 10 steps.\n\n| data | documents |\n|---|---|\n| birds | 12 |"


def own_model(image_head_trained: bool | None = True) -> Chameleon:
    tokenizer = joined_tokenizer()
    config = transformer_for(tokenizer.vocabulary, context_length=256)
    return Chameleon(config, transformer_params(config), tokenizer, image_head_trained=image_head_trained)


def trained(folder: Path, **more) -> Path:
    """A model as a run writes it at its end."""
    model = own_model()
    model.tokenizer.save(folder / "tokenizer")
    write_trained(folder / "model", model.config, LoRAConfig(), model.params, folder / "tokenizer", True, **more)
    return folder / "model"


def header(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def rows(folder: Path) -> dict[str, str]:
    return dict(re.findall(r"^\| ([A-Z].*?) \| (.*) \|$", (folder / "README.md").read_text(), re.MULTILINE))


def test_card_says_what_the_model_is(tmp_path):
    model = own_model()
    model.save(tmp_path / "model")
    assert header(tmp_path / "model") == {
        "library_name": "chameleon_jax", "pipeline_tag": "any-to-any", "tags": ["chameleon", "jax", "multimodal"]
    }  # fmt: skip
    found = rows(tmp_path / "model")
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert found["Parameters of the Transformer"] == f"{count:,}, float32"
    assert found["Image tokenizer"] == "16 x 16 pixels to 4 codes of 16"
    assert found["Draws"] == "yes"
    assert found["Context"] == "256 tokens"


def test_task_is_what_the_model_can_do(tmp_path):
    own_model(image_head_trained=None).save(tmp_path / "reads")
    assert header(tmp_path / "reads")["pipeline_tag"] == "image-text-to-text"
    assert rows(tmp_path / "reads")["Draws"] == "not known"
    tokenizer = joined_tokenizer()
    texts = DocumentTokenizer(tokenizer.text, None, tokenizer.vocabulary)
    config = transformer_for(tokenizer.vocabulary)
    Chameleon(config, transformer_params(config), texts).save(tmp_path / "writes")
    assert header(tmp_path / "writes")["pipeline_tag"] == "text-generation"


@pytest.mark.parametrize("format", ["chameleon", "huggingface", "meta"])
def test_licence_of_the_released_models_is_named(tmp_path, format):
    released_model().save(tmp_path / "model", format)
    assert header(tmp_path / "model")["license_name"] == "chameleon-research-license"
    assert "Chameleon Research License" in (tmp_path / "model/README.md").read_text()


def test_lines_that_load_the_model_do(tmp_path):
    own_model().save(tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    assert str(tmp_path) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code.replace("FOLDER", str(tmp_path / "model")))
    assert said.getvalue()


def test_training_is_told_and_goes_with_the_model(tmp_path):
    folder = trained(tmp_path, training=TRAINING, base_model="someone/model")
    assert header(folder)["base_model"] == "someone/model"
    for source, out in (("model", "copy"), ("copy", "copy of it")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / out), "--format", "chameleon"]) == 0
        assert f"## Training\n\n{TRAINING}\n\n## How" in (tmp_path / out / "README.md").read_text()
    from_memory = tmp_path / "saved"
    own_model().save(from_memory)
    assert "## Training" not in (from_memory / "README.md").read_text()


def test_untouched_card_is_written_anew_with_the_model(tmp_path, capsys):
    own_model().save(tmp_path / "model")
    own_model().save(tmp_path / "model", dtype="bfloat16")
    assert rows(tmp_path / "model")["Parameters of the Transformer"].endswith("bfloat16")
    assert "README.md" not in capsys.readouterr().err


@pytest.mark.parametrize("write", [lambda folder: own_model().save(folder / "model"), trained], ids=["save", "train"])
def test_edited_card_stays_as_it_is(tmp_path, write, capsys):
    own_model().save(tmp_path / "model")
    card = tmp_path / "model/README.md"
    edited = card.read_bytes().replace(b"# license: to be", b"license: apache-2.0 # to be") + b"\xff my notes"
    card.write_bytes(edited)
    write(tmp_path)
    assert card.read_bytes() == edited
    assert f"{card} was edited, and stays as it is" in capsys.readouterr().err.replace("\n", "")


def test_edited_card_says_nothing_of_the_training_of_a_converted_model(tmp_path):
    folder = trained(tmp_path, training=TRAINING)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("12", "1,000,000"))
    assert main(["convert", str(folder), str(tmp_path / "out"), "--format", "chameleon"]) == 0
    assert "## Training" not in (tmp_path / "out/README.md").read_text()


def test_folder_of_a_readme_alone_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileError, match=r"it holds 'README.md'"):
        own_model().save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_model_with_an_edited_card_is_intact(tmp_path, capsys):
    released_model().save(tmp_path / "model", "huggingface")
    (tmp_path / "model/README.md").write_text("mine")
    assert main(["inspect", str(tmp_path / "model"), "--verify"]) == 0
