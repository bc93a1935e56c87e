"""The commands of the AWS CLI in documents exist and take these options, by the models that boto3 brings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import botocore.session
import pytest
from botocore import model, xform_name

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OF_THE_CLI = {"--query", "--output", "--filters", "--region"}
# What the CLI takes besides the model's parameters, as its reference has it.
MORE = {
    "authorize-security-group-ingress": {"--protocol", "--source-group"},
    "create-security-group": {"--description"},
}
# What only the CLI has, without a model.
ITS_OWN = {("sso", "login"), ("ecr", "get-login-password"), *(("s3", verb) for verb in ("cp", "ls", "mb"))}
SESSION = botocore.session.get_session()


@cache
def service(name: str) -> model.ServiceModel:
    return SESSION.get_service_model(name)


@cache
def operations(name: str) -> dict[str, str]:
    """The CLI's name of each operation, and the model's."""
    return {xform_name(each).replace("_", "-"): each for each in service(name).operation_names}


def commands(text: str, program: str = "aws") -> Iterator[list[str]]:
    """The words after `program` of each command in blocks and between backticks."""
    fence = re.compile(r"^ *```[a-z]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    lines = [line for block in fence.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"(?<!`)`([^`]+)`(?!`)", fence.sub("", text).replace("\n", " "))
    for line in lines:
        for call in re.findall(rf"(?:^\s*|\$\(){program} ((?:[^)'\"]|'[^']*'|\"[^\"]*\")+)", line):
            words = shlex.split(call, comments=True)
            if len(words) > 1 and re.fullmatch(r"[a-z0-9-]+", words[0]) and not words[0].startswith("-"):
                yield words


def wrong(words: list[str]) -> str:
    """What is not known about a command; empty if all is."""
    name, verb, *rest = words
    if (name, verb) in ITS_OWN:
        return ""
    if name not in SESSION.get_available_services():
        return f"no service {name}"
    if verb == "wait":
        waiters = SESSION.get_waiter_model(name).waiter_names
        known = {xform_name(each).replace("_", "-") for each in waiters}
        return "" if rest[0] in known else f"nothing waits for {rest[0]}"
    if verb not in operations(name):
        return f"{name} has no {verb}"
    shape = service(name).operation_model(operations(name)[verb]).input_shape
    members = shape.members if isinstance(shape, model.StructureShape) else {}
    options = {"--" + xform_name(each).replace("_", "-") for each in members}
    given = {word for word in rest if word.startswith("--")}
    unknown = given - options - OF_THE_CLI - MORE.get(verb, set())
    return f"{verb} has no {', '.join(sorted(unknown))}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_they_are_known(page: Path) -> None:
    found = [(words, wrong(words)) for words in commands(page.read_text(encoding="utf-8"))]
    assert [each for each in found if each[1]] == []
    if page.name.startswith("parallelcluster"):
        assert len(found) > 40


@pytest.mark.parametrize(
    "text",
    [
        "```\naws ec2 create-vpcs --cidr-block 10.0.0.0/16\n```\n",
        '```\nX=$(aws ec2 create-vpc --cidr-blocks 1 --query "a)b")\n```\n',
        "`aws ec2 wait nat-gateway-there`",
        "`aws inspector update-configuration`",
        "`aws s3 copy a b`",
    ],
)
def test_a_wrong_one_is_seen(text: str) -> None:
    assert [wrong(words) for words in commands(text)] != []
    assert all(wrong(words) for words in commands(text))
