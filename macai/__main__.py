"""`macai`, and `python -m macai`."""

import sys


def main() -> None:
    """Run the command line and exit; Ctrl-C while it is being imported is Ctrl-C as well."""
    try:
        from macai.cli.app import main as run

        run()
    except KeyboardInterrupt:  # a command that has begun says so itself
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
