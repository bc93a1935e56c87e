"""Writes docs/reference/ and docs/schema/ from the code: python docs/generate.py.

With --check it says what is out of date, and writes nothing.

Commands come from typer, images.yaml from the pydantic models, exit codes from pipeline/errors.py, records
from pipeline/store/record.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from pipeline import errors
from pipeline.cli.tree import command_line
from pipeline.cluster import settings as cluster_settings
from pipeline.config.schema import REFS, as_file, json_schema
from pipeline.squashfs import startup
from pipeline.store.record import DATA, SCHEMA, Record
from pipeline.store.sealed import KEY

REFERENCE = Path(__file__).resolve().parent / "reference"
_CHECKSUM = (
    f"`{KEY}` is the last key: the CRC-32 of all bytes before its opening quote, in eight lower-case hex",
    "digits. Records of older versions lack it and are valid. Events and channel names have the same last",
    "key; so do the caches `index.json`, `head.json` and `manifest.json`, which are not believed without",
    "it. It detects damage, not lies.",
)
_STARTUP = f"""\
## Start-up profiles

`<store>/<image>/.meta/<version>/startup-<number>.json`, schema {startup.SCHEMA}, each made once; the highest
number counts. What the start of a program reads of the `.sqsh`, in the order of the first reads. A profile is
advice: one that is damaged or breaks a rule of this table is ignored with a warning.

| key | content |
|---|---|
| `sha256`, `size` | the file that `ranges` belong to |
| `ranges` | `[start, length]` in bytes, at most {startup.MOST_RANGES:,}, within the file, without overlaps |
| `files` | `[path, checksum, [[first block, blocks], …]]`: the same for other versions of the image |
| `tails` | fragment blocks, each named by at most {startup.NAMED} files whose ends lie in it |
| `{KEY}` | as above, and required |

The tables at the end of the file are the first range. Paths are percent-encoded. A file's checksum is the
CRC-32 of its block size, its size and the words that say how its blocks are stored."""
_FEW_KEYS = 3
_PROVENANCE = """\
## `provenance`

How the release was made. A key that is not known is missing.

