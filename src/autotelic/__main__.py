"""`python -m autotelic` is the `autotelic` command."""

import sys

from autotelic.cli.main import main

if __name__ == "__main__":  # engines start processes that import this file again
    sys.exit(main())
