"""Checks and figures for one GPU, in stages: `python -m chameleon_jax.bench.gpu`, or `make gpu`.

Runs from a checkout on a machine with CUDA and little else: nothing is installed, and each stage says what it lacks.
A stage is a function of a `Record` (`record.py`) and one entry of `STAGES` (`stages.py`).
"""
