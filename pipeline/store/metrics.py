"""Facts about a store in Prometheus' text format, for a textfile collector."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from pipeline.errors import PublishError
from pipeline.store import leases, scrub
from pipeline.store.events import moment
from pipeline.store.store import ReleaseRow, Store
from pipeline.store.usage import usage


def prometheus(store: Store, *, unwatched: Mapping[str, float] = MappingProxyType({})) -> str:
    """The text exposition format, version 0.0.4: gauges by image, channel and state.

    `unwatched`: from when on nobody watches a release's image for new findings, by the release's name.
    Times are seconds since 1970, sizes are bytes. Names need no escaping: the store takes no others.
    """
    lines: list[ReleaseRow] = []
    unreadable = 0
    for image in store.images():
        try:
            lines += store.listed(image)
        except PublishError:  # noqa: PERF203 - the other images count all the same
            unreadable += 1
    states = Counter((line.image, line.state) for line in lines)
    now = time.time()
    held = leases.read_all(store.layout)
    named = {(line.image, channel): line for line in lines for channel in line.channels}
    cost = usage(store.layout)
    text = [
        *_gauge(
            "releases",
            "Releases by state.",
            {f'image="{image}",state="{state}"': count for (image, state), count in states.items()},
        ),
        *_gauge("bytes", "Bytes of all releases, shared ones once.", {"": cost.total}),
        *_gauge(
            "image_bytes",
            "Bytes of the releases of an image.",
            {f'image="{image}"': size for image, size in cost.images.items()},
        ),
        *_gauge(
            "channel_created_timestamp_seconds",
            "When the release was made that a channel names.",
            {
                f'image="{image}",channel="{channel}"': moment(line.created).timestamp()
                for (image, channel), line in named.items()
            },
        ),
        *_gauge(
            "channel_scanned_timestamp_seconds",
            "When the image was scanned of which the release was made that a channel names.",
            _scanned(store, named),
        ),
        *_gauge(
            "channel_unwatched_timestamp_seconds",
            "From when on nobody watches the image for new findings whose release a channel names.",
            {
                f'image="{image}",channel="{channel}"': unwatched[f"{image}:{line.version}"]
                for (image, channel), line in named.items()
                if f"{image}:{line.version}" in unwatched
            },
        ),
        *_gauge(
            "damaged_releases",
            "Releases whose bytes a scrub found damaged.",
            {"": sum(count for (_, state), count in states.items() if state == "damaged")},
        ),
        *_gauge("leases", "Leases that exist.", {"": len(held)}),
        *_gauge(
            "leases_expired", "Leases that no longer count.", {"": sum(one.expires < now for one in held)}
        ),
        *_gauge("unreadable_images", "Images with records or events that cannot be read.", {"": unreadable}),
    ]
    finished = scrub.last_finding(store.layout)
    if finished is not None:
        text += _gauge("scrubbed_timestamp_seconds", "When a scrub last found a file sound.", {"": finished})
    return "\n".join(text) + "\n"


def _scanned(store: Store, named: Mapping[tuple[str, str], ReleaseRow]) -> Mapping[str, float]:
    """When each channel's release was scanned, in seconds; those that never were, or data, are left out."""
    found = {}
    for (image, channel), line in named.items():
        with contextlib.suppress(PublishError):
            release = store.release(image, line.version, line.platform)
            when = "" if release is None else str(release.scan.get("completed_at", ""))
            if seconds := moment(when).timestamp():
                found[f'image="{image}",channel="{channel}"'] = seconds
    return found


def _gauge(name: str, what: str, values: Mapping[str, float]) -> Iterable[str]:
    full = f"sqshpipe_store_{name}"
    yield f"# HELP {full} {what}"
    yield f"# TYPE {full} gauge"
    for labels, value in sorted(values.items()):
        yield f"{full}{{{labels}}} {value:.15g}" if labels else f"{full} {value:.15g}"
