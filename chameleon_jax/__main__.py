"""`python -m chameleon_jax` is the command `chameleon`."""

import sys

from chameleon_jax.console.cli import main

sys.exit(main())
