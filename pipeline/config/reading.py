"""From images.yaml to `Config`: parse, check, apply defaults, apply overrides (flag, environment, file)."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.config import document, folders, yamlfile
from pipeline.config.ecr_hosts import parse_host
from pipeline.config.quantities import parse_size
from pipeline.config.types import (
    Config,
    ConvertOptions,
    EcrSettings,
    ImageSpec,
    Notify,
    RegistrySettings,
    ScanPolicy,
    SecretSource,
    SlurmSettings,
    StoreSettings,
    TagPattern,
    VexPolicy,
)
from pipeline.errors import ConfigError
from pipeline.oci.entry import Limits
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MAX_ERRORS = 8
_MISSING = "write one (sqshpipe config schema describes it), or name another with --config"


def load(
    path: Path,
    *,
    store: Path | None = None,
    registry: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read ``path``; ``store`` and ``registry`` (flags) win over the environment, and that over the file.

    Raises ConfigError naming file, line and key for whatever is wrong in the file, and for a Dockerfile,
    context, waivers or secret file that does not exist.
    """
    source = yamlfile.read(path, missing_hint=_MISSING)
    env = os.environ if environment is None else environment
    return build(source, env, store=store, registry=registry)


def build(
    source: yamlfile.Document,
    env: Mapping[str, str],
    *,
    store: Path | None = None,
    registry: str | None = None,
    check_files: bool = True,
) -> Config:
    """The configuration that ``source`` says; without ``check_files`` the files that it names may be missing,
    as for a version of images.yaml that is no longer checked out.
    """
    file = _validate(source)
    folder = source.path.resolve().parent
    reader = _Reader(source=source, file=file, folder=folder, check_files=check_files)
    return Config(
        path=source.path,
        registry=_registry(file, registry or env.get("SQSHPIPE_REGISTRY") or None, source),
        store=_store(file, store, env, folder),
        images={name: reader.image(name, model) for name, model in file.images.items()},
        cache=folders.cache_from(env, file.cache, folder),
        scratch=folders.scratch_from(env, file.scratch, folder),
        limits=_limits(file.limits),
        notify=tuple(_notify(entry) for entry in file.notify),
    )


def _validate(source: yamlfile.Document) -> document.ImagesFile:
    if not isinstance(source.value, dict):
        raise ConfigError(
            f"{source.path} has no settings", hint="sqshpipe config schema describes what belongs there"
        )
    try:
        return document.ImagesFile.model_validate(source.value)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        lines = list(dict.fromkeys(_line(source, error) for error in errors))
        if len(lines) > _MAX_ERRORS:
            lines[_MAX_ERRORS:] = [f"and {len(lines) - _MAX_ERRORS} more"]
        raise ConfigError(lines[0], details=lines[1:]) from None


def _line(source: yamlfile.Document, error: ErrorDetails) -> str:
    """One line for one of pydantic's errors: where, what, and the nearest known key."""
    # "[key]" is pydantic's word for an error in a mapping's key itself.
    key = tuple(part for part in error["loc"] if part != "[key]")
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        if len(key) == 1 and key[0] in document.ImageSettings.model_fields:
            return f"{source.where(key)}: it stands under defaults, or in an image's entry"
        known = sorted(_model_at(document.ImagesFile, key[:-1]).model_fields)
        close = difflib.get_close_matches(str(key[-1]), known, n=1)
        guess = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"{source.where(key)}: unknown key ({guess})"
    if kind == "missing":
        example = ", the file begins with: version: 1" if key == ("version",) else ""
        return f"{source.where(key[:-1])}: {key[-1]} is missing{example}"
    if kind == "value_error":
        return f"{source.where(key)}: {error['ctx']['error']}"
    typed = source.texts.get(key, str(given))  # 4.10, where the value is 4.1
    if kind == "string_type" and isinstance(given, int | float):
        what = "true or false" if isinstance(given, bool) else "a number"
        return f'{source.where(key)}: {typed} is {what} here, put it in quotes: "{typed}"'
    message = error["msg"][0].lower() + error["msg"][1:]
    shown = ""
    if isinstance(given, str | int | float | bool) and len(str(given)) < 80:
        shown = f", not {given!r}" if isinstance(given, str) else f", not {typed}"
    return f"{source.where(key)}: {message}{shown}"


