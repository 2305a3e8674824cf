import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from swarm.errors import UsageError
from swarm.sandbox import Confined, Forked, SandboxDied, SandboxError, SandboxTimeout, check_sandbox
from swarm.sandbox.memory import prepare_bytes

pytestmark = pytest.mark.skipif(check_sandbox() is not None, reason=f"no sandbox here: {check_sandbox()}")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone limits and shows memory so")

SECONDS = 30.0  # for what ends at once; a busy machine may take its time


@pytest.fixture(scope="module")
def confined():
    with Confined("attacker", memory_bytes=256 << 20) as confined:
        yield confined


def is_gone(pid):
    """Ended, be it that nobody has asked how. Waits for it."""
    try:
        psutil.Process(pid).wait(timeout=SECONDS)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def family(pid):
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_a_handler_answers_again_and_again(confined):
    assert [confined.call(b"result = %d" % n, SECONDS) for n in range(3)] == [b"0", b"1", b"2"]


def test_a_large_request_and_answer_pass(confined):
    request = b"result = '" + b"x" * (10 << 20) + b"'"
    assert len(confined.call(request, SECONDS)) == (10 << 20) + 2


def test_what_prepare_raises_comes_back_in_one_line():
    with pytest.raises(UsageError, match="there is no such data"):
        Confined("attacker", b"usage")
    with pytest.raises(SandboxError, match=r"KeyError: 'a\\nbug'"):
        Confined("attacker", b"bug")
    with pytest.raises(SandboxError, match="exit code 3"):
        Confined("attacker", b"exit")
    with pytest.raises(SandboxError, match="no_such_module"):
        Confined("no_such_module")


def test_hashes_are_the_same_in_every_process(confined):
    with Confined("attacker") as other:
        request = b"result = hash('some text')"
        assert other.call(request, SECONDS) == confined.call(request, SECONDS)


def test_the_environment_holds_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Confined("attacker") as confined:
        assert b"secret" not in confined.call(b"result = dict(os.environ)", SECONDS)


