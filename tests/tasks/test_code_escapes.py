"""Programs try to get out, to cheat or to use everything up: each scores 0, and the next honest one 1."""

import os

import pytest
from code_scorer import needs_sandbox, scorer  # noqa: F401 - fixtures

pytestmark = needs_sandbox

TESTS = ("assert f(12) == 144", "assert f(-3) == 9")
HONEST = "def f(n): return n * n"

ESCAPES = {
    "fork": "import os\ndef f(n):\n  while True: os.fork()",
    "start a program": "import os\ndef f(n): return os.system('true')",
    "start threads": "import threading\ndef f(n):\n  while True: threading.Thread(target=f).start()",
    "read the key": "import os\ndef f(n): return open(KEY).read()",
    "read the key by other ways": (
        "import io, os, posix, _io\nfrom pathlib import Path\ndef f(n):\n"
        "  for way in (io.FileIO, _io.open, _io.FileIO, Path.read_text):\n    way(KEY)"
    ),
    "read the key by the system": "import posix\ndef f(n): return posix.read(posix.open(KEY, 0), 9)",
    "link to the key": "import posix\ndef f(n): posix.symlink(KEY, KEY + '.link')",
    "import what it wrote": "import sys\nsys.path.append('/')\ndef f(n): import swarm",
    "open a socket": "def f(n): import socket",
    "open a socket by its module": "import _socket\ndef f(n): return _socket.socket()",
    "kill the parent": "import os\ndef f(n): os.kill(PARENT, 9)",
    "native code": "import ctypes\ndef f(n): return ctypes.string_at(0)",
    "a crash": (
        "def f(n):\n  code = (lambda: 0).__code__.replace(co_code=b'd\\xff' * 64)\n"
        "  return type(f)(code, {})()"
    ),
    "endless output": "def f(n):\n  while True: print('x' * 10**6)",
    "endless loop": "def f(n):\n  while True: pass",
    "endless loop when loaded": "while True: pass",
    "endless sleep": "import time\ndef f(n): time.sleep(10**9)",
    "endless recursion": "def f(n): return f(n)",
    "endless recursion without limit": "import sys\nsys.setrecursionlimit(2**31 - 1)\ndef f(n): return f(n)",
    "endless recursion in C": (
        "import sys\nsys.setrecursionlimit(2**31 - 1)\n"
        "class A:\n  def __eq__(self, other): return A() == A()\ndef f(n): return A() == A()"
    ),
    "deep parentheses": "def f(n): return eval('(' * 10**5 + ')' * 10**5)",
    "deep literal": "def f(n): return eval('[' * 10**5 + ']' * 10**5)",
    "deep minus": "def f(n): return eval('-' * 10**6 + '1')",
    "deep JSON": "import json\ndef f(n): return json.loads('[' * 10**6)",
    "deep values": "def f(n):\n  for _ in range(10**6): n = [n]\n  return n",
    "deep values at the boundary": "def f(n):\n  for _ in range(500): n = [n]\n  return n",
    "a value in itself": "def f(n):\n  x = []\n  x.append(x)\n  return x",
    "memory": "def f(n): return bytearray(10**10)",
    "memory bit by bit": "def f(n):\n  x = []\n  while True: x.append([0] * 10**6)",
    "memory doubled": "def f(n):\n  x = 'x'\n  while True: x += x",
    "giant integer": "def f(n): return 10 ** 10 ** 10",
    "large integer": "def f(n): return 10 ** 10**5",
    "giant text": "def f(n): return 'x' * 10**8",
    "giant text of wide characters": "def f(n): return '\\U0001f600' * 10**7",
    "giant list": "def f(n): return [0] * 10**7",
    "giant error": "def f(n): raise type('x' * 10**8, (Exception,), {})",
    "catastrophic expression": "import re\ndef f(n): return re.match('(a+)+$', 'a' * 64 + 'b')",
    "leave with success": "import sys\ndef f(n): sys.exit(0)",
    "leave when loaded": "import sys\nsys.exit(0)",
    "leave at once": "import os\ndef f(n): os._exit(0)",
    "leave at once when loaded": "import os\nos._exit(0)",
    "interrupt": "def f(n): raise KeyboardInterrupt",
    "stop the iteration": "def f(n): raise StopIteration",
    "another failed assertion": "class AssertionError(Exception): pass\ndef f(n): raise AssertionError",
    "equal to all": "class A:\n  __eq__ = lambda *_: True\n  __hash__ = None\ndef f(n): return A()",
    "a number equal to all": "class A(int):\n  __eq__ = lambda *_: True\ndef f(n): return A(1)",
    "a list equal to all": "class A(list):\n  __eq__ = lambda *_: True\ndef f(n): return A()",
    "a type equal to all": (
        "class M(type):\n  __eq__ = lambda *_: True\nclass A(metaclass=M): pass\ndef f(n): return A"
    ),
    "patch the operators' module": "import operator\noperator.eq = lambda *_: True\ndef f(n): return 0",
    "patch the builtins": (
        "import builtins\nfor name in ('AssertionError', 'isinstance', 'getattr', 'type', 'exec'):\n"
        "  setattr(builtins, name, lambda *_: True)\ndef f(n): return 0"
    ),
    "patch how answers are written": (
        'import json\njson.dumps = lambda *_, **__: \'{"returned": {"x": 1}}\'\ndef f(n): return 0'
    ),
    "answer no JSON": "import json\njson.dumps = lambda *_, **__: 'x'\ndef f(n): return 0",
    "answer something else": "import json\njson.dumps = lambda *_, **__: 7\ndef f(n): return 0",
    "answer a deep text": "import json\njson.dumps = lambda *_, **__: '[' * 10**6\ndef f(n): return 0",
    "answer a wide number": "import json\njson.dumps = lambda *_, **__: '1' * 10**6\ndef f(n): return 0",
    "answer a dictionary of lists": (
        'import json\njson.dumps = lambda *_, **__: \'{"returned": {"d": [[[], 1]]}}\'\ndef f(n): return 0'
    ),
    "raise what ends the grader": (
        'import json\njson.dumps = lambda *_, **__: \'{"raised": "SystemExit"}\'\ndef f(n): return 0'
    ),
    "raise what is no error": (
        'import json\njson.dumps = lambda *_, **__: \'{"raised": "print"}\'\ndef f(n): return 0'
    ),
    "patch the interpreter's own functions": (
        "import sys\nfor module in list(sys.modules.values()):\n"
        "  if hasattr(module, 'WitWorld'):\n"
        "    module.WitWorld.check = module.WitWorld.begin = lambda *_: ''\n"
        "    module.WitWorld.apply = lambda *_: ''\ndef f(n): return 0"
    ),
    "call the host": "import wit_world\ndef f(n): return wit_world.call('[\"f\", [1], {}]')",
    "call the host when loaded": "import wit_world\nwit_world.call('')\n" + HONEST,
    "look for the tests in frames": (
        "import sys\ndef f(n):\n  frame = sys._getframe()\n  while frame:\n"
        "    for value in [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]:\n"
        "      if ')21(f' in str(value)[::-1]: return n * n\n    frame = frame.f_back"
    ),
    "look for the tests in memory": (
        "import gc\ndef f(n):\n  for thing in gc.get_objects():\n"
        "    for other in [thing, *gc.get_referents(thing)]:\n"
        "      if type(other) is str and ')21(f' in other[::-1]: return n * n"
    ),
    "look for the tests in the source": (
        "import inspect, sys\ndef f(n): return inspect.getsource(sys._getframe(1))"
    ),
    "no program": "",
    "no Python": "this is no Python",
    "no such function": "def g(n): return n * n",
    "not a function": "f = 144",
    "a null character": "f = '\0'",
    "a lone surrogate": "f = '\ud800'",
    "too long": "#" * 30_000 + "\n" + HONEST,
}


