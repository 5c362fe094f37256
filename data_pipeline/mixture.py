"""Mixtures of prepared rows, as pure functions of the row number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grain

from chameleon_jax.config import ConfigError, StageConfig, require, stage_ends


def mix(
    sources: Mapping[str, grain.MapDataset], stages: Sequence[StageConfig], rows: int, seed: int
) -> grain.MapDataset:
    """The rows of a whole training run, in order.

    Each source is reshuffled in every epoch; each stage samples from the sources with its own weights.

    Args:
      sources: datasets of rows by name.
      stages: mixtures with their shares of all rows.
      rows: total number of rows of the run.
      seed: of the shuffling.

    Returns:
      a dataset of length `rows` whose element i depends only on i and the arguments.

    Raises:
      ConfigError: if there is no stage, or one names a source that was not prepared.
    """
    require(len(stages) > 0, "stages", [], f"must list a mixture of the prepared sources: {', '.join(sources)}")
    parts, start = [], 0
    for number, (stage, stop) in enumerate(zip(stages, stage_ends(stages, rows), strict=True)):
        for name in stage.weights:
            if name not in sources:
                raise ConfigError(
                    f"stages.{number}.weights.{name}: the prepared data has no such source; it has {', '.join(sources)}"
                )
        chosen = {name: weight for name, weight in stage.weights.items() if weight > 0}
        shuffled = [
            sources[name].seed(seed + 1000 * number + place).shuffle().repeat()
            for place, name in enumerate(sorted(chosen))
        ]
        mixed = grain.MapDataset.mix(shuffled, weights=[chosen[name] for name in sorted(chosen)])
        parts.append(mixed[: stop - start])
        start = stop
    return grain.MapDataset.concatenate(parts)