@linux
def test_a_proxy_s_password_is_not_in_a_worker(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass" + "word@proxy")
    with Confined("attacker") as confined:
        for look in ("dict(os.environ)", "libc.getenv(b'HTTPS_PROXY')", "ctypes.string_at(*ENVIRONMENT)"):
            assert b"password" not in confined.call(f"result = {look}".encode(), SECONDS)
        assert confined.call(b"result = os.environ['LANG'], libc.getenv(b'LANG')", SECONDS) == (
            b"('C.UTF-8', b'C.UTF-8')"
        )
        worker = int(confined.call(b"result = os.getpid()", SECONDS))
        assert not holds(worker, b"me:pass" + b"word")


@linux
def test_nor_is_it_in_a_fork_of_ours():
    """As in a program that somebody runs with all tokens in its environment."""
    program = (
        "import os, ctypes\nfrom swarm.sandbox import Forked\n"
        "look = lambda _: repr([dict(os.environ), ctypes.CDLL(None).getenv(b'TOKEN')]).encode()\n"
        "with Forked(look) as forked: print(forked.call(b'', 60))\nprint(os.environ['TOKEN'])"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "TOKEN": "a secret"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout == b"b'[{}, 0]'\na secret\n"


def holds(pid, text):
    """Whether a process has that in its memory."""
    maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except PermissionError:
        pytest.skip("processes may not look at one another here")
    with os.fdopen(memory, "rb", buffering=0) as file:
        for line in maps:
            start, end = (int(word, 16) for word in line[0].split("-"))
            if line[1].startswith("rw") and text in os.pread(file.fileno(), end - start, start):
                return True
    return False


@linux
def test_preparing_has_a_limit_of_memory():
    limit = prepare_bytes()
    assert limit <= min(8 << 30, psutil.virtual_memory().total // 2)
    with Confined("attacker", b"take %d" % (limit * 3 // 4)):
        pass
    with pytest.raises(SandboxError, match=f"^preparing takes more memory than the {limit >> 20} MiB"):
        Confined("attacker", b"take %d" % (limit + (1 << 20)))


@linux
def test_preparing_s_limit_is_gone_when_workers_start_and_for_what_is_trusted(monkeypatch):
    """Nothing of the memory is touched, so it costs none."""
    limit = prepare_bytes()
    memory = b"result = len(bytes(%d))" % (limit + (1 << 20))
    with Confined("attacker", memory_bytes=limit * 2) as confined:
        assert confined.call(memory, SECONDS) == b"%d" % (limit + (1 << 20))
    with Confined("attacker", b"trust %d" % (limit * 3 // 4)):
        pass
    with pytest.raises(SandboxError, match="preparing takes more"):
        Confined("attacker", b"trust %d" % (limit + (1 << 20)))


WINDOWS = """
import contextlib, ctypes, socket, subprocess, sys, tempfile, threading
import msgspec
sys.modules["resource"] = sys.modules["fcntl"] = None
sys.platform = "win32"
from swarm.sandbox import Confined, Forked, SandboxError, check_sandbox
print(check_sandbox())
for start in (lambda: Confined("swarm.sandbox.echo"), lambda: Forked(bytes)):
    with contextlib.suppress(SandboxError):
        start()
        print("started")
"""


def test_windows_says_that_it_cannot_sandbox():
    done = subprocess.run([sys.executable, "-c", WINDOWS], capture_output=True, text=True, check=False)
    assert done.stdout == "strangers' text can be scored on Linux and macOS only, not on win32\n", done.stderr


def test_an_endless_loop_is_ended_and_the_next_call_answered(confined):
    with pytest.raises(SandboxTimeout):
        confined.call(b"while True: pass", 0.2)
    assert confined.call(b"result = 1", SECONDS) == b"1"


def test_a_worker_that_does_not_read_is_ended(confined):
    with pytest.raises(SandboxTimeout):
        confined.call(b"while True: pass\n#" + b"x" * (8 << 20), 0.2)
    assert confined.call(b"result = 1", SECONDS) == b"1"


def test_a_crash_says_how_and_the_next_call_is_answered(confined):
    with pytest.raises(SandboxDied, match=f"signal {int(signal.SIGSEGV)}"):
        confined.call(b"ctypes.string_at(0)", SECONDS)
    with pytest.raises(SandboxDied, match="exit code 7"):
        confined.call(b"os._exit(7)", SECONDS)
    with pytest.raises(SandboxDied, match="the confined handler failed: no luck"):
        confined.call(b"raise ValueError('no\\n luck')", SECONDS)
    assert confined.call(b"result = 1", SECONDS) == b"1"


def test_a_new_worker_knows_nothing_of_the_one_before(confined):
    confined.call(b"sys.mine = 1", SECONDS)
    assert confined.call(b"result = hasattr(sys, 'mine')", SECONDS) == b"True"
    confined.refresh()
    assert confined.call(b"result = hasattr(sys, 'mine')", SECONDS) == b"False"


def test_calls_of_several_threads_wait_for_one_another(confined):
    answers = {}

    def ask(number):
        answers[number] = confined.call(b"result = %d" % number, SECONDS)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: b"%d" % number for number in range(8)}


def test_close_ends_everything_also_during_a_call():
    confined = Confined("attacker")
    folder = Path(confined._folder)
    assert list(folder.iterdir()) == []
    processes = family(confined._process.pid)
    assert len(processes) == 2
    failed = []

    def ask():
        try:
            confined.call(b"while True: pass", SECONDS)
        except SandboxError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    confined.close()
    thread.join()
    assert len(failed) == 1
    assert all(map(is_gone, processes))
    assert not folder.exists()
    with pytest.raises(SandboxError, match="closed"):
        confined.call(b"result = 1", SECONDS)
    confined.close()


def test_a_zygote_ended_from_outside_is_an_error_and_takes_its_worker_along():
    with Confined("attacker") as confined:
        zygote, worker = family(confined._process.pid)
        os.kill(zygote, signal.SIGKILL)
        assert is_gone(worker)
        with pytest.raises(SandboxError):
            confined.call(b"result = 1", SECONDS)
        with pytest.raises(SandboxError, match="from outside"):
            confined.call(b"result = 1", SECONDS)


PARENT = """
import signal, sys
from swarm.sandbox import Confined
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
confined = Confined("attacker", sys.argv[1].encode())
told = False
while True:
    try:  # an interrupt may come as soon as the number is out
        if not told:
            told = True
            print(confined._process.pid, flush=True)
        confined.call(b"while True: pass" if sys.argv[2] == "busy" else b"result = 1", 60)
        print("answered", flush=True)
        sys.stdin.readline()
    except KeyboardInterrupt:
        print(confined.call(b"result = 'still here'", 60), confined._process.pid, flush=True)
"""


def parent(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_nothing_outlives_a_parent_that_is_killed(state):
    with parent("", state) as process:
        zygote = int(process.stdout.readline())
        if state == "idle":
            assert process.stdout.readline() == "answered\n"
        processes = family(zygote)
        folder = Path(f"/proc/{zygote}/cwd").resolve()
        process.kill()
        assert all(map(is_gone, processes))
        assert not folder.exists()


def test_a_zygote_that_prepares_does_not_outlive_its_parent_either():
    with parent("hang", "idle") as process:
        watched = psutil.Process(process.pid)
        while not (children := watched.children()):
            os.sched_yield()
        process.kill()
        assert is_gone(children[0].pid)


def test_ctrl_c_is_for_the_parent_alone():
    with parent("", "busy") as process:
        zygote = process.stdout.readline().strip()
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == f"b\"'still here'\" {zygote}\n"
        process.kill()


def test_a_fork_of_this_process_answers_too():
    secret = os.urandom(8)

    def handle(request):
        if request == b"open":
            return os.open("/dev/null", os.O_RDONLY)
        return secret + request

    with Forked(handle) as forked:
        assert forked.call(b"x", SECONDS) == secret + b"x"
        with pytest.raises(SandboxDied, match="not permitted"):
            forked.call(b"open", SECONDS)
        assert forked.call(b"y", SECONDS) == secret + b"y"
        pid = forked._pid
    assert is_gone(pid)
