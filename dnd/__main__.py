"""`python -m dnd` is `dnd`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.pop(0)  # the current folder: what lies there stands before no package

    from dnd.cli.main import main

    main()
