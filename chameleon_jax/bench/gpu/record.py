"""What a stage has found so far, in a JSON file that is written anew after every check."""

from __future__ import annotations

import fnmatch
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from chameleon_jax.bench.environment import environment
from chameleon_jax.errors import ChameleonError, printable


class Record:
    """The figures of one stage; use as a context manager.

    Attributes:
      rehearsal: whether this is a CPU that tries the code out, with tiny sizes.
      recipes: folder with recipes for the demo; empty for the shipped ones.
      only: names of the checks to run, `*` standing for anything; all checks if empty.
      values: what is written. `status` is 'passed', 'failed', or 'incomplete' if a check was left out.
    """

    def __init__(
        self, path: Path, stage: str, seconds: float, *, rehearsal: bool = False, recipes: str = "",
        only: Sequence[str] = (),
    ):  # fmt: skip
        self.path, self.rehearsal, self.recipes, self.only = path, rehearsal, recipes, tuple(only)
        self._names: list[str] = []
        self._began = time.monotonic()
        self._deadline = self._began + seconds
        self.values: dict[str, Any] = {"stage": stage, "status": "running", "rehearsal": rehearsal, "checks": []}
        if self.only:
            self.values["only"] = list(self.only)

    def __enter__(self) -> Record:
        self.write()
        if not self.rehearsal and jax.default_backend() != "gpu":
            raise ChameleonError(f"JAX finds no GPU, but {jax.devices()[0].device_kind}; to try the code: --rehearse")
        self.values |= environment()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        checks = self.values["checks"]
        problems = [f"{check['check']}: {check['problem']}" for check in checks if check.get("problem")]
        if error is not None:
            problems.append(_message(error))
        elif self.only and not checks:
            problems.append(f"no check is named {' or '.join(self.only)}; there are: {'; '.join(self._names)}")
        left_out = any("left_out" in check for check in checks)
        self.values["status"] = "failed" if problems else "incomplete" if left_out else "passed"
        if problems:
            self.values["problem"] = "; ".join(problems)
        self.write()

    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def chosen(self, name: str) -> bool:
        """Whether a check is to be run."""
        return not self.only or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.only)

    def check(self, name: str, work: Callable[[], dict[str, Any]], about: float = 0) -> dict[str, Any] | None:
        """Adds the figures that `work` returns. What it raises, or says under 'problem', fails the stage, which goes
        on with the next check.

        Args:
          about: seconds that it takes; with less than that left, it is left out.

        Returns:
          the figures; None if it was not chosen, was left out, or raised.
        """
        self._names.append(name)
        if not self.chosen(name):
            return None
        if self.seconds_left() < about:
            return self._add(check=name, left_out=f"takes about {about:.0f} s, {self.seconds_left():.0f} s are left")
        began, figures = time.monotonic(), None
        try:
            figures = work()
        except Exception as error:
            traceback.print_exc()
            problem = {"problem": _message(error)}
            error.__traceback__ = None  # or its frames would keep their arrays on the device
        gc.collect()
        self._add(check=name, seconds=round(time.monotonic() - began, 1), **(problem if figures is None else figures))
        return figures

    def update(self, **figures: Any) -> None:
        """Adds figures of the whole stage."""
        self.values |= figures
        self.write()

    def _add(self, **check: Any) -> None:
        check = {name: value for name, value in check.items() if value is not None}
        self.values["checks"].append(check)
        print(json.dumps(check), flush=True)
        self.write()

    def write(self) -> None:
        self.values["seconds"] = round(time.monotonic() - self._began, 1)
        tmp = self.path.with_suffix(".tmp")
        tmp.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")
        os.replace(tmp, self.path)


def _message(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}", 600)


def unless_too_large(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` returns. That something does not fit into the GPU's memory is a finding, no failure."""
    try:
        return measure()
    except jax.errors.JaxRuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        return {"does_not_fit": str(error).splitlines()[0][:200]}
