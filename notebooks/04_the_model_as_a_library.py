# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # The model as a library
#
# `import chameleon_jax` for your own research code: the model is a pure function of its parameters, so everything that
# JAX does to functions can be done to it. Here: logits and surprise, gradients, a loss and a training loop of your own,
# and the same code on eight devices.

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

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"  # last section

import jax

print(f"JAX {jax.__version__} found {jax.device_count()} × {jax.devices()[0].device_kind}")

# %% [markdown]
# ## A function and a tree
#
# `load` gives three things to work with: `config` says what the model is, `params` is a tree of arrays, `vocabulary`
# knows which ids are what.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import chameleon_jax

MODEL = "models/shapes"  # or a folder of released weights

model = chameleon_jax.load(MODEL, dtype="float32")
config, params, vocabulary = model.config, model.params, model.vocabulary
jax.tree.map(lambda leaf: leaf.shape, params)

# %%
from chameleon_jax import Transformer


@jax.jit
def logits_of(params, ids):
    """float32 [batch, length, vocab] for ids [batch, length]; nothing is masked."""
    return Transformer(config).apply({"params": params}, ids)


picture = chameleon_jax.open_image("pictures/star_and_square.png")
document = ["A purple star to the left of a blue square. ", picture]
ids = jnp.asarray(np.concatenate([[vocabulary.bos], model.encode(document)]))[None]
logits = logits_of(params, ids)
print(logits.shape, "logits;", float(abs(logits - model.logits(ids)).max()), "from those of model.logits")

# %% [markdown]
# ## What surprises it
#
# The surprise of a token is -log2 of its probability after all before it. Text and picture are one sequence, so one
# line computes both. In the picture, what the text does not say costs bits; the rest is nearly free.

# %%
surprise = -jax.nn.log_softmax(logits[0, :-1])[jnp.arange(ids.shape[1] - 1), ids[0, 1:]] / jnp.log(2)
surprise = np.asarray(surprise)
tokens = np.asarray(ids[0, 1:])
is_text = np.isin(tokens, vocabulary.text_ids)
is_code = np.isin(tokens, vocabulary.image_ids)
text_tokenizer, grid = model.tokenizer.text, model.image_tokenizer.config.grid
pieces = [text_tokenizer.decode([piece]) for piece in np.asarray(vocabulary.piece_of_id)[tokens[is_text]]]

_, (left, right) = plt.subplots(1, 2, figsize=(11, 3), width_ratios=(2.5, 1))
left.bar(range(len(pieces)), surprise[is_text])
left.set_xticks(range(len(pieces)), pieces, rotation=45, ha="right")
left.set_ylabel("bits")
right.imshow(picture, extent=(0, grid, grid, 0), alpha=0.4)
image = right.imshow(surprise[is_code].reshape(grid, grid), extent=(0, grid, grid, 0), alpha=0.6, cmap="magma_r")
plt.colorbar(image, label="bits")
right.axis("off")
plt.tight_layout()
plt.show()
print(f"{surprise[is_text].sum():.1f} bits of text, {surprise[is_code].sum():.1f} bits of picture")

# %% [markdown]
# ## What an answer rests on
#
# Which parts of a picture does an answer rest on? Integrated gradients (Sundararajan et al. 2017) say so: the gradient
# of the answer's log-probability with respect to the embedding of each token, averaged on the way from an empty
# picture, times the way. The embedding is a parameter like any other, so each token of the sequence gets a row of its
# own. Green speaks for the answer, red against it.

# %%
import dataclasses

from PIL import Image

from chameleon_jax.models.transformer import readout

EMPTY = Image.new("RGB", picture.size, (250, 248, 242))


def relevance(question, answer):
    """How much each code of the picture adds to log p(answer), float32 [grid, grid]."""

    def prompt_of(picture):
        return np.concatenate([[vocabulary.bos], model.encode([picture, question]), [vocabulary.end_of_turn]])

    prompt, wanted = prompt_of(picture), int(model.encode(answer)[0])
    embedded, empty = params["embed"][prompt], params["embed"][prompt_of(EMPTY)]
    rows = Transformer(dataclasses.replace(config, vocab_size=len(prompt)))

    def log_probability(embedded):
        own = {**params, "embed": embedded, "output": params["output"][:, : len(prompt)]}
        hidden = rows.apply({"params": own}, jnp.arange(len(prompt))[None], hidden=True)
        return jax.nn.log_softmax(readout(hidden, params, config)[0, -1])[wanted]

    way = (jnp.arange(32) + 0.5) / 32
    points = empty + way[:, None, None] * (embedded - empty)
    gradient = jax.jit(jax.vmap(jax.grad(log_probability)))(points).mean(axis=0)
    added = np.asarray((gradient * (embedded - empty)).sum(axis=-1))
    return added[np.isin(prompt, vocabulary.image_ids)].reshape(grid, grid)


questions = {"What colour is the star?": "Purple.", "What colour is the square?": "Blue."}
_, axes = plt.subplots(1, 3, figsize=(9, 3))
axes[0].imshow(picture)
for axis, (question, answer) in zip(axes[1:], questions.items()):
    values = relevance(question, answer)
    axis.imshow(picture, extent=(0, grid, grid, 0))
    most = abs(values).max()
    axis.imshow(values, extent=(0, grid, grid, 0), alpha=0.6, cmap="RdYlGn", vmin=-most, vmax=most)
    axis.set_title(f"{question} {answer}", fontsize=9)
