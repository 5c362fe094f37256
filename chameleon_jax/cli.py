"""The `chameleon` command: parse, call, print. What the subcommands do is in `commands.py`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chameleon_jax import config as configs
from chameleon_jax.config import ConfigError, find_configs, read_config
from chameleon_jax.errors import ChameleonError

EXTRAS = ("sklearn", "matplotlib")
"""Packages that only the extra `demo` installs: the embedded digits and the report's charts need them."""


@dataclass(frozen=True)
class _Command:
    summary: str
    config: type
    run: Callable[..., Any]
    arguments: str
    example: str


def _commands() -> dict[str, _Command]:
    def lazily(module: str, name: str) -> Callable[..., Any]:
        def call(*args):
            import importlib

            return getattr(importlib.import_module(module), name)(*args)

        return call

    def with_recipe(summary: str, config: type, name: str, recipe: str) -> _Command:
        return _Command(
            summary, config, lazily("chameleon_jax.commands", name), "CONFIG", f"configs/demo/{recipe}.yaml"
        )

    return {
        "demo": _Command(
            "train and judge a small Chameleon from nothing; some minutes",
            configs.DemoCommand, lazily("chameleon_jax.demo.run", "run_demo"), "[CONFIG]", "",
        ),
        "train-text-tokenizer": with_recipe(
            "learn text pieces (SentencePiece BPE)",
            configs.TextTokenizerCommand, "train_text_tokenizer", "text_tokenizer",
        ),
        "train-image-tokenizer": with_recipe(
            "learn image codes (VQGAN)",
            configs.ImageTokenizerCommand, "train_image_tokenizer", "image_tokenizer",
        ),
        "prepare": with_recipe(
            "tokenize and pack documents for training", configs.PrepareCommand, "prepare", "prepare"
        ),
        "train": with_recipe("train a Transformer on prepared data", configs.TrainConfig, "train", "train"),
        "generate": _Command(
            "continue a document of text and pictures", configs.GenerationConfig,
            lazily("chameleon_jax.commands", "generate"), "MODEL [PROMPT]",
            'out/demo/run "⟨image⟩ Which digit is this?" --image digit.png',
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


def _command_help(name: str, command: _Command, path: str | None) -> None:
    """Prints usage, then every key with its type, its meaning and its value in the YAML file (or the example's)."""
    import contextlib

    import tyro

    print(f"{command.summary}\nexample: chameleon {name} {command.example}".rstrip() + "\n")
    if name == "generate":
        print(
            "  MODEL          a folder that `chameleon train` wrote\n"
            "  PROMPT         text; ⟨image⟩ or <image> marks where each picture goes\n"
            "  --image FILE   a picture for the prompt; repeat for more\n"
            "  --output DIR   where pictures are written (default: out/generated)\n"
            "  --config FILE  a YAML file of the keys below\n"
        )
    if path is None and command.arguments == "CONFIG":
        path = find_configs().parent / command.example
    default = {"default": read_config(command.config, path)} if path else {}
    with contextlib.suppress(SystemExit):
        tyro.cli(
            command.config, args=["--help"], prog=f"chameleon {name} {command.arguments}", description="",
            config=(tyro.conf.FlagConversionOff,), **default,
        )  # fmt: skip


def _split(arguments: list[str], own: tuple[str, ...]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Sorts arguments into positional ones, the values of the options in `own`, and config overrides."""
    positional: list[str] = []
    options: dict[str, list[str]] = {name: [] for name in own}
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
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
    own = ("--image", "--output", "--config") if name == "generate" else ()
    positional, options, overrides = _split(arguments, own)
    if name == "generate":
        if not 1 <= len(positional) <= 2:
            raise ConfigError(f"expected MODEL and PROMPT (quote the prompt), got {positional or 'nothing'}")
        path = options["--config"][-1] if options["--config"] else None
        output = options["--output"][-1] if options["--output"] else "out/generated"
        config = read_config(command.config, path, overrides)
        command.run(config, positional[0], "".join(positional[1:]), options["--image"], output)
        return
    if len(positional) > 1 or (not positional and command.arguments == "CONFIG"):
        raise ConfigError(f"expected one YAML file, got {positional or 'none'}; for example {command.example}")
    figures = command.run(read_config(command.config, positional[0] if positional else None, overrides))
    for key, value in figures.items():
        print(f"{key:<32}{value:.4g}" if isinstance(value, float) else f"{key:<32}{value}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 failed, 2 the command itself was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = _commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = arguments
    # Libraries log the tracebacks of errors that are raised as well, and are explained below.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        if name not in commands:
            raise ConfigError(f"{name!r} is no command; there are {', '.join(commands)}")
        if "-h" in rest or "--help" in rest:
            files = [argument for argument in rest if argument.endswith((".yaml", ".yml"))]
            _command_help(name, commands[name], files[0] if files else None)
            return 0
        _run(name, commands[name], rest)
        return 0
    except ConfigError as error:
        print(f"chameleon {name}: {error}", file=sys.stderr)
        return 2
    except ChameleonError as error:
        print(f"chameleon {name}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRAS:
            raise
        print(
            f"chameleon {name}: needs {error.name}, which is not installed; pip install 'chameleon-jax[demo]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"\nchameleon {name}: stopped", file=sys.stderr)
        return 130
