"""The house keeps its plan: who may import whom, what starts fast, how long it is, who may write."""

from __future__ import annotations

import ast
import importlib.util
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "liuli"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _count() -> ModuleType:
    spec = importlib.util.spec_from_file_location("count", ROOT / "scripts" / "count.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


count = _count()
RANK = {room: number for number, room in enumerate(count.ROOMS)}


def _name(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def test_a_room_imports_only_from_rooms_before_it() -> None:
    wrong = []
    for file in SOURCES:
        room = count.room_of(file, PACKAGE)
        if room in ("__init__", "__main__"):  # the package's own front door opens on all rooms, lazily
            continue
        assert room in RANK, f"{_name(file)}: a new room needs its place in scripts/count.py and docs/design.md"
        rooms = {name.split(".")[1] for name in count.imported_modules(file, PACKAGE) if "." in name}
        wrong += [f"{_name(file)} imports {other}" for other in rooms if RANK.get(other, -1) > RANK[room]]
    assert not wrong


def test_text_curriculum_files_and_the_help_page_need_no_torch() -> None:
    code = """
import sys
import importlib, pkgutil
import liuli.cli, liuli.files, liuli.folder, liuli.text, liuli.curriculum
for room in (liuli.text, liuli.curriculum):
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
from typer.testing import CliRunner
result = CliRunner().invoke(liuli.cli.app, ["--help"])
assert result.exit_code == 0, result.output
print(*[name for name in ("torch", "transformers", "fastapi") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_help_page_takes_half_a_second_at_most() -> None:
    def seconds() -> float:  # processor time, for the wall clock also measures what else this machine does
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "liuli", "--help"], check=True, capture_output=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_every_command_stands_in_both_readmes() -> None:
    from liuli.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {str(group.name) for group in app.registered_groups}
    for readme in ("README.md", "README.zh.md"):
        text = (ROOT / readme).read_text("utf-8")
        assert not [name for name in sorted(names) if f"liuli {name}" not in text], readme


def test_the_house_stays_small_enough_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, table = count.main(PACKAGE), capsys.readouterr().out
    assert exit_code == 0, table
    assert 0 < table.index("files.py") < table.index("model/transformer.py") < table.index("cli/__init__.py")


def test_code_lines_are_counted_without_comments_and_docstrings() -> None:
    lines = [
        '"""Sign."""',
        "",
        "x = 1  # why",
        "# a comment",
        "def f():",
        '    """Doc',
        '    string."""',
        "    return (",
        "    )",
    ]
    assert count.code_lines("\n".join(lines) + "\n") == 4


def test_nothing_is_unpickled_and_files_py_is_the_only_writer() -> None:
    wrong = []
    for file in SOURCES:
        calls = [
            node.func for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        for call in (ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)):
            unpickles = call in (
                "torch.load",
                "torch.save",
                "pickle.load",
                "pickle.loads",
                "pickle.dump",
                "joblib.load",
            )
            if unpickles or (file.name != "files.py" and call.endswith((".write_text", ".write_bytes"))):
                wrong.append(f"{_name(file)}: {call}")
    assert not wrong
