"""Native code inside the sandbox tries what it can; everything fails, and the next call is answered."""

import os
import platform
import resource
import sys
from pathlib import Path

import pytest

from swarm.sandbox import Confined, SandboxDied, SandboxError, check_sandbox

pytestmark = pytest.mark.skipif(check_sandbox() is not None, reason=f"no sandbox here: {check_sandbox()}")
linux = pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux")

SECONDS = 30.0


@pytest.fixture(scope="module")
def confined():
    with Confined("attacker", memory_bytes=256 << 20) as confined:
        yield confined


def attempt(confined, code):
    """What the code did: True if it went through, else its error or its end."""
    lines = "\n".join(f"    {line}" for line in code.strip().splitlines())
    refused = "(OSError, ValueError, RuntimeError, MemoryError)"
    request = f"try:\n{lines}\n    result = True\nexcept {refused} as error:\n    result = str(error)"
    try:
        answer = confined.call(request.encode(), SECONDS)
    except SandboxDied as error:
        answer = str(error).encode()
    assert confined.call(b"result = 6 * 7", SECONDS) == b"42"
    return answer.decode()


ATTEMPTS = {
    "read a file": "os.open(FILE, os.O_RDONLY)",
    "write a file": "os.open(FILE + '.new', os.O_WRONLY | os.O_CREAT)",
    "read its own memory's map": "os.open('/proc/self/maps', os.O_RDONLY)",
    "write the parent's memory": "os.open('/proc/PARENT/mem', os.O_RDWR)",
    "list a folder": "os.listdir('/')",
    "look at a file": "os.stat(FILE)",
    "make a link": "os.symlink(FILE, FILE + '.link')",
    "make a hard link": "os.link(FILE, FILE + '.hard')",
    "delete a file": "os.unlink(FILE)",
    "rename a file": "os.rename(FILE, FILE + '.old')",
    "change a mode": "os.chmod(FILE, 0o777)",
    "make a folder": "os.mkdir(FILE + '.d')",
    "make a pipe": "os.pipe()",
    "copy a descriptor": "os.dup(0)",
    "open a socket": "socket.socket()",
    "open a local socket": "socket.socket(socket.AF_UNIX)",
    "open a pair of sockets": "socket.socketpair()",
    "look up a name": "socket.getaddrinfo('localhost', 80)",
    "fork": "os.fork()",
    "start a program": "subprocess.run(['/bin/true'])",
    "become a program": "os.execv('/bin/true', ['true'])",
    "start a thread": "threading.Thread(target=print).start()",
    "kill the parent": "os.kill(PARENT, signal.SIGKILL)",
    "kill the zygote": "os.kill(os.getppid(), signal.SIGKILL)",
    "kill its group": "os.killpg(os.getpgid(0), signal.SIGKILL)",
    "kill all": "os.kill(-1, signal.SIGKILL)",
    "ask whether the parent is there": "os.kill(PARENT, 0)",
    "leave its session": "os.setsid()",
    "become a user": "os.setuid(12345)",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))",
    "raise a limit of the parent": "resource.prlimit(PARENT, resource.RLIMIT_NOFILE, (100, 100))",
    "slow others down": "os.nice(-5)",
    "change its folder": "os.chdir('/')",
}
LINUX_ATTEMPTS = {
    "trace the parent": "checked(libc.ptrace(16, PARENT, None, None))",
    "trace itself": "checked(libc.ptrace(0, 0, None, None))",
    "read the parent's memory": "checked(libc.process_vm_readv(PARENT, None, 0, None, 0, 0))",
    "undo the end with the zygote": "checked(libc.prctl(1, 0, 0, 0, 0))",
    "add a filter": "checked(libc.prctl(22, 2, None))",
    "make a namespace": "checked(libc.unshare(0x10000000))",
    "mount": "checked(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))",
    "make a file in memory": "checked(libc.memfd_create(b'x', 0))",
    "make a ring": "checked(libc.syscall(425, 8, None))",
    "open by the second call": "checked(libc.syscall(437, -100, FILE.encode(), b'\\0' * 24, 24))",
    "get a descriptor of the parent": "checked(libc.syscall(434, PARENT, 0))",
    "send a signal to a thread": "checked(libc.syscall(234, PARENT, PARENT, 9))",
    "make a key": "checked(libc.syscall(248, b'user', b'x', b'y', 1, -3))",
    "wait for a fault": "checked(libc.syscall(323, 0))",
    "load a program of the kernel": "checked(libc.syscall(321, 0, None, 0))",
    "ask for events": "checked(libc.syscall(298, None, 0, -1, -1, 0))",
    "change a descriptor": "import fcntl; fcntl.fcntl(0, fcntl.F_SETFL, 0)",
    "control a device": "import fcntl; fcntl.ioctl(0, 0x5401, b' ' * 64)",
    "share memory": "mmap.mmap(-1, 1 << 20)",
    "get a stack that grows": (
        "libc.mmap.restype = ctypes.c_long\n"
        "checked(libc.mmap(None, ctypes.c_size_t(1 << 20), 3, 0x122, -1, 0))"
    ),
    "reserve all addresses": "mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=1)",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_refused(confined, tmp_path, name):
    file = tmp_path / "swarm.pem"
    file.write_text("the key")
    code = ATTEMPTS[name].replace("PARENT", str(os.getpid())).replace("FILE", repr(str(file)))
    assert attempt(confined, code) != "True"
    assert file.read_text() == "the key"
    assert list(tmp_path.iterdir()) == [file]


@linux
@pytest.mark.parametrize("name", LINUX_ATTEMPTS)
def test_refused_on_linux(confined, tmp_path, name):
    if "libc.syscall" in LINUX_ATTEMPTS[name] and platform.machine() != "x86_64":
        pytest.skip("a number of x86_64")
    file = str(tmp_path / "x")
    code = LINUX_ATTEMPTS[name].replace("PARENT", str(os.getpid())).replace("FILE", repr(file))
    assert attempt(confined, code) != "True"


@linux
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a numbering of x86_64")
def test_another_numbering_of_system_calls_kills(confined):
    assert "signal 31" in attempt(confined, "libc.syscall(0x40000000 | 39)")


@pytest.mark.parametrize(
    "code",
    [
        "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
        "bytearray(1 << 40)",
        "kept = []\nwhile True: kept.append([0] * 100)",
        "kept = []\nflags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS\n"
        "while True: kept.append(mmap.mmap(-1, 1 << 26, flags=flags)); kept[-1][:] = b'x' * (1 << 26)",
    ],
)
def test_memory_ends_at_the_limit(confined, code):
    assert attempt(confined, code) != "True"


@linux
def test_the_main_stack_is_no_way_around_the_limit():
    """Whatever the limit of whoever starts it."""
    before = resource.getrlimit(resource.RLIMIT_STACK)
    if before[1] != resource.RLIM_INFINITY:
        pytest.skip("the stack is limited for good")
    resource.setrlimit(resource.RLIMIT_STACK, (before[1], before[1]))
    try:
        with Confined("attacker", memory_bytes=16 << 20) as confined:
            grow = "for page in range(1, PAGES): ctypes.memset(STACK - 4096 * page, 1, 1)"
            assert attempt(confined, grow.replace("PAGES", "256")) == "True"
            assert "signal 11" in attempt(confined, grow.replace("PAGES", f"{(64 << 20) // 4096}"))
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, before)