def _model_at(model: type[BaseModel], key: tuple[str | int, ...]) -> type[BaseModel]:
    """The model that stands at ``key``: fields by name, through mappings and lists to their members."""
    for part in key:
        field = model.model_fields.get(str(part))
        if field is not None:
            found = _models_in(field.annotation)
            model = found[0] if found else model
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _registry(file: document.ImagesFile, override: str | None, source: yamlfile.Document) -> RegistrySettings:
    if override is not None:
        return parse_registry(override, "--registry or SQSHPIPE_REGISTRY")
    given = file.registry
    if given is None:
        return RegistrySettings()
    if given.ecr is not None:
        ecr = EcrSettings(**{**given.ecr.model_dump(), "prefix": given.ecr.prefix.strip("/")})
        settings = RegistrySettings(ecr=ecr, plain_http=given.plain_http)
        _check_registry(settings, source.where(("registry", "ecr", "prefix")))
        return settings
    return parse_registry(given.url or "", source.where(("registry", "url")), plain_http=given.plain_http)


def parse_registry(text: str, where: str, *, plain_http: bool = False) -> RegistrySettings:
    """``[http[s]://]host[:port][/path]``; an ECR host becomes EcrSettings. ConfigError names ``where``."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "https", text
    rest = rest.strip("/")
    if "@" in rest:
        raise ConfigError(f"{where}: no user or password in the registry's address", hint="use docker login")
    if scheme not in ("http", "https") or not rest:
        raise ConfigError(f"{where}: {text!r} is not a registry", hint="write HOST[:PORT][/PATH]")
    name, _, path = rest.partition("/")
    host = parse_host(name)
    if host is not None:
        ecr = EcrSettings(**dataclasses.asdict(host), prefix=path)
        settings = RegistrySettings(ecr=ecr)
    else:
        settings = RegistrySettings(url=rest, plain_http=plain_http or scheme == "http")
    _check_registry(settings, where)
    return settings


def _check_registry(settings: RegistrySettings, where: str) -> None:
    try:
        host = settings.repository("image").registry
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None
    if host != settings.host:
        # A first part without dot, colon or "localhost" is read as a path on Docker's own registry.
        raise ConfigError(
            f"{where}: {settings.host!r} is not a host", hint="write HOST.DOMAIN[/PATH] or HOST:PORT[/PATH]"
        )


def _store(
    file: document.ImagesFile, flag: Path | None, env: Mapping[str, str], folder: Path
) -> StoreSettings:
    model = file.store
    settings = _store_settings(model, folder) if model else StoreSettings(configured=None)
    given = flag or (Path(env["SQSHPIPE_STORE"]) if env.get("SQSHPIPE_STORE") else None)
    if given is not None:
        return replace(settings, configured=given.expanduser().absolute())
    root = (folder / Path(model.root).expanduser()).absolute() if model else None
    return replace(settings, configured=root)


def _store_settings(model: document.StoreModel, folder: Path) -> StoreSettings:
    stripe, key = model.stripe, model.require_signature
    if key is not None and not key.startswith("awskms:"):
        key = str(folder / Path(key).expanduser())
    return StoreSettings(
        configured=None,
        group=model.group,
        stripe=(stripe.count, parse_size(stripe.size)) if stripe else None,
        grace=model.grace,
        delete_after=model.delete_after,
        trust_synced=model.trust_synced,
        s3=model.s3,
        require_signature=key,
    )


def _limits(model: document.LimitsModel) -> Limits:
    return Limits(
        max_unpacked=model.unpacked,
        max_ratio=model.ratio,
        max_entries=model.entries,
        devices=model.devices == "keep",
        setuid=model.setuid == "keep",
    )


def _notify(entry: document.NotifyModel) -> Notify:
    return Notify(
        sns=entry.sns,
        webhook_env=entry.webhook_env,
        command=tuple(entry.command) if entry.command else None,
        on=frozenset(entry.on),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """From an image's model to its spec: defaults, paths, and whether the files are there."""

    source: yamlfile.Document
    file: document.ImagesFile
    folder: Path
    check_files: bool

    def image(self, name: str, model: document.ImageModel) -> ImageSpec:
        settings = _with_defaults(model, self.file.defaults)
        key: yamlfile.Key = ("images", name)
        dockerfile, context = self.build_files(key, model)
        return ImageSpec(
            name=name,
            base=self.base(key, model.base),
            platform=Platform.parse(settings.platform),
            dockerfile=dockerfile,
            context=context,
            build_args=dict(model.build_args),
            secrets={secret: self.secret(entry) for secret, entry in model.secrets.items()},
            target=model.target,
            compression=model.compression,
            convert=ConvertOptions(**settings.convert.model_dump()),
            scan=self.scan(key, settings.scan),
            slurm=SlurmSettings(**settings.slurm.model_dump()),
            channels=tuple(settings.channels),
            keep=settings.keep,
            max_age=settings.max_age,
            test=tuple(model.test),
            test_on=None if settings.test_on is None else tuple(settings.test_on),
            track=TagPattern(**settings.track.model_dump()) if settings.track else None,
        )

    def build_files(self, key: yamlfile.Key, model: document.ImageModel) -> tuple[Path | None, Path | None]:
        if model.dockerfile is None:
            return None, None
        dockerfile = self.folder / model.dockerfile
        context = self.folder / model.context if model.context is not None else dockerfile.parent
        if self.check_files and not dockerfile.is_file():
            raise self.missing((*key, "dockerfile"), f"{model.dockerfile} does not exist")
        if self.check_files and not context.is_dir():
            raise self.missing((*key, "context"), f"{model.context} is not a folder")
        return dockerfile, context

    def missing(self, key: yamlfile.Key, problem: str) -> ConfigError:
        return self.source.error(key, problem, f"paths start at {self.folder}")

    def base(self, key: yamlfile.Key, text: str) -> Reference:
        base = Reference.parse(text)
        if base.tag is None and base.digest is None:
            hint = f"write the tag that you mean, {text}:latest at worst"
            raise self.source.error((*key, "base"), f"{text} has no tag", hint)
        return base

    def secret(self, entry: document.SecretModel) -> SecretSource:
        file = self.folder / Path(entry.file).expanduser() if entry.file is not None else None
        return SecretSource(env=entry.env, file=file)

    def scan(self, key: yamlfile.Key, model: document.ScanModel) -> ScanPolicy:
        named = {"waivers": [model.waivers] if model.waivers is not None else [], "vex": model.vex.files}
        for setting, files in named.items():
            for file in files:
                if self.check_files and not (self.folder / file).is_file():
                    own = (*key, "scan", setting)
                    where = own if own in self.source.lines else ("defaults", "scan", setting)
                    raise self.missing(where, f"{file} does not exist")
        waivers = self.folder / model.waivers if model.waivers is not None else None
        fields = model.model_dump(exclude={"fail_on", "waivers", "vex"})
        fields["vex"] = VexPolicy(
            files=tuple(self.folder / file for file in model.vex.files),
            attached=model.vex.attached,
            max_age=model.vex.max_age,
        )
        fail_on = None if model.fail_on == "never" else model.fail_on
        fields["ignore_packages"] = tuple(model.ignore_packages)
        return ScanPolicy(fail_on=fail_on, waivers=waivers, **fields)


def _with_defaults(model: document.ImageModel, defaults: document.ImageSettings) -> document.ImageSettings:
    """The image's settings over ``defaults``, key by key, one level deep for the nested ones."""
    shared = set(document.ImageSettings.model_fields)
    own = model.model_dump(exclude_unset=True, include=shared)
    merged = defaults.model_dump(exclude_unset=True)
    for name, value in own.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if nested else value
    return document.ImageSettings.model_validate(merged)
