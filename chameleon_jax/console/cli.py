"""The `chameleon` command: parse, call, print. What the subcommands do is in `commands.py`."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_jax import config as configs
from chameleon_jax.config import ConfigError, find_configs, read_config, require
from chameleon_jax.errors import LONGEST_MESSAGE, ChameleonError, Stopped, printable
from data_pipeline import config as data_configs

COMMANDS = "chameleon_jax.console.commands"

EXTRAS = {
    "sklearn": "demo", "matplotlib": "demo", "tokenizers": "released", "huggingface_hub": "released",
    "tensorboardX": "tensorboard", "wandb": "wandb",
}  # fmt: skip
"""Packages that only an extra installs."""


@dataclass(frozen=True)
class _Command:
    summary: str
    config: type
    run: Callable[..., Any]
    arguments: str
    example: str
    details: tuple[str, ...] = ()
    """Meaning of what is no key of the config."""
    options: tuple[str, ...] = ()
    """Options that are no keys of the config; each may be repeated."""
    count: tuple[int, int] | None = None
    """How many arguments, at least and at most. Without it there is one, a YAML file."""
    presets: str = ""
    """Folder in configs whose YAML files may also be given by name."""
    json: bool = False
    """Print the figures as JSON."""
    then: tuple[str, ...] = ()
    """What can be typed next, with `{output}` for that of the config."""

    def find(self, given: str) -> str | Path:
        """The YAML file that was meant: a path, or the name of a preset."""
        if not self.presets or given.endswith((".yaml", ".yml")):
            return given
        files = {path.stem: path for path in sorted((find_configs() / self.presets).glob("*.yaml"))}
        require(given in files, "CONFIG", given, f"must be a YAML file or one of {', '.join(files)}")
        return files[given]


def _commands() -> dict[str, _Command]:
    def lazily(module: str, name: str) -> Callable[..., Any]:
        def call(*args, **options):
            import importlib

            return getattr(importlib.import_module(module), name)(*args, **options)

        return call

    def with_recipe(summary: str, config: type, name: str, recipe: str, *then: str) -> _Command:
        run = lazily(COMMANDS, name)
        return _Command(summary, config, run, "CONFIG", f"configs/demo/{recipe}.yaml", then=then)

    return {
        "demo": _Command(
            "train and judge a small Chameleon from nothing; some minutes",
            configs.DemoCommand, lazily("chameleon_jax.demo.run", "run_demo"), "[CONFIG]", "",
        ),
        "train-text-tokenizer": with_recipe(
            "learn text pieces (SentencePiece BPE)",
            data_configs.TextTokenizerCommand, "train_text_tokenizer", "text_tokenizer",
            "prepare CONFIG --text_tokenizer {output}",
        ),
        "train-image-tokenizer": with_recipe(
            "learn image codes (VQGAN)",
            data_configs.ImageTokenizerCommand, "train_image_tokenizer", "image_tokenizer",
            "prepare CONFIG --image_tokenizer {output}",
        ),
        "prepare": with_recipe(
            "tokenize and pack documents for training", data_configs.PrepareCommand, "prepare", "prepare",
            "show {output}", "train CONFIG --data {output}",
        ),
        "show": _Command(
            "print rows of prepared data, prompts and answers told apart", data_configs.ShowCommand,
            lazily(COMMANDS, "show"), "DATA", "out/demo/rows --source digit_sums --rows 3,17",
            (
                "DATA           a folder that `chameleon prepare` wrote",
                "--rows N,N,…   numbers of rows of the source, from 0 (default: 0)",
            ),
            ("--rows",), (1, 1),
        ),
        "train": with_recipe(
            "train a Transformer on prepared data", configs.TrainConfig, "train", "train",
            'generate {output} "Once"', "inspect {output}",
        ),
        "compile": _Command(
            "compile the train step for a pod that is not there: does it fit, what moves, how fast could it be",
            configs.TrainConfig, lazily("chameleon_jax.compilation.run", "compile_command"), "CONFIG",
            "configs/pretrain_7b.yaml --topology v5p:4x4x8",
            (
                "CONFIG           a YAML file of `chameleon train`, with sequence_length",
                "--topology NAME  TPUs, such as v5e:16x16, v5p:4x4x8, v6e-256 (default: the devices at hand)",
                "--slices N       pods of that topology, joined by the data centre's network",
                "--json true      one JSON object instead of lines for people",
                "--save FILE      the executable, for jax.experimental.serialize_executable",
            ),
            ("--topology", "--slices", "--json", "--save"),
        ),
        "generate": _Command(
            "continue a document of text and pictures", configs.GenerationConfig,
            lazily(COMMANDS, "generate"), "MODEL and PROMPT (quote the prompt)",
            'out/demo/run "⟨image⟩ Which digit is this?" --image digit.png',
            (
                "MODEL          a folder that `chameleon train` wrote, or one in Hugging Face's or Meta's format; or "
                "hf://org/name",
                "PROMPT         text; ⟨image⟩, <image> or <|image|> marks where each picture goes. Put -- before MODEL",
                "               if it reads like an option",
                "--image FILE   a picture for the prompt; repeat for more",
                "--output DIR   where pictures are written (default: out/generated)",
                "--adapters DIR low-rank adapters to add, such as `adapters` of a run with model.lora.rank",
                "--config FILE  a YAML file of the keys below",
            ),
            ("--image", "--output", "--adapters", "--config"), (1, 2),
        ),
        "convert": _Command(
            "write a model in another format", configs.ConvertCommand, lazily(COMMANDS, "convert"),
            "SRC and DST", "models/chameleon-7b models/chameleon-7b-jax --format chameleon",
            (
                "SRC            a model folder: ours, Hugging Face's or Meta's; which one is found out; or hf://org/name",
                "DST            the folder to write; nothing may be there yet",
            ),
            count=(2, 2),
        ),
        "bench weights": _Command(
            "measure converting and loading a checkpoint; prints JSON", configs.BenchCommand,
            lazily("chameleon_jax.bench.weights", "bench_weights"), "", "", count=(0, 0), json=True,
        ),
        "bench train": _Command(
            "measure the train step; prints JSON", configs.BenchTrainConfig,
            lazily("chameleon_jax.bench.train", "bench_train"), "CONFIG", "cpu_25m --steps 5",
            (
                "CONFIG         a YAML file, or the name of one in configs/bench",
                "--profile DIR  write a trace of one more repeat, for TensorBoard or Perfetto",
            ),
            ("--profile",), presets="bench", json=True,
        ),
        "inspect": _Command(
            "say what a model folder holds, and what it lacks", configs.InspectCommand,
            lazily(COMMANDS, "inspect"), "PATH", "models/chameleon-7b",
            ("PATH           a model folder: ours, Hugging Face's or Meta's; or hf://org/name",), count=(1, 1),
        ),
    }  # fmt: skip


def _help() -> str:
    commands = _commands()
    lines = [
        "usage: chameleon COMMAND [ARGUMENTS] [--key value …]",
        "",
        "Chameleon in JAX: one Transformer that reads and writes documents of text and pictures in any order.",
        "",
        "commands:",
        *(f"  {name:<23}{command.summary}" for name, command in commands.items()),
        "",
        "Keys are those of the command's YAML file; `chameleon COMMAND --help` lists them with their meaning.",
        "Start with `chameleon demo`.",
    ]
    return "\n".join(lines)


def _usage(command: _Command) -> str:
    return " ".join(word for word in command.arguments.split(" (")[0].split() if word != "and")


def _command_help(name: str, command: _Command, path: str | None) -> None:
    """Prints usage, then every key with its type, its meaning and its value in the YAML file (or the example's)."""
    import contextlib

    import tyro

    print(f"{command.summary}\nexample: chameleon {name} {command.example}".rstrip() + "\n")
    if command.details:
        print("".join(f"  {line}\n" for line in command.details))
    if path is None and command.arguments == "CONFIG":
        given = command.example.split()[0]
        path = command.find(given) if command.presets else find_configs().parent / given
    default = {"default": read_config(command.config, path)} if path else {}
    with contextlib.suppress(SystemExit):
        tyro.cli(
            command.config, args=["--help"], prog=f"chameleon {name} {_usage(command)}", description="",
            config=(tyro.conf.FlagConversionOff,), **default,
        )  # fmt: skip


_OPTION = re.compile(r"--\w[\w.-]*(=|$)")


def _split(arguments: list[str], own: tuple[str, ...]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Sorts arguments into positional ones, the values of the options in `own`, and config overrides.

    What only begins with dashes, such as a prompt "--- a/file.py", is no option; after `--` nothing is.
    """
    positional: list[str] = []
    options: dict[str, list[str]] = {name: [] for name in own}
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return positional + rest, options, overrides
        if not _OPTION.match(argument):
            positional.append(argument)
            continue
        name, separator, value = argument.partition("=")
        if not separator:
            if not rest:
                raise ConfigError(f"{name}: a value must follow")
            value = rest.pop(0)
        if name in own:
            options[name].append(value)
        else:
            overrides += [name, value]
    return positional, options, overrides


def _run(name: str, command: _Command, arguments: list[str]) -> None:
    positional, options, overrides = _split(arguments, command.options)
    if command.count is None:
        if len(positional) > 1 or (not positional and command.arguments == "CONFIG"):
            raise ConfigError(f"expected one YAML file, got {positional or 'none'}; for example {command.example}")
        path, positional = (command.find(positional[0]) if positional else None), []
    else:
        low, high = command.count
        if not low <= len(positional) <= high:
            raise ConfigError(f"expected {command.arguments or 'no argument'}, got {positional or 'nothing'}")
        path = (options.pop("--config", None) or [None])[-1]
    config = read_config(command.config, path, overrides)
    given = {name.removeprefix("--"): values for name, values in options.items() if values}
    _print_figures(command, config, command.run(config, *positional, **given))


def _print_figures(command: _Command, config: Any, figures: dict[str, Any]) -> None:
    """What a command found out, and what can be typed next."""
    if command.json:
        print(json.dumps(figures, indent=2))
        return
    for key, value in figures.items():
        print(f"{key:<32}{value:.4g}" if isinstance(value, float) else f"{key:<32}{printable(value, LONGEST_MESSAGE)}")
    if figures and command.then:  # of several processes one speaks
        print("\nnext:")
        for line in command.then:
            print(f"  chameleon {line.format(output=shlex.quote(config.output))}")


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    print(f"warning: {printable(message, LONGEST_MESSAGE)}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 failed, 2 the command itself was wrong,
    130 interrupted by Ctrl-C (training saves first), 143 training stopped by SIGTERM after saving everything."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = _commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = arguments
    if rest and f"{name} {rest[0]}" in commands:  # such as `bench train`
        name, rest = f"{name} {rest[0]}", rest[1:]
    # Libraries log the tracebacks of errors that are raised as well, and are explained below.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        if name not in commands:
            raise ConfigError(f"{name!r} is no command; there are {', '.join(commands)}")
        before = rest[: rest.index("--")] if "--" in rest else rest
        if "-h" in before or "--help" in before:
            files = [argument for argument in rest if argument.endswith((".yaml", ".yml"))]
            _command_help(name, commands[name], files[0] if files else None)
            return 0
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _run(name, commands[name], rest)
        return 0
    except ConfigError as error:
        print(f"chameleon {name}: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"chameleon {name}: {error}", file=sys.stderr)
        return error.status
    except ChameleonError as error:
        print(f"chameleon {name}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(
            f"chameleon {name}: needs {error.name}, which is not installed; pip install 'chameleon-jax[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"\nchameleon {name}: stopped", file=sys.stderr)
        return 130
