"""Programs that a model writes, run against tests: right is what passes them (arXiv 2107.03374, HumanEval).

Each program gets a process of its own: its memory, time, files and processes are bounded, it sees an empty environment
and folder, and what opens files to write, sockets or other programs is refused. That holds up accidents and cheap
tricks, not an attacker: run it where nothing can be harmed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

SECONDS = 5.0
"""Of one program; of processor time and by the clock."""

_CHILD = """
import json, os, resource, sys
for what, most in (("CPU", int(sys.argv[1])), ("AS", 1 << 30), ("FSIZE", 0), ("CORE", 0)):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
    except (ValueError, OSError):
        pass  # macOS bounds no memory
verdict, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(nothing, 1), os.dup2(nothing, 2)  # what a program prints is nobody's
REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill",
           "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink",
           "os.putenv", "shutil.", "ctypes.", "resource.", "signal.", "pty.")
def refuse(event, given):
    if event.startswith(REFUSED) or event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise PermissionError(event)
program, inside = json.loads(sys.stdin.readline()), {"__name__": "__main__"}
sys.addaudithook(refuse)
exec(compile(program, "<answer>", "exec"), inside)
tests, passed = json.loads(sys.stdin.readline())  # read only now: the program cannot know what says that it passed
exec(compile(tests, "<tests>", "exec"), inside)
os.write(verdict, passed.encode())
"""

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(answer: str) -> str:
    """The Python of an answer: its fenced blocks, or all of it where there are none."""
    return "\n".join(_FENCED.findall(answer)) or answer


def passes(answer: str, tests: str, seconds: float = SECONDS) -> bool:
    """Whether the Python in an answer runs and passes the tests."""
    passed = secrets.token_hex(16)
    given = f"{json.dumps(code_of(answer))}\n{json.dumps([tests, passed])}\n"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-S", "-B", "-c", _CHILD, str(max(1, round(seconds)))]
        try:
            ran = subprocess.run(
                command,
                input=given.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return False
    return ran.stdout == passed.encode()


def passed(answers: Sequence[str], tests: Sequence[str]) -> list[bool]:
    """`passes` for many answers, as many at a time as there are processors; one without tests does not run."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda answer, own: bool(own) and passes(answer, own), answers, tests))