def test_an_endless_recursion_ends(confined):
    code = "sys.setrecursionlimit(10 ** 9)\nf = lambda n: max([n], key=f)\nf(1)"
    assert attempt(confined, code) != "True"


@pytest.mark.parametrize(
    "code",
    [
        "result = 'x' * (17 << 20)",
        "while True: os.write(CHANNEL, b'\\xff' * 4096)",
        "while True: os.write(CHANNEL, b'\\0\\0\\0\\0')",
    ],
)
def test_endless_output_ends(confined, code):
    with pytest.raises(SandboxDied, match="more than it may"):
        confined.call((FIND_CHANNEL + code).encode(), SECONDS)
    assert confined.call(b"result = 1", SECONDS) == b"1"


FIND_CHANNEL = """
opened = []
for number in range(3, 4096):
    try:
        os.read(number, 0)
        opened.append(number)
    except OSError:
        pass
CHANNEL = opened[0]
"""


def test_nothing_but_the_channel_is_open(confined):
    assert confined.call((FIND_CHANNEL + "result = len(opened)").encode(), SECONDS) == b"1"


@linux
def test_descriptors_are_the_null_device_and_one_socket(confined):
    pid = int(confined.call(b"result = os.getpid()", SECONDS))
    links = sorted(str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
    assert links[:3] == [os.devnull] * 3
    assert len(links) == 4 and links[3].startswith("socket:")


def test_answers_given_in_advance_end_with_the_worker(confined):
    request = FIND_CHANNEL + "while True: os.write(CHANNEL, b'\\0\\0\\0\\4\\x00100')"
    assert confined.call(request.encode(), SECONDS) == b"100"
    confined.refresh()
    assert confined.call(b"result = 1", SECONDS) == b"1"


def test_what_a_worker_says_of_its_failure_cannot_steer_a_terminal(confined):
    with pytest.raises(SandboxError) as caught:
        confined.call(b"raise ValueError('\\x1b[2J' + 'x' * 10**6)", SECONDS)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
