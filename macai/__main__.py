"""`python -m macai` is `macai`."""

from macai.cli.app import main

if __name__ == "__main__":
    main()