| key | content |
|---|---|
| `by` | who published: user@host, or the person who started a workflow of GitHub Actions |
| `revision` | commit of the repository with images.yaml |
| `sqshpipe` | version of the program |
| `inputs` | `dockerfile` (sha256), `dockerfile_text` (up to 64 KiB), `args`, `target`, `context`, `period` |
| `scan_policy` | the policy that the scan passed |
| `layers` | `digest` and `size` (compressed bytes) of each layer, base first |
| `same_file_as` | the release whose file this one is, where the same image was converted before |
| `file`, `compressor` | name and compressor of an imported .sqsh |"""
HEAD = "<!-- Made by `python docs/generate.py` from the code: change it there. -->\n\n"


def pages() -> dict[str, str]:
    """File names, seen from docs/reference, with what has to be in them."""
    made = {
        "commands.md": _commands(),
        "configuration.md": _configuration(),
        "cluster.md": _cluster(),
        "exit-codes.md": _exit_codes(),
        "records.md": _records(),
    }
    schemas = {"images": json_schema(), "cluster": cluster_settings.json_schema()}
    files = {
        f"../schema/{name}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas.items()
    }
    return {name: HEAD + text for name, text in made.items()} | files


def _commands() -> str:
    lines = [
        "# Commands",
        "",
        "`sqshpipe COMMAND --help` says the same. `-q`, `-v` stand before or after the verb,",
        "`--log-format json` before it.",
    ]
    every = typer.main.get_command(command_line())
    for path, command in _walk(every, "sqshpipe"):
        lines += ["", f"## {path}", "", inspect.cleandoc(command.help or "").replace("\f", ""), ""]
        rows = [row for row in map(_parameter, command.params) if row]
        if rows:
            lines += ["| | |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    commands = getattr(command, "commands", None)
    if commands is None:
        yield path, command
        return
    for name, below in commands.items():
        if not below.hidden or hasattr(below, "commands"):  # ci is for workflows: hidden, and documented
            yield from _walk(below, f"{path} {name}")


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        about = [getattr(parameter, "help", None) or ""]
    else:
        if "--help" in parameter.opts or parameter.hidden:
            return ""
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        about = [parameter.help or ""]
    if parameter.envvar:
        about.append(f"`{parameter.envvar}`")
    default = parameter.default
    if isinstance(default, (str, int, float, Path)) and not isinstance(default, bool) and str(default):
        about.append(f"default: `{getattr(default, 'value', default)}`")
    if parameter.required:
        about.append("required")
    return f"| `{_cell(name)}` | {_cell(' · '.join(filter(None, about)))} |"


def _configuration() -> str:
    head = [
        "# images.yaml",
        "",
        "An unknown key is an error that names the line. `sqshpipe config schema` prints this as",
    ]
    head += ["JSON schema. Times are `90m`, `12h`, `30d` or `2w`."]
    return _schema(head, "ImagesFile", json_schema())


def _cluster() -> str:
    head = [
        "# cluster.yaml",
        "",
        "An unknown key is an error that names the line. `sqshpipe config schema --cluster` prints this",
    ]
    head += ["as JSON schema, and `sqshpipe cluster init` writes a first file with comments."]
    plain = cluster_settings.ClusterSettings.model_json_schema(ref_template=REFS)
    return _schema(head, "ClusterSettings", as_file("cluster", plain))


def _schema(lines: list[str], whole: str, schema: dict[str, Any]) -> str:
    for name in [whole, *schema["definitions"]]:
        model = schema if name == whole else schema["definitions"][name]
        if "properties" not in model:
            continue
        title = "The file" if name == whole else _title(name)
        base, inherited = _base(name, schema)
        also = f" It also has the keys of [{_title(base)}](#{_title(base).lower()})." if base else ""
        lines += ["", f"## {title}", "", inspect.cleandoc(model.get("description", "")) + also, ""]
        lines += ["| key | what | default |", "|---|---|---|"]
        required = set(model.get("required", ()))
        for key, entry in model["properties"].items():
            if key not in inherited:
                lines.append(_key(key, entry, required=key in required))
    return "\n".join(lines) + "\n"


def _base(name: str, schema: dict[str, Any]) -> tuple[str, set[str]]:
    """The other model of the schema whose keys are all in `name` too, and these keys; else nothing."""
    keys = set(schema["definitions"].get(name, {}).get("properties", ()))
    for other, model in schema["definitions"].items():
        below = set(model.get("properties", ()))
        if len(below) > _FEW_KEYS and below < keys:
            return other, below
    return "", set()


def _title(name: str) -> str:
    """The heading of a model: "Image" for ImageModel, "Defaults" for the keys that images inherit."""
    return "Defaults" if name == "ImageSettings" else name.removesuffix("Model")


def _key(key: str, entry: dict[str, Any], *, required: bool) -> str:
    what = [entry.get("description", "")]
    below = entry.get("$ref") or next((one["$ref"] for one in entry.get("anyOf", ()) if "$ref" in one), "")
    below = below or entry.get("items", {}).get("$ref", "") if entry.get("type") == "array" else below
    if not below and isinstance(entry.get("additionalProperties"), dict):
        below = entry["additionalProperties"].get("$ref", "")
    if below:
        title = _title(below.rpartition("/")[2])
        what.append(f"See [{title}](#{title.lower().replace(' ', '-')}).")
    if "enum" in entry:
        what.append("One of " + ", ".join(f"`{word}`" for word in entry["enum"]) + ".")
    if entry.get("examples"):
        what.append(f"For example `{_yaml(entry['examples'][0])}`.")
    default = entry.get("default")
    written = "" if default in (None, "") or isinstance(default, dict) else f"`{_yaml(default)}`"
    return (
        f"| `{key}` | {_cell(' '.join(filter(None, what)))} | {'required' if required else _cell(written)} |"
    )


def _yaml(value: Any) -> str:
    """A value as a person writes it in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _exit_codes() -> str:
    rows = [(errors.EXIT_DONE, "done", "")]
    rows.append((errors.SqshpipeError.exit_code, "Unexpected: a defect of sqshpipe.", "`SqshpipeError`"))
    named = [one for one in errors.SqshpipeError.__subclasses__() if one.__module__ == errors.__name__]
    rows += [(one.exit_code, inspect.getdoc(one) or "", f"`{one.__name__}`") for one in named]
    rows.append(
        (errors.EXIT_PLAN_HAS_CHANGES, "`plan`, `--check` or `--dry-run`: something would change.", "")
    )
    rows += [(errors.EXIT_SIGINT, "Interrupted (Ctrl-C).", ""), (errors.EXIT_SIGTERM, "Terminated.", "")]
    lines = ["# Exit codes", "", "| code | what | in `pipeline/errors.py` |", "|---|---|---|"]
    lines += [f"| {code} | {_cell(' '.join(what.split()))} | {name} |" for code, what, name in rows]
    return "\n".join(lines) + "\n"


def _records() -> str:
    lines = [
        "# Records",
        "",
        f"`<store>/<image>/<version>.json`, schema {SCHEMA}. It never changes. [The store]",
    ]
    lines[-1] += "(../explanation/store.md) has the other files."
    lines += ["", " ".join((inspect.getdoc(Record) or "").split()), "", "| key | type |", "|---|---|"]
    types = {field.name: str(field.type) for field in dataclasses.fields(Record)}
    example = Record(
        image="demo", version="v1.0", platform="linux/amd64", sha256="", size=0, kind=DATA, created=""
    )
    for key, value in example.as_json().items():
        kind = types.get(key, type(value).__name__)
        lines.append(f"| `{key}` | `{_cell(kind)}` |")
    lines += [f"| `{KEY}` | `str` |", "", *_CHECKSUM, "", _PROVENANCE, "", _STARTUP]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    late = []
    for name, text in pages().items():
        path = REFERENCE / name
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            late.append(name)
    if late:
        sys.stderr.write(f"out of date: {', '.join(late)}; run: python docs/generate.py\n")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
