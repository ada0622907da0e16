"""The page is built with the package: fresh, small, from a lock file that names no registry, with or without a Node."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests import conftest

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"


@pytest.fixture
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_built_page_is_of_these_sources(hook: ModuleType) -> None:
    assert hook.is_fresh(), "web/ was changed after the page was built: run `python hatch_build.py`"


def test_the_page_is_small(hook: ModuleType) -> None:
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in hook.PAGE.rglob("*") if path.is_file()}
    assert sum(size for name, size in sizes.items() if name.endswith(".js")) <= 60_000
    assert sum(sizes.values()) <= 250_000


def test_the_lock_file_names_no_registry() -> None:
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert len(packages) > 10
    assert not [name for name, about in packages.items() if "resolved" in about]
    assert all("integrity" in about for name, about in packages.items() if name)
    assert "registry=" not in (WEB / ".npmrc").read_text()


def test_a_changed_source_makes_the_page_stale(hook: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.tsx").write_text("one")
    before = hook.source_hash(tmp_path)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "other.js").write_text("not a source")
    assert hook.source_hash(tmp_path) == before
    (tmp_path / "src" / "main.tsx").write_text("two")
    assert hook.source_hash(tmp_path) != before


def test_node_is_asked_for_only_where_it_is_needed(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = hook.PageHook.dependencies
    monkeypatch.setattr(hook, "is_fresh", lambda: True)
    monkeypatch.setattr(hook, "system_npm", lambda: None)
    assert wanted(None) == []
    monkeypatch.setattr(hook, "is_fresh", lambda: False)
    assert wanted(None) == [hook.NODE_PACKAGE]
    monkeypatch.setattr(hook, "system_npm", lambda: ["npm"])
    assert wanted(None) == []


def test_an_old_system_node_is_not_used(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, says in {"node": "v18.20.1", "npm": "9"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho {says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert hook.system_npm() is None
    (tmp_path / "node").write_text("#!/bin/sh\necho v20.19.0\n")
    assert hook.system_npm() == [str(tmp_path / "npm")]


def test_the_types_of_the_page_are_right() -> None:
    compiler = WEB / "node_modules" / ".bin" / "tsc"
    if not compiler.exists() or shutil.which("node") is None:
        pytest.skip("the TypeScript compiler is not here: run `npm ci` in web/")
    done = subprocess.run([compiler, "--noEmit"], cwd=WEB, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_without_chromium_the_tests_of_the_page_fail_unless_told_to_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "chromium", lambda: None)
    monkeypatch.delenv("LIULI_NO_BROWSER", raising=False)
    with pytest.raises(pytest.fail.Exception, match=r"apt install chromium.*\n.*LIULI_NO_BROWSER=1"):
        conftest.needed_chromium()
    monkeypatch.setenv("LIULI_NO_BROWSER", "1")
    with pytest.raises(pytest.skip.Exception):
        conftest.needed_chromium()
