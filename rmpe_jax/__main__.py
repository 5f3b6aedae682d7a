"""``python -m rmpe_jax`` is the command ``rmpe``."""

import sys

from rmpe_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
