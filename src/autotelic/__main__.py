"""`python -m autotelic` is the `autotelic` command."""

import sys

from autotelic.cli.main import main

sys.exit(main())
