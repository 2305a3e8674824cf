"""Scores programs as a node does: in a confined process that was prepared before it was confined."""

import json

import pytest

from swarm.sandbox import Confined, check_sandbox
from swarm.tasks.code.problems import CodeRow, problem_of
from swarm.tasks.code.task import Code, _question

SECONDS = 60.0
needs_sandbox = pytest.mark.skipif(check_sandbox() is not None, reason=f"no sandbox here: {check_sandbox()}")


def prepare(argument):
    parameters = json.loads(argument)
    default = Code(**parameters)
    default.prepare()

    def handle(request):
        row, completion, others = json.loads(request)
        task = Code(**parameters | others)
        if row is None:
            read = task.read_proposal(completion)
            return json.dumps(
                None if read is None else [read.text, read.answer, task.score(read, read.answer)]
            )
        return json.dumps(task.score(_question(problem_of(CodeRow(**row))), completion))

    return lambda request: handle(request).encode()


class Scorer:
    """The test's side."""

    def __init__(self, confined):
        self.confined = confined

    def ask(self, row, completion, **parameters):
        return json.loads(self.confined.call(json.dumps([row, completion, parameters]).encode(), SECONDS))

    def score(self, program, *tests, setup="", **parameters):
        """Of a program, with tests of one's own."""
        row = {"text": "x", "code": "x", "test_list": list(tests), "test_setup_code": setup}
        return self.ask(row, f"```python\n{program}\n```", **parameters)

    def propose(self, completion, **parameters):
        return self.ask(None, completion, **parameters)


@pytest.fixture(scope="module")
def scorer(interpreter):
    with Confined("code_scorer", b"{}") as confined:
        yield Scorer(confined)
