"""The `autotelic` command, and `python -m autotelic`."""

import sys


def main() -> int:
    """Run the command line; a Ctrl-C that comes while it is being imported is one line as well."""
    try:
        from autotelic.cli.main import main as run
    except KeyboardInterrupt:
        print("autotelic: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":  # engines start processes that import this file again
    sys.exit(main())
