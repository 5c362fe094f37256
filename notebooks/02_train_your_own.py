# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Train your own
#
# From a folder of pictures and captions to a model that captions pictures it never saw and draws what it is asked for.
# It trains everything: a text tokenizer, an image tokenizer, and a small Chameleon. With the pictures below that takes
# some minutes on a CPU; with your own, the two marked places are what to change.

# %% [markdown]
# ## Set up
#
# On Colab this fetches the repository and installs the package; where it is installed already, nothing is fetched.

# %%
import importlib.util
import shutil

REPOSITORY = "https://github.com/OWNER/chameleon_jax"

if importlib.util.find_spec("chameleon_jax") is None:
    extras = "demo,released,cuda12" if shutil.which("nvidia-smi") else "demo,released"
    # !git clone --quiet --depth 1 {REPOSITORY}
    # %pip install --quiet "./chameleon_jax[{extras}]"
    # %cd chameleon_jax/notebooks

import jax

print(f"JAX {jax.__version__} found {jax.device_count()} × {jax.devices()[0].device_kind}")

# %% [markdown]
# ## Pictures and captions
#
# **Put your own folder here**: pictures, each with its caption in a text file of the same name, `kite.txt` beside
# `kite.jpg`. Without one, this notebook draws a folder of its own.

# %%
from pathlib import Path

FOLDER = None  # such as "my/pictures"

# %%
import math
import random

from PIL import Image, ImageDraw

COLOURS = {"red": "#d63031", "purple": "#8842aa", "yellow": "#f6d53c", "green": "#2ea058", "blue": "#3069d6"}
PAPERS = {"white": "#faf8f2", "grey": "#a0a4a8", "black": "#26262b"}
SHAPES = ("circle", "square", "triangle", "star")


def draw(colour, shape, paper):
    """A shape on coloured paper: 32 x 32 pixels."""
    image = Image.new("RGB", (128, 128), PAPERS[paper])
    pen = ImageDraw.Draw(image)
    x, y, radius = 64, 64, 40
    if shape == "circle":
        pen.circle((x, y), radius, COLOURS[colour])
    elif shape == "star":
        corners = [(radius * (1.3, 0.6)[number % 2], math.pi * number / 5) for number in range(10)]
        pen.polygon([(x + r * math.sin(angle), y - r * math.cos(angle)) for r, angle in corners], COLOURS[colour])
    else:
        pen.regular_polygon((x, y, 1.25 * radius), {"triangle": 3, "square": 4}[shape], fill=COLOURS[colour])
    return image.resize((32, 32), Image.Resampling.LANCZOS)


UNSEEN = {
    ("red", "star", "black"),
    ("blue", "circle", "grey"),
    ("green", "square", "white"),
    ("yellow", "star", "grey"),
}

if FOLDER is None:
    FOLDER, rng = "drawn", random.Random(0)
    Path(FOLDER).mkdir(exist_ok=True)
    things = [(c, s, p) for c in COLOURS for s in SHAPES for p in PAPERS if (c, s, p) not in UNSEEN]
    for number in range(300):
        colour, shape, paper = rng.choice(things)
        draw(colour, shape, paper).save(f"{FOLDER}/{number:03d}.png")
        Path(f"{FOLDER}/{number:03d}.txt").write_text(f"A {colour} {shape} on {paper} paper.")

# %% [markdown]
# A document is a list of texts and pictures in any order. Each pair becomes two: the caption first teaches the model to
# draw, the picture first to describe. A tenth of the pairs is kept aside, to measure on.

# %%
import chameleon_jax

pairs = [
    (path, path.with_suffix(".txt").read_text().strip())
    for path in sorted(Path(FOLDER).iterdir())
    if path.suffix != ".txt" and path.with_suffix(".txt").exists()
]
random.Random(1).shuffle(pairs)
held_out, pairs_to_learn = pairs[: len(pairs) // 10], pairs[len(pairs) // 10 :]
print(f"{len(pairs_to_learn)} pairs to learn from, {len(held_out)} to measure on")

# %%
import matplotlib.pyplot as plt


def show(pictures, titles, columns=6):
    """Pictures side by side, enlarged, with a line of text above each."""
    rows = math.ceil(len(pictures) / columns)
    _, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.75 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, titles):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title, fontsize=7)
    plt.tight_layout()
    plt.show()