@pytest.mark.parametrize("name", ESCAPES)
def test_scores_nothing(scorer, tmp_path, name):  # noqa: F811
    key = tmp_path / "swarm.pem"
    key.write_text("the key")
    program = ESCAPES[name].replace("KEY", repr(str(key))).replace("PARENT", str(os.getpid()))
    assert scorer.score(program, *TESTS) == 0.0
    assert scorer.score(HONEST, *TESTS) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["swarm.pem"]


def test_a_program_cannot_reach_the_interpreter_of_the_next(scorer):  # noqa: F811
    scorer.score("import builtins\nbuiltins.mine = 1\ndef f(n): pass", *TESTS)
    assert (
        scorer.score("import builtins\ndef f(): return hasattr(builtins, 'mine')", "assert f() is False")
        == 1.0
    )


def test_calls_give_no_fuel_back(scorer):  # noqa: F811
    """Each call is short, but there is no end of them."""
    assert scorer.score("def f(n): return n", "while True: f(1)") == 0.0


def test_tests_that_ask_too_much_end(scorer):  # noqa: F811
    assert scorer.score("def f(x): return 1", "f('x' * 10**8)") == 0.0
    assert scorer.score("def f(x): return 1", "f('x' * 10**4)", message_chars=5000) == 0.0
    assert scorer.score("def f(x): return 'x' * x", "f(10**4)", message_chars=5000) == 0.0
    assert scorer.score("def f(x): return 'x' * x", "f(10**3)", message_chars=5000) == 1.0
