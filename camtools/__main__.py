"""`python -m camtools` is the `camtools` command."""

from camtools.cli import main

if __name__ == "__main__":
    main()
