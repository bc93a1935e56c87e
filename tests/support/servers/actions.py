"""Runs a GitHub workflow as a runner would, as far as this project's workflows go.

Jobs in the order of ``needs``, matrix legs one after the other, reusable workflows, expressions, outputs.
``run:`` steps are executed with the runner's own shell flags, and so are those of a composite action whose
folder is known (``./`` and ``actions``); every other ``uses:`` step is a stub that the test gives.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]
Stub = Callable[[Values], "dict[str, str] | None"]
_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_TOKEN = re.compile(r"\s*(==|!=|&&|\|\||[!(),]|'(?:[^']|'')*'|[A-Za-z_][\w.-]*|\d+)")


@dataclass(kw_only=True)
class JobRun:
    """One job, or one leg of its matrix, that ran."""

    name: str
    runs_on: object
    permissions: object
    environment: object
    variables: dict[str, str] = field(default_factory=dict)
    """What the workflow puts into the environment of its steps."""
    code: int = 0
    outputs: dict[str, str] = field(default_factory=dict)
    temp: Path = Path()
    """RUNNER_TEMP: one folder for the whole job."""
    path: list[str] = field(default_factory=list)
    """What steps have added to PATH."""


@dataclass(kw_only=True)
class Workflows:
    """The workflows of a checkout, and what Actions would say of the event."""

    checkout: Path
    scratch: Path
    event: str
    payload: Values
    ref: str
    sha: str
    variables: Values
    secrets: Values
    environment: Mapping[str, str]
    stubs: Mapping[str, Stub]
    actions: Mapping[str, Path] = field(default_factory=dict)
    """Folders of composite actions that are run for real."""
    prepare: Callable[[Path], None] = lambda temp: None
    """Called with RUNNER_TEMP before a job's first step."""
    ran: list[JobRun] = field(default_factory=list)
    summary: str = ""

    def run(self, path: str, inputs: Values | None = None, secrets: Values | None = None) -> dict[str, str]:
        """Run a workflow; gives each job's result (success, failure, skipped).

        One that another calls sees those ``secrets`` alone that it is given and names itself, as in Actions.
        """
        # BaseLoader: `on` stays a word, and so does everything else, as Actions has it.
        whole = yaml.load((self.checkout / path).read_text(), Loader=yaml.BaseLoader)
        given = inputs if inputs is not None else self.payload.get("inputs") or {}
        results: dict[str, str] = {}
        needs: Values = {}
        waiting = dict(whole["jobs"])
        while waiting:
            name = next(name for name, job in waiting.items() if set(_needs(job)) <= set(results))
            job = waiting.pop(name)
            context: Values = {"inputs": given, "needs": {n: needs[n] for n in _needs(job)}}
            context["secrets"] = self.secrets if secrets is None else secrets
            context["env"] = self._filled(whole.get("env", {}), context)
            ready = all(results[need] == "success" for need in _needs(job))
            if not ready or not self._true(job.get("if", "true"), context):
                results[name], needs[name] = "skipped", {"outputs": {}, "result": "skipped"}
                continue
            legs = [self._job(name, job, {**context, "matrix": leg}) for leg in self._legs(job, context)]
            results[name] = "failure" if any(code for code, _ in legs) else "success"
            needs[name] = {"outputs": legs[-1][1] if legs else {}, "result": results[name]}
        return results

    def _legs(self, job: Values, context: Values) -> Iterator[Values]:
        matrix = job.get("strategy", {}).get("matrix", {})
        lists = {key: self._fill(value, context) for key, value in matrix.items()}
        for values in itertools.product(*lists.values()):
            yield dict(zip(lists, values, strict=True))

    def _job(self, name: str, job: Values, context: Values) -> tuple[int, dict[str, str]]:
        if "uses" in job:
            inputs = {key: self._fill(value, context) for key, value in job["with"].items()}
            secrets = {key: self._fill(value, context) for key, value in job.get("secrets", {}).items()}
            called = job["uses"].split()[0].removeprefix("./")
            declared = yaml.load((self.checkout / called).read_text(), Loader=yaml.BaseLoader)["on"]
            assert set(secrets) <= set(declared["workflow_call"].get("secrets", {})), "a secret nobody named"
            results = self.run(called, inputs, secrets)
            return int("failure" in results.values()), {}
        leg = JobRun(
            name=name,
            runs_on=job["runs-on"],
            permissions=job.get("permissions"),
            environment=job.get("environment"),
            temp=self.scratch / f"temp-{len(self.ran)}",
        )
        leg.temp.mkdir(parents=True)
        self.prepare(leg.temp)
        self.ran.append(leg)
        context = {**context, "env": {**context["env"], **self._filled(job.get("env", {}), context)}}
        context = self._steps(job["steps"], context, leg)
        leg.outputs = {key: str(self._fill(value, context)) for key, value in job.get("outputs", {}).items()}
        return leg.code, leg.outputs

    def _steps(self, steps: list[Values], context: Values, leg: JobRun) -> Values:
        """Run the steps of a job or of a composite action; gives the context with their outputs."""
        done: Values = {}
        context = {**context, "steps": done}
        for step in steps:
            wanted = step.get("if", "success()")
            context["failed"] = leg.code != 0
            if "always()" not in wanted and leg.code:
                continue
            if not self._true(wanted, context):
                continue
            inside = {**context, "env": {**context["env"], **self._filled(step.get("env", {}), context)}}
            leg.variables |= inside["env"]
            if "uses" in step:
                outputs = self._uses(step, inside, leg)
            else:
                code, outputs = self._step(step, inside, leg)
                leg.code = leg.code or code
            if "id" in step:
                done[step["id"]] = {"outputs": outputs}
        return context

    def _uses(self, step: Values, context: Values, leg: JobRun) -> dict[str, str]:
        name = step["uses"].split("@")[0]
        given = {key: self._fill(value, context) for key, value in step.get("with", {}).items()}
        folder = {"./": self.checkout, **self.actions}.get(name)
        if folder is None:
            return self.stubs[name](given) or {}
        action = yaml.load((folder / "action.yml").read_text(), Loader=yaml.BaseLoader)
        assert set(given) <= set(action["inputs"]), "an input that the action does not have"
        defaults = {key: entry.get("default", "") for key, entry in action["inputs"].items()}
        # An action sees neither the secrets nor the outputs of other steps: its inputs, and the environment.
        inside = {"env": context["env"], "inputs": {**defaults, **given}, "action_path": str(folder)}
        after = self._steps(action["runs"]["steps"], inside, leg)
        return {key: str(self._fill(each["value"], after)) for key, each in action["outputs"].items()}

    def _step(self, step: Values, context: Values, leg: JobRun) -> tuple[int, dict[str, str]]:
        number = sum(1 for _ in self.scratch.glob("step-*"))
        folder = self.scratch / f"step-{number}"
        folder.mkdir()
        files = {name: folder / name for name in ("output", "summary", "path", "event.json", "script.sh")}
        files["output"].touch()
        files["path"].touch()
        files["event.json"].write_text(json.dumps(self.payload))
        files["script.sh"].write_text(str(self._fill(step["run"], context)))
        environment = {
            **self.environment,
            **context["env"],
            "PATH": ":".join([*reversed(leg.path), self.environment["PATH"]]),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": context.get("action_path", ""),
            "GITHUB_EVENT_NAME": self.event,
            "GITHUB_EVENT_PATH": str(files["event.json"]),
            "GITHUB_OUTPUT": str(files["output"]),
            "GITHUB_PATH": str(files["path"]),
            "GITHUB_REF": self.ref,
            "GITHUB_REF_NAME": self.ref.split("/", 2)[-1],
            "GITHUB_REPOSITORY": "team/images",
            "GITHUB_SHA": self.sha,
            "GITHUB_STEP_SUMMARY": str(files["summary"]),
            "RUNNER_TEMP": str(leg.temp),
        }
        # What the runner runs where a step names no shell, and where it names bash, as an action must.
        shell = {"": ["-e"], "bash": ["--noprofile", "--norc", "-eo", "pipefail"]}[step.get("shell", "")]
        done = subprocess.run(
            ["bash", *shell, str(files["script.sh"])],
            cwd=self.checkout / str(self._fill(step.get("working-directory", ""), context)),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        if files["summary"].exists():
            self.summary += files["summary"].read_text()
        (folder / "log").write_text(done.stdout + done.stderr)
        leg.path += files["path"].read_text().splitlines()
        return done.returncode, _outputs(files["output"].read_text())

    def _filled(self, declared: Values, context: Values) -> dict[str, str]:
        return {key: _text(self._fill(value, context)) for key, value in declared.items()}

    def _fill(self, value: Any, context: Values) -> Any:
        """``value`` with its expressions replaced; a value that is one expression alone keeps its type."""
        if not isinstance(value, str):
            return value
        alone = _EXPRESSION.fullmatch(value.strip())
        if alone:
            return self._evaluate(alone[1], context)
        return _EXPRESSION.sub(lambda match: _text(self._evaluate(match[1], context)), value)

    def _true(self, text: str, context: Values) -> bool:
        alone = _EXPRESSION.fullmatch(text.strip())
        return bool(self._evaluate(alone[1] if alone else text, context))

    def _evaluate(self, text: str, context: Values) -> Any:
        github = {
            "event_name": self.event,
            "ref": self.ref,
            "ref_name": self.ref.split("/", 2)[-1],
            "sha": self.sha,
            "event": self.payload,
            "repository": "team/images",
            "run_id": "1",
            "workspace": str(self.checkout),
        }
        scope = {**context, "github": github, "vars": self.variables}
        tokens = _TOKEN.findall(text)
        assert "".join(tokens) == "".join(text.split()), f"cannot read the expression {text!r}"
        return _Expression(tokens, scope, self.checkout).value()


class _Expression:
    """``||`` over ``&&`` over ``==`` over ``!``, with GitHub's functions that are in use."""

    def __init__(self, tokens: list[str], scope: Values, folder: Path) -> None:
        self.tokens, self.scope, self.folder = tokens, scope, folder

    def value(self) -> Any:
        left = self.conjunction()
        while self.taken("||"):
            right = self.conjunction()
            left = left or right
        return left

    def conjunction(self) -> Any:
        left = self.comparison()
        while self.taken("&&"):
            right = self.comparison()
            left = left and right
        return left

    def comparison(self) -> Any:
        left = self.operand()
        for sign in ("==", "!="):
            if self.taken(sign):
                return (_text(left) == _text(self.operand())) is (sign == "==")
        return left

    def operand(self) -> Any:
        if self.taken("!"):
            return not self.operand()
        if self.taken("("):
            inner = self.value()
            assert self.taken(")")
            return inner
        token = self.tokens.pop(0)
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if self.taken("("):
            arguments = []
            while not self.taken(")"):
                arguments.append(self.value())
                self.taken(",")
            return self.call(token, arguments)
        if token in ("true", "false"):
            return token == "true"
        found: Any = self.scope
        for part in token.split("."):
            found = found.get(part, "") if isinstance(found, Mapping) else ""
        return found

    def call(self, name: str, arguments: list[Any]) -> Any:
        if name == "fromJSON":
            return json.loads(arguments[0])
        if name == "always":
            return True
        if name == "success":
            return not self.scope.get("failed")
        if name == "hashFiles":
            return "hash" if (self.folder / arguments[0]).exists() else ""
        raise AssertionError(f"the function {name} is not known here")

    def taken(self, token: str) -> bool:
        if self.tokens and self.tokens[0] == token:
            self.tokens.pop(0)
            return True
        return False


def _needs(job: Values) -> list[str]:
    needs = job.get("needs", [])
    return [needs] if isinstance(needs, str) else list(needs)


def _outputs(text: str) -> dict[str, str]:
    """What a step wrote into GITHUB_OUTPUT: NAME=VALUE, or NAME<<END with lines up to END."""
    found = {}
    lines = iter(text.splitlines())
    for line in lines:
        name, _, end = line.partition("<<")
        if "=" in name or not end:
            name, _, found_value = line.partition("=")
            found[name] = found_value
        else:
            found[name] = "\n".join(itertools.takewhile(end.__ne__, lines))
    return found


def _text(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def runner_environment() -> dict[str, str]:
    """Our environment without what a test around us has set for sqshpipe or Actions."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("SQSHPIPE_", "GITHUB_"))}