show([chameleon_jax.open_image(path) for path, _ in pairs[:12]], [caption for _, caption in pairs[:12]])

# %%
import json
import tempfile

OUT = Path(tempfile.mkdtemp(prefix="chameleon-"))  # everything that is made on the way


def write_documents(name, pairs):
    lines = []
    for path, caption in pairs:
        picture = {"image": str(path.resolve())}
        lines += [[f"{caption} ", picture], [picture, f" {caption}"]]
    (OUT / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


write_documents("pairs", pairs_to_learn)
write_documents("held_out", held_out)

# %% [markdown]
# ## Two tokenizers
#
# Text becomes pieces of words, by byte-pair encoding.

# %%
from chameleon_jax.config import TextTokenizerConfig
from chameleon_jax.tokens.text import train_text_tokenizer

text_tokenizer = train_text_tokenizer(TextTokenizerConfig(vocab_size=320), [caption for _, caption in pairs_to_learn])
pieces = text_tokenizer.encode(pairs[0][1])
print([text_tokenizer.decode([piece]) for piece in pieces])

# %% [markdown]
# A picture becomes a small grid of codes, by a VQGAN: an encoder, a codebook and a decoder that are trained to give the
# picture back. **Larger pictures need a larger one**: `resolution=128` with `space_to_depth=8` gives 16 x 16 codes, and
# `channels=128`, `num_codes=1024` and some thousand steps do them justice.

# %%
import numpy as np

from chameleon_jax.config import ImageTokenizerConfig, ImageTokenizerTrainConfig
from chameleon_jax.tokens.image import resize_and_crop
from chameleon_jax.training import read_metrics
from chameleon_jax.training.image_tokenizer import pictures_in_order, train_image_tokenizer

image_config = ImageTokenizerTrainConfig(
    model=ImageTokenizerConfig(
        resolution=32, space_to_depth=8, channels=32, channel_multipliers=(1,), num_res_blocks=1, latent_channels=32,
        code_dim=8, num_codes=256, norm_groups=8, attn_type="none",
    ),
    output=str(OUT / "image_tokenizer"),
    steps=800,
    batch_size=32,
    optimizer={"learning_rate": 3e-3},
    commitment=0.1,
    codebook_decay=0.98,
    restart_below=0.05,
)  # fmt: skip
pixels = np.stack(
    [np.asarray(resize_and_crop(chameleon_jax.open_image(path), 32)) for path, _ in pairs_to_learn]
)  # uint8 [pictures, height, width, 3]
batches = pictures_in_order(pixels, image_config.batch_size, image_config.seed)
image_tokenizer = train_image_tokenizer(image_config, batches)

# %%
unseen = [chameleon_jax.open_image(path) for path, _ in held_out[:6]]
rebuilt = image_tokenizer.detokenize(image_tokenizer.tokenize(unseen))
show([*unseen, *rebuilt], ["kept aside"] * len(unseen) + ["rebuilt"] * len(rebuilt))
lines = read_metrics(OUT / "image_tokenizer" / "metrics.jsonl")
first, last = lines[0]["psnr_db"], lines[-1]["psnr_db"]
print(f"PSNR while training: {first:.1f} dB at first, {last:.1f} dB at last")

# %% [markdown]
# ## Rows of tokens
#
# Both kinds of token share one vocabulary. All documents are tokenized once, ahead of training, and packed into rows.

# %%
from chameleon_jax.tokens.documents import DocumentTokenizer
from data_pipeline import DocumentsSource, PrepareCommand, PreparedData
from data_pipeline.prepare import prepare

tokenizer = DocumentTokenizer.join(text_tokenizer, image_tokenizer)
tokenizer.save(OUT / "tokenizer")
prepared = prepare(
    PrepareCommand(
        output=str(OUT / "rows"),
        tokenizer=str(OUT / "tokenizer"),
        sequence_length=96,
        sources=(DocumentsSource(name="pairs", path=str(OUT / "pairs.jsonl")),),
        held_out=(DocumentsSource(name="pairs", path=str(OUT / "held_out.jsonl")),),
    ),
    tokenizer,
)
figures = prepared["sources"]["pairs"]
print(f"{figures['documents']} documents, {figures['tokens']:,} tokens, {figures['rows']} rows")
print(tokenizer.encode([pairs[0][1], chameleon_jax.open_image(pairs[0][0])]))

# %% [markdown]
# ## The model
#
# The architecture is that of the paper, only small. `train` is what `chameleon train` calls: it writes checkpoints and
# metrics, and run again after a stop it would go on where it was.

# %%
from chameleon_jax import CheckpointConfig, OptimizerConfig, StageConfig, TrainConfig, TransformerConfig
from chameleon_jax.tokens.vocabulary import IMAGE
from chameleon_jax.training import TransformerTask, model_params, train

vocabulary = tokenizer.vocabulary
config = TrainConfig(
    output=str(OUT / "run"),
    model=TransformerConfig(
        vocab_size=vocabulary.size, d_model=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=24, mlp_dim=256
    ),
    steps=200,
    batch_size=8,
    stages=(StageConfig(share=1.0, weights={"pairs": 1.0}),),
    optimizer=OptimizerConfig(name="muon", learning_rate=8e-3, schedule="linear", warmup_steps=20, eps=1e-8),
    evaluate_every=20,
    checkpoint=CheckpointConfig(every=200),
)
data = PreparedData(OUT / "rows")
task = TransformerTask(config, vocabulary.modality == IMAGE)
state = train(
    task,
    lambda start, rows: data.batches(config.stages, config.steps, config.batch_size, start=start, rows=rows),
    held_out={"pairs": list(data.held_out_batches("pairs", config.batch_size))},
)

# %%
lines = read_metrics(OUT / "run" / "metrics.jsonl")
measured = [(line["step"], line["held_out"]["pairs"]) for line in lines if "held_out" in line]
learnt = [(line["step"], line["loss"]) for line in lines if "loss" in line]
plt.figure(figsize=(6, 3))
plt.plot(*zip(*learnt), label="training")
for kind in ("text", "image"):
    plt.plot(*zip(*((step, losses[f"{kind}_loss"]) for step, losses in measured)), "o-", label=f"kept aside: {kind}")
plt.xlabel("step")
plt.ylabel("nats per token")
plt.legend()
plt.show()
print(f"loss: {learnt[0][1]:.2f} at first, {learnt[-1][1]:.2f} at last")

# %% [markdown]
# ## What it can do
#
# Captions of pictures that were kept aside:

# %%
from chameleon_jax import Chameleon, GenerationConfig, SamplingConfig

model = Chameleon(config.model, model_params(task, state), tokenizer, image_head_trained=True)
model

# %%
unseen = [chameleon_jax.open_image(path) for path, _ in held_out[:12]]
greedy = GenerationConfig(mode="text", max_new_tokens=24, text=SamplingConfig(temperature=0))
captions = ["".join(answer).strip() for answer in model.generate_many([[picture] for picture in unseen], greedy)]
show(unseen, captions)
right = sum(caption == true for caption, (_, true) in zip(captions, held_out))
print(f"{right} of {len(captions)} captions are word for word those of the folder")

# %% [markdown]
# Drawings. The first four are of things that are nowhere in the drawn folder: no red star on black paper, for one. With
# 300 pictures, such a small model gets some of them half right; the others it has learnt.

# %%
wishes = [f"A {colour} {shape} on {paper} paper." for colour, shape, paper in sorted(UNSEEN)]
if FOLDER != "drawn":
    wishes = []
wishes += [caption for _, caption in held_out[: 12 - len(wishes)]]
drawings = model.generate_many(
    [[f"{wish} "] for wish in wishes],
    GenerationConfig(mode="image", text_guidance=1.0, image=SamplingConfig(temperature=0.5)),
)
show([picture for (picture,) in drawings], wishes)

# %% [markdown]
# The model is a folder that `chameleon_jax.load` and `chameleon generate` open.

# %%
model.save(OUT / "model")
print(chameleon_jax.load(OUT / "model"))

# %% [markdown]
# ## From here
#
# - More pictures: all that grows is the time. A picture of 32 x 32 pixels and 16 codes is a toy; see above.
# - The same five steps are commands with YAML files (`chameleon train --help`), which is how larger runs are made: the
#   demo's are in `configs/demo`, the paper's in `configs/pretrain_7b.yaml`.
# - Instead of starting from nothing, fine-tune released weights: `docs/finetuning.md`.
