"""`python -m chameleon_jax.bench.gpu [STAGE …]`: see `--help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chameleon_jax.bench.gpu.run import run_stages, use_wheels
from chameleon_jax.bench.gpu.stages import STAGES
from chameleon_jax.bench.gpu.table import publish, table


def main(arguments: list[str] | None = None) -> int:
    """Runs the stages that are named, or all; 0 if each of them has passed or was left out."""
    parser = argparse.ArgumentParser(
        prog="python -m chameleon_jax.bench.gpu", description="Checks and figures for one GPU, in stages.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{stage.name:<12}{stage.title}; {stage.limit} s at most" for stage in STAGES),
    )  # fmt: skip
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="stages to run (default: all)")
    parser.add_argument("--output", type=Path, default=Path("out/gpu"), help="folder for records (default: out/gpu)")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="write figures and table there, too")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="leave out stages that would not fit")
    parser.add_argument("--again", action="store_true", help="run stages that have passed, too")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CHECK",
        help="run just the checks of this name, '*' standing for anything; may be given more than once",
    )  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--recipes", default="", metavar="FOLDER", help="recipes for the demo (default: configs/demo)")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of what is not installed")
    options = parser.parse_args(arguments)
    unknown = set(options.stages) - {stage.name for stage in STAGES}
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stage.name for stage in STAGES)}")
    if options.wheels:
        use_wheels(options.wheels, options.output / "packages")
    records = run_stages(
        options.stages, options.output, budget=options.budget, again=options.again, rehearse=options.rehearse,
        recipes=options.recipes, only=options.only,
    )  # fmt: skip
    print("\n" + table(records), flush=True)
    if options.publish:
        print(f"Wrote {publish(records, options.publish)}.")
    return 0 if all(record["status"] in ("passed", "skipped") for record in records.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