for axis in axes:
    axis.axis("off")
plt.show()

# %% [markdown]
# ## A loss and a loop of your own
#
# The model calls round shapes circles. Teach it to say "ball", with nothing but optax: a cross-entropy on the new
# answer in 24 conversations about circles, and, so that it forgets nothing else, a penalty on moving away from what it
# said before (the Kullback-Leibler divergence on other conversations).

# %%
import random
import sys

sys.path.append("models")
from shapes import draw, questions, random_scene

rng = random.Random(0)
scenes = [random_scene(rng, rng.choice((1, 2, 3))) for _ in range(400)]
about_circles = [
    (draw(scene), f"Which shape is {shape.colour}?", "The ball.")
    for scene in scenes
    for shape in scene
    if shape.kind == "circle" and [other.colour for other in scene].count(shape.colour) == 1
][:24]
about_others = [
    (draw(scene), question, answer)
    for scene in scenes
    for question, answer in questions(scene, rng)[:2]
    if "circle" not in question + answer
][:64]


def rows(conversations):
    """ids int32 [n, length] of questions with their answers, and which of them are answers, bool [n, length]."""
    ids, is_answer = [], []
    for picture, question, answer in conversations:
        prompt = [vocabulary.bos, *model.encode([picture, question]), vocabulary.end_of_turn]
        said = [*model.encode(answer), vocabulary.eos]
        ids.append(prompt + said)
        is_answer.append([False] * len(prompt) + [True] * len(said))
    length = max(map(len, ids))
    ids = [row + [vocabulary.pad] * (length - len(row)) for row in ids]
    is_answer = [row + [False] * (length - len(row)) for row in is_answer]
    return np.array(ids, np.int32), np.array(is_answer)


new_ids, is_new = rows(about_circles)
old_ids, is_old = rows(about_others)
said_before = np.asarray(jax.nn.log_softmax(logits_of(params, old_ids[:, :-1])))


def own_loss(params):
    log_p = jax.nn.log_softmax(logits_of(params, new_ids[:, :-1]))
    of_targets = jnp.take_along_axis(log_p, new_ids[:, 1:, None], axis=-1)[..., 0]
    new = -jnp.mean(of_targets, where=is_new[:, 1:])
    moved = said_before - jax.nn.log_softmax(logits_of(params, old_ids[:, :-1]))
    old = jnp.mean(jnp.sum(jnp.exp(said_before) * moved, axis=-1), where=is_old[:, 1:])
    return new + old, (new, old)


# %%
import optax

optimizer = optax.adam(1e-3)


@jax.jit
def step(params, state):
    (_, parts), gradient = jax.value_and_grad(own_loss, has_aux=True)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, parts


taught, state, losses = params, optimizer.init(params), []
for _ in range(50):
    taught, state, parts = step(taught, state)
    losses.append([float(part) for part in parts])
plt.figure(figsize=(5, 2.5))
plt.plot(losses, label=["the new answer", "change of old answers"])
plt.xlabel("step")
plt.ylabel("nats")
plt.legend()
plt.show()
print(f"loss of the new answer: {losses[0][0]:.2f} at first, {losses[-1][0]:.4f} at last")

# %%
from chameleon_jax import Chameleon, GenerationConfig, SamplingConfig

taught_model = Chameleon(config, taught, model.tokenizer, image_head_trained=True)
greedy = GenerationConfig(form="chat", mode="text", max_new_tokens=16, text=SamplingConfig(temperature=0))
asked = [("circle", "Which shape is green?"), ("circle", "How many shapes are there?"),
         ("circle_and_star", "Which shape is red?"), ("circle_and_star", "Which shape is yellow?")]  # fmt: skip
prompts = [[chameleon_jax.open_image(f"pictures/{name}.png"), question] for name, question in asked]
for (name, question), *answers in zip(asked, *(each.generate_many(prompts, greedy) for each in (model, taught_model))):
    before, after = ("".join(answer).strip() for answer in answers)
    print(f"{name}: {question} Before: {before} After: {after}")

# %% [markdown]
# ## On eight devices
#
# The first cell asked JAX to show the CPU as eight devices, on which code for eight accelerators can be tried out.
# `make_mesh` arranges them, and `params_shardings` says where each array goes, from the logical names that the modules
# put on their axes.

# %%
from chameleon_jax import MeshConfig
from chameleon_jax.models.transformer import abstract_params
from chameleon_jax.sharding import params_shardings

mesh = chameleon_jax.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices("cpu"))
sharded = jax.device_put(params, params_shardings(abstract_params(config), mesh))
for name in ("embed", "output"):
    array = sharded[name]
    print(f"{name} {array.shape}: {array.sharding.spec}, {array.addressable_shards[0].data.shape} on each device")
jax.debug.visualize_array_sharding(sharded["embed"])

# %% [markdown]
# Jitted functions follow their arguments: the loss and the step from above run as they are, and learn the same.

# %%
state = optimizer.init(sharded)
for number in range(3):
    sharded, state, parts = step(sharded, state)
    print(f"step {number}: loss {float(parts[0]):.5f} on eight devices, {losses[number][0]:.5f} on one")
print(sharded["layers"]["mlp"]["gate"].sharding)
