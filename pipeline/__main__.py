"""``python -m pipeline`` is ``sqshpipe``."""

from pipeline.cli.app import main

if __name__ == "__main__":
    main()
