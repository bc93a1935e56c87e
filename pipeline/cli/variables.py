"""The environment variables that sqshpipe reads, so that a misspelt one is noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pipeline.cli import output

KNOWN = frozenset(
    {
        *("SQSHPIPE_CACHE", "SQSHPIPE_CONFIG", "SQSHPIPE_KEY", "SQSHPIPE_KEY_PASSPHRASE", "SQSHPIPE_METRICS"),
        *("SQSHPIPE_NODE_DIR", "SQSHPIPE_PLAIN_HTTP", "SQSHPIPE_REGISTRY", "SQSHPIPE_REGISTRY_PASSWORD"),
        *("SQSHPIPE_REGISTRY_USER", "SQSHPIPE_SCRATCH", "SQSHPIPE_SHARED", "SQSHPIPE_STORE"),
        "SQSHPIPE_UNTIL_SCAN",
    }
)


def warn_of_misspelt(environment: Mapping[str, str]) -> None:
    """Warn of variables that nothing reads and whose names are close to one that is read.

    Others may be a user's own: images.yaml can name any variable for a secret or a webhook.
    """
    unknown = sorted(name for name in environment if name.startswith("SQSHPIPE_") and name not in KNOWN)
    if not unknown or output.is_quiet():
        return
    import difflib

    for name in unknown:
        close = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.8)
        if close and not name.startswith(f"{close[0]}_"):
            text = f"the variable {name} is not read: did you mean {close[0]}?"
            event = json.dumps({"event": text, "level": "warning"})
            output.note(event if output.logs_json() else f"warning: {text}")
