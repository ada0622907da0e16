"""Count the code lines of src, room by room, in the order in which to read them: `python scripts/count.py [SRC]`.

A code line holds code: no blank line, comment or docstring. Exit code 1 when the core or all of src grew over its
budget, which is there so that one person can read the whole house.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOMS = (
    *("errors", "files", "folder", "text", "curriculum", "model", "engine", "train", "stages", "evals", "assistant"),
    *("inside", "plan", "recipe", "material", "build", "planning", "running", "aligning", "server", "terminal", "cli"),
)
CORE = ("errors", "files", "folder", "text", "model", "engine", "train", "stages")
CORE_BUDGET, SRC_BUDGET = 9_765, 20_247  # 6,000 and 14,000 before learning from preferences and serving moved in
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source: str) -> int:
    """Return how many lines of a Python source hold code."""
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in _NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def room_of(file: Path, package: Path) -> str:
    """Return the room a source file belongs to: a folder or a module directly in the package."""
    return file.relative_to(package).parts[0].removesuffix(".py")


def reading_order(package: Path) -> list[Path]:
    """Return the source files as one reads them: by room, its front door first, then what a file imports before it."""
    files = sorted(package.rglob("*.py"))
    rank = {room: index for index, room in enumerate(ROOMS)}
    order: list[Path] = []

    def visit(file: Path, open_files: tuple[Path, ...] = ()) -> None:
        if file in order or file in open_files:
            return
        room = room_of(file, package)
        for name in () if file.name == "__init__.py" else imported_modules(file, package):
            target = package.parent / (name.replace(".", "/") + ".py")
            if target in files and room_of(target, package) == room:
                visit(target, (*open_files, file))
        order.append(file)

    for file in sorted(files, key=lambda f: (rank.get(room_of(f, package), len(ROOMS)), f.name != "__init__.py", f)):
        visit(file)
    return order


def imported_modules(file: Path, package: Path) -> list[str]:
    """Return the modules of the package that a file imports anywhere in it, e.g. "liuli.text.chat"."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = file.relative_to(package.parent).parts[: -node.level]
                base = ".".join((*parent, base)) if base else ".".join(parent)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == package.name]


def main(package: Path) -> int:
    """Print the table; return 1 if a budget is exceeded."""
    totals: dict[str, int] = {}
    for file in reading_order(package):
        source = file.read_text(encoding="utf-8")
        count = code_lines(source)
        room = room_of(file, package)
        totals[room] = totals.get(room, 0) + count
        sign = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
        print(f"{count:6}  {file.relative_to(package)!s:28} {sign:.82}")
    core, everything = sum(totals.get(room, 0) for room in CORE), sum(totals.values())
    print("\n" + "  ".join(f"{room} {count}" for room, count in totals.items()))
    print(f"core {core} of {CORE_BUDGET}, all {everything} of {SRC_BUDGET} code lines")
    return int(core > CORE_BUDGET or everything > SRC_BUDGET)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / "liuli")))
