# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Inside the image tokenizer
#
# Chameleon reads and writes pictures as tokens. The translator between pixels and tokens is a VQGAN: an encoder, a
# codebook, a decoder. This notebook opens one up: what survives the way through it, what the codes stand for, and how
# much of a picture each of them sees.
#
# It comes with a tiny tokenizer for pictures of coloured shapes (0.4 million parameters, 4 x 4 codes a picture, made by
# `make shapes`). Change `MODEL` to look into another: one you trained, or a released one.

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

# %%
from pathlib import Path

import chameleon_jax

MODEL = "models/shapes"  # or a folder of released weights: Meta's come with the decoder, Hugging Face's without
PICTURES = sorted(Path("pictures").glob("*.png"))  # or your own

tokenizer = chameleon_jax.open_checkpoint(MODEL).load_tokenizer().image  # the Transformer stays on disk
config = tokenizer.config
print(f"{config.resolution} x {config.resolution} pixels to {config.grid} x {config.grid} codes of {config.num_codes}")

# %% [markdown]
# ## There and back
#
# Pictures, what the decoder makes of their codes, and how far the two are apart (black: equal). A picture of 48 x 48
# pixels has 6,912 bytes; its 16 codes of 8 bits have 16.

# %%
import matplotlib.pyplot as plt
import numpy as np

from chameleon_jax.tokens.image import to_pixels as image_to_pixels


def show(rows, labels, size=1.5):
    """Rows of pictures with a label before each row; pixels are float32 in [-1, 1] or [0, 1], or PIL pictures."""
    _, axes = plt.subplots(len(rows), len(rows[0]), figsize=(size * len(rows[0]) + 1, size * len(rows)), squeeze=False)
    for row, pictures, label in zip(axes, rows, labels):
        for axis, picture in zip(row, pictures):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    plt.tight_layout()
    plt.show()


def to_pixels(images):
    """float32 [n, h, w, 3] in [-1, 1], as the encoder reads them."""
    return np.stack([image_to_pixels(image, config.resolution) for image in images])


def visible(pixels):
    return (np.clip(pixels, -1, 1) + 1) / 2


def there_and_back(images):
    pixels = to_pixels(images)
    rebuilt = tokenizer.decode_codes(tokenizer.encode_pixels(pixels))
    error = np.abs(visible(rebuilt) - visible(pixels))
    show([visible(pixels), visible(rebuilt), error], ["picture", "rebuilt", "difference"])
    mean_square = np.mean(error**2, axis=(1, 2, 3))
    return 10 * np.log10(1 / mean_square)


images = [chameleon_jax.open_image(path) for path in PICTURES]
psnr = there_and_back(images)
print("PSNR in dB:", ", ".join(f"{value:.1f}" for value in psnr))

# %% [markdown]
# A tokenizer can only say what it has learnt to say. This one has seen six colours, four shapes and four corners; a
# heart, a shape in the middle, other colours and other paper come back as the nearest things it knows.

# %%
from PIL import Image, ImageDraw


def strange_pictures():
    side = 192
    heart, middle, pink, night = (Image.new("RGB", (side, side), paper) for paper in ["#faf8f2"] * 3 + ["#20242c"])
    pen = ImageDraw.Draw(heart)
    pen.circle((34, 38), 18, "#d63031")
    pen.circle((62, 38), 18, "#d63031")
    pen.polygon([(18, 46), (78, 46), (48, 84)], "#d63031")
    ImageDraw.Draw(middle).circle((96, 96), 34, "#3069d6")
    ImageDraw.Draw(pink).rectangle((108, 12, 180, 84), "#ff9ecf")
    ImageDraw.Draw(night).circle((48, 144), 34, "#f6d53c")
    return [image.resize((48, 48), Image.Resampling.LANCZOS) for image in (heart, middle, pink, night)]


psnr_strange = there_and_back(strange_pictures())
print("PSNR in dB:", ", ".join(f"{value:.1f}" for value in psnr_strange))

# %% [markdown]
# ## The codebook
#
# What does a code stand for? Below are all codes that occur in 500 drawings, each as the mean of the patches that it is
# chosen for, most frequent first. Most stand for a part of a shape in its colour; empty paper has many, because the
# encoder also sees what is near.

# %%
import random
import sys

sys.path.append("models")
from shapes import draw, random_scene

rng = random.Random(0)
drawings = [draw(random_scene(rng, rng.choice((1, 2, 3)))) for _ in range(500)]
codes, pixels = tokenizer.tokenize(drawings), to_pixels(drawings)

grid, patch = config.grid, config.downsampling
patches = pixels.reshape(len(pixels), grid, patch, grid, patch, 3).swapaxes(2, 3).reshape(-1, patch, patch, 3)
uses = np.bincount(codes.ravel(), minlength=config.num_codes)
used = [code for code in np.argsort(-uses, kind="stable") if uses[code]]
means = {code: visible(patches[codes.ravel() == code].mean(axis=0)) for code in used}

