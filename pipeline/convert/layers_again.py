"""The `ranges` and `layers` of releases that have none beside them, made again: `store rebuild --layers`.

The image is converted again in scratch, with the options that the record names. Only when this gives the very
bytes of the release, what the conversion says about them is attached to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.config.document import ConvertModel
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert, recorded
from pipeline.convert.from_store import StoredLayers, packed_otherwise
from pipeline.convert.packing import codec_of
from pipeline.errors import ConfigError
from pipeline.oci.entry import DEFAULT_LIMITS, Limits
from pipeline.oci.source import ImageSource
from pipeline.progress import NO_TASK, Task
from pipeline.store import restore, trust
from pipeline.store.layout import LAYERS, RANGES
from pipeline.store.reading import load, read_record
from pipeline.store.record import Record, mapping
from pipeline.store.sharing import is_vouched, layers_of, ranges_of, with_attached
from pipeline.store.store import Store
from pipeline.system.scratch import scratch_folder

_UNKNOWN = "its record does not name the options of a conversion that this version knows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Makes what is missing in one store; `image` opens the image of a record in its registry."""

    store: Store
    image: Callable[[Record], AbstractContextManager[ImageSource]]
    cache: Path
    scratch: Path
    synced: bool = False
    limits: Limits = DEFAULT_LIMITS

    def missing(self) -> Iterator[Record]:
        """The records of releases made of packs that lack one of the two; of those with sound bytes.

        Raises UnreadableError for an event or a record that cannot be read.
        """
        layout = self.store.layout
        for image in layout.images():
            for version, standing in load(layout, image).state.newest_first():
                for platform in standing.platforms:
                    if standing.state(platform) in ("pruned", "damaged"):
                        continue
                    record = read_record(layout, image, version, platform)
                    if record is not None and self._lacks(record):
                        yield record

    def _lacks(self, record: Record) -> bool:
        layout = self.store.layout
        if not is_vouched(layout, record, synced=self.synced):
            return False
        named = with_attached(layout, record, self.store.required)
        return ranges_of(layout, named) is None or layers_of(layout, named, synced=self.synced) is None

    def make(self, record: Record, task: Task = NO_TASK) -> str:
        """Make and attach what is missing beside one release; gives why that cannot be, else nothing.

        Raises what reading and converting the image raise, PublishError when the store cannot be written.
        """
        try:
            options = _options_of(record)
            versions = codec_of(options).versions()
        except ConfigError as error:
            return error.headline
        if other := packed_otherwise(record, versions):
            return f"its bytes cannot be made here: {other}"
        if trust.all_of(self.store.required) and not {RANGES, LAYERS} <= record.attachments.keys():
            return "its record names none, and where signatures are required no event counts"
        with (
            self.image(record) as source,
            scratch_folder(self.scratch) as folder,
            StoredLayers(self.store, synced=self.synced) as stored,
        ):
            made = convert(
                source,
                options,
                output=folder / "again.sqsh",
                scratch=self.scratch,
                cache=self.cache,
                limits=self.limits,
                task=task,
                stored=stored,
            )
        if made.sha256 != record.sha256:
            return "converting its image again gives other bytes here"
        found = {RANGES: made.ranges.encode() if made.ranges else None, LAYERS: made.layer_indexes}
        attached = {name: content for name, content in found.items() if content is not None}
        restore.attach(self.store.layout, record, attached)
        return "" if len(attached) == len(found) else "its layers are too large to be kept"


def _options_of(record: Record) -> ConvertOptions:
    """How a release was converted. Raises ConfigError when its record names other options than are known."""
    found = mapping(mapping(record.converter).get("options"))
    usual = recorded(ConvertOptions(converter="native"))
    if {key: type(one) for key, one in found.items()} != {key: type(one) for key, one in usual.items()}:
        raise ConfigError(_UNKNOWN)
    try:
        ConvertModel.model_validate(found)
    except ValidationError as error:
        raise ConfigError(_UNKNOWN) from error
    return ConvertOptions(converter="native", **found)
