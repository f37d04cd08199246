"""`python -m dnd` is `dnd`."""

from dnd.cli.main import main

if __name__ == "__main__":
    main()