columns = 32
tiles = np.ones((-(-len(used) // columns), patch + 2, columns, patch + 2, 3))  # with white lines between
for number, code in enumerate(used):
    tiles[number // columns, :patch, number % columns, :patch] = means[code]
plt.figure(figsize=(12, 3.2))
plt.imshow(tiles.reshape(-1, columns * (patch + 2), 3), interpolation="nearest")
plt.axis("off")
plt.show()
print(f"{len(used)} of {config.num_codes} codes occur")

# %% [markdown]
# Codes are vectors, and codes for similar things should be neighbours. Their first two principal components, each code
# in the mean colour of its patches:

# %%
codebook = np.asarray(tokenizer.params["codebook"])[used]
centred = codebook - codebook.mean(axis=0)
_, spread, directions = np.linalg.svd(centred, full_matrices=False)
x, y = (centred @ directions[:2].T).T
plt.figure(figsize=(5.5, 4))
colours = [np.clip(means[code].mean(axis=(0, 1)), 0, 1) for code in used]
plt.scatter(x, y, c=colours, s=40, edgecolors="grey", linewidths=0.4)
plt.title(f"{(spread[:2] ** 2).sum() / (spread**2).sum():.0%} of the variance", fontsize=9)
plt.xticks([])
plt.yticks([])
plt.show()

# %% [markdown]
# ## Codes as a map
#
# The codes of a picture lie on a grid and go to the Transformer row by row.

# %%
codes = tokenizer.tokenize(images)
label = {"ha": "center", "va": "center", "fontsize": 8, "bbox": {"fc": "white", "alpha": 0.7, "lw": 0, "pad": 1}}
_, axes = plt.subplots(1, 4, figsize=(12, 3))
for axis, image, own in zip(axes, images, codes):
    axis.imshow(visible(to_pixels([image])[0]), extent=(0, grid, grid, 0), interpolation="nearest")
    for number, code in enumerate(own[:64]):
        axis.text(number % grid + 0.5, number // grid + 0.5, code, **label)
    axis.set(xticks=range(grid + 1), yticks=range(grid + 1), xticklabels=[], yticklabels=[])
    axis.grid(color="grey", linewidth=0.5)
plt.show()

# %% [markdown]
# So pictures can be edited without a pixel in hand. The upper half of one picture's codes and the lower half of
# another's:

# %%
half = codes.shape[1] // 2
collage = np.concatenate([codes[0][:half], codes[1][half:]])
show([tokenizer.detokenize(np.stack([codes[0], codes[1], collage]))], [""], size=2)

# %% [markdown]
# A code is no stamp: the decoder reads it together with its neighbours. Here the codes of a circle become those of a
# star one after another, in the order in which the Transformer would write them.

# %%
corner = [row * grid + column for row in range(grid // 2) for column in range(grid // 2)]  # the top left quarter
steps = np.tile(codes[0], (len(corner) + 1, 1))
for number in range(len(corner)):
    steps[number + 1 :, corner[number]] = codes[3][corner[number]]
steps = steps[:: max(1, len(corner) // 8)]
morphed = tokenizer.decode_codes(steps)
show([visible(morphed)], [""], size=2)

# %% [markdown]
# ## What a token sees
#
# How strongly does each pixel move the latent vector at one place of the grid, from which its code is picked? That is a
# Jacobian, and the encoder is a plain JAX function.

# %%
import jax

from chameleon_jax import VQModel

vq = VQModel(config)
picture = to_pixels(images)[1]


@jax.jit
def influence(pixels, row, column):
    """|d latent[row, column] / d pixel|, float32 [h, w]."""

    def latent(pixels):
        return vq.apply({"params": tokenizer.params}, pixels[None], method="latents")[0, row, column]

    jacobian = jax.jacrev(latent)(pixels)  # [code_dim, h, w, 3]
    return (jacobian**2).sum(axis=(0, 3)) ** 0.5


places = [(0, 0), (0, grid - 1), (grid // 2, grid // 2)]
seen = [np.asarray(influence(picture, *place)) for place in places]
_, axes = plt.subplots(1, 4, figsize=(12, 3))
axes[0].imshow(visible(picture), interpolation="nearest")
axes[0].set_title("the picture")
for axis, (row, column), values in zip(axes[1:], places, seen):
    axis.imshow(values, cmap="magma", interpolation="nearest")
    axis.add_patch(plt.Rectangle((column * patch - 0.5, row * patch - 0.5), patch, patch, ec="cyan", fc="none"))
    own = (values**2)[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].sum() / (values**2).sum()
    axis.set_title(f"code {row}, {column}: {own:.0%} from its own patch", fontsize=9)
for axis in axes:
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# And the other way: which pixels did the decoder paint differently at each step from circle to star? Convolutions carry
# a code a few patches far, and group normalisation, which takes its statistics from the whole picture, a little of it
# everywhere.

# %%
difference = np.abs(np.diff(visible(morphed), axis=0)).mean(axis=-1)
_, axes = plt.subplots(1, len(difference), figsize=(2.2 * len(difference), 2.2))
for axis, values, there in zip(axes, difference, corner):
    axis.imshow(values, cmap="magma", interpolation="nearest")
    box = (there % grid * patch - 0.5, there // grid * patch - 0.5)
    axis.add_patch(plt.Rectangle(box, patch, patch, ec="cyan", fc="none"))
    axis.set(xticks=[], yticks=[])
plt.show()
