"""Facts about a store in Prometheus' text format, for a textfile collector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from pipeline.errors import PublishError
from pipeline.store import leases, scrub
from pipeline.store.events import moment
from pipeline.store.store import Listed, Store
from pipeline.store.usage import usage


def prometheus(store: Store) -> str:
    """The text exposition format, version 0.0.4: gauges by image, channel and state.

    Times are seconds since 1970, sizes are bytes. Names need no escaping: the store takes no others.
    """
    lines: list[Listed] = []
    unreadable = 0
    for image in store.images():
        try:
            lines += store.listed(image)
        except PublishError:  # noqa: PERF203 - the other images count all the same
            unreadable += 1
    states = Counter((line.image, line.state) for line in lines)
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
                f'image="{image}",channel="{channel}"': _seconds(line.created)
                for (image, channel), line in named.items()
            },
        ),
        *_gauge("leases", "Leases that exist.", {"": len(leases.read_all(store.layout))}),
        *_gauge("unreadable_images", "Images with records or events that cannot be read.", {"": unreadable}),
    ]
    finished = scrub.last_finding(store.layout)
    if finished is not None:
        text += _gauge("scrubbed_timestamp_seconds", "When a scrub last found a file sound.", {"": finished})
    return "\n".join(text) + "\n"


def _gauge(name: str, what: str, values: Mapping[str, float]) -> Iterable[str]:
    full = f"sqshpipe_store_{name}"
    yield f"# HELP {full} {what}"
    yield f"# TYPE {full} gauge"
    for labels, value in sorted(values.items()):
        yield f"{full}{{{labels}}} {value:.15g}" if labels else f"{full} {value:.15g}"


def _seconds(created: str) -> float:
    try:
        return moment(created).timestamp()
    except ValueError:
        return datetime.fromtimestamp(0, timezone.utc).timestamp()
