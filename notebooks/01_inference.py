# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Text and pictures from one model
#
# Chameleon reads and writes documents in which text and pictures stand in any order. This notebook runs one: it
# continues text, describes pictures, answers questions about them, draws, tells a story in pictures, and changes a
# picture in a conversation.
#
# The model that comes with it has one million parameters and knows a world of coloured shapes, nothing else; it was
# trained from scratch by `make shapes`. With released weights (one path below) the same cells talk about everything.

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
# ## A model
#
# `MODEL` is a folder in any of the three formats: Hugging Face's, Meta's or ours. `hf://facebook/chameleon-7b` fetches
# from the Hugging Face Hub. The 7B needs a GPU or TPU with 16 GB; the released weights describe and answer, but cannot
# draw.

# %%
import dataclasses

import chameleon_jax
from chameleon_jax import GenerationConfig, SamplingConfig, open_image

MODEL = "models/shapes"

model = chameleon_jax.load(MODEL)
model

# %% [markdown]
# ## Text
#
# `generate` continues a document. Temperature 0 takes the most likely token each time.

# %%
greedy = GenerationConfig(mode="text", max_new_tokens=24, text=SamplingConfig(temperature=0))
model.generate("Red and yellow make", dataclasses.replace(greedy, max_new_tokens=3))

# %% [markdown]
# ## Pictures in, text out
#
# A document is a list of texts and pictures. Here it is a picture alone, and what follows one in the training data is
# its caption. All four are described in one go.

# %%
from IPython.display import HTML, display

from chameleon_jax.display import to_html

pictures = [open_image(f"pictures/{name}.png") for name in ("circle", "circle_and_star", "star_and_square", "three")]
captions = model.generate_many([[picture] for picture in pictures], greedy)
for picture, caption in zip(pictures, captions):
    display(HTML(to_html([picture, *caption])))

# %% [markdown]
# Questions go to a model that was tuned on conversations: `form="chat"` marks the end of the prompt, so that what
# follows is the answer. A model this small is not always right. Requests of any kind share a batch, each with the
# options it needs.

# %%
chat = GenerationConfig(form="chat", mode="text", max_new_tokens=24, text=SamplingConfig(temperature=0))
questions = [
    [pictures[3], "How many shapes are there?"],
    [pictures[2], "What is to the left of the blue square?"],
    [pictures[2], "What colour is the star?"],
    [pictures[1], "Which shape is red?"],
]
for question, answer in zip(questions, model.generate_many(questions, chat)):
    display(HTML(to_html([*question, " ", *answer])))

# %% [markdown]
# ## Text in, pictures out
#
# `mode="image"` draws exactly one picture; `n` asks for several samples of a prompt. No picture that the model learnt
# from shows an orange star together with a green triangle.

# %%
drawing = GenerationConfig(form="chat", mode="image", text_guidance=1.0, image=SamplingConfig(temperature=0.7), seed=0)
samples = model.generate("Draw an orange star, a green triangle and a blue circle.", drawing, n=4)
display(HTML(to_html([sample[0] for sample in samples])))

# %% [markdown]
# The same seed gives the same picture, alone or in a batch, whatever else is in it:

# %%
wishes = ["Draw an orange star, a green triangle and a blue circle.", "Draw a purple square."]
mixed = model.generate_many([wishes[0], questions[0], wishes[1]], [drawing, chat, drawing])
print("the same pixels:", mixed[0][0].tobytes() == samples[0][0].tobytes())
display(HTML(to_html([*mixed[0], *mixed[1], *mixed[2]])))

# %% [markdown]
# ## Both, as the model decides
#
# In mode "interleaved" the model itself decides when a picture begins.

# %%
story = GenerationConfig(mode="interleaved", text_guidance=1.0, image_guidance=1.0, seed=0)
model.generate("A red circle. ", story)

# %% [markdown]
# ## While it writes
#
# `stream` tells of text and pictures as they come. The engine writes some tokens before it reports; here it does after
# each one, so that pictures can be watched while they are drawn: the second picture of the story, four codes at a time.

# %%
from chameleon_jax import EngineConfig
from chameleon_jax.generation.events import Finished, PictureProgress, TextPiece

model.engine_config = EngineConfig(steps=1)
previews = []
for event in model.stream("A red circle. ", story, preview_every=4):
    match event:
        case TextPiece(text):
            print("text:", repr(text))
        case PictureProgress(number=number, written=written, of=of, preview=preview) if preview:
            print(f"picture {number}: {written} of {of} codes")
            previews += [preview] if number == 2 else []
        case Finished(answer):
            print(f"{len(answer.ids)} tokens in {answer.seconds:.2f} s; it ended by {answer.reason!r}")
display(HTML(to_html(previews)))
model.engine_config = EngineConfig()

# %% [markdown]
# ## A conversation
#
# What was said and drawn before is part of the prompt of every turn, token for token. A picture that the model drew can
# be asked about and changed.

# %%
conversation = model.chat(GenerationConfig(text_guidance=1.0, image_guidance=1.0, image=SamplingConfig(temperature=0)))
for wish in (
    "Draw a yellow triangle to the left of a blue square.",
    "Make the blue square red.",
    "Add a green circle at the top left.",
    "How many shapes are there?",
):
    conversation.say(wish)
conversation

# %% [markdown]
# ## From here
#
# - `02_train_your_own.ipynb` trains such a model on a folder of pictures and captions.
# - `03_inside_the_image_tokenizer.ipynb` looks at what a picture is made of.
# - `04_the_model_as_a_library.ipynb` takes the model apart, for code of your own.
# - In a terminal: `chameleon generate MODEL "…"` and `chameleon chat MODEL`.
