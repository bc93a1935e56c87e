"""``python -m sqshpipe`` is the command ``sqshpipe``; the code is in the package ``pipeline``."""

from __future__ import annotations

from pipeline.__main__ import main

if __name__ == "__main__":
    main()
