"""One store for keys, chats and judgements: a file or PostgreSQL, brought up to date, whole when a disk is not."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liuli.assistant import Candidate, Chats, Judgement, Judgements, Store, export
from liuli.assistant.store import MIGRATIONS, REVISION, TABLES
from liuli.errors import LiuliError, UsageError
from liuli.text import Message

ASKED = (Message("user", "What is 2 + 2? 二加二？"),)
# What Liuli 0.1 wrote: its tables as sqlite3's `.schema` prints them, and user_version 1.
OLD = """
CREATE TABLE prompts (id INTEGER NOT NULL, digest VARCHAR NOT NULL, messages TEXT NOT NULL, time FLOAT NOT NULL,
  PRIMARY KEY (id), UNIQUE (digest));
CREATE TABLE answers (id INTEGER NOT NULL, prompt INTEGER NOT NULL, messages TEXT NOT NULL, model VARCHAR NOT NULL,
  model_hash VARCHAR NOT NULL, sampling JSON, time FLOAT NOT NULL, PRIMARY KEY (id),
  FOREIGN KEY(prompt) REFERENCES prompts (id));
CREATE TABLE judgements (id INTEGER NOT NULL, prompt INTEGER NOT NULL, kind VARCHAR NOT NULL, answers JSON NOT NULL,
  good BOOLEAN, skipped BOOLEAN NOT NULL, who VARCHAR NOT NULL, time FLOAT NOT NULL, PRIMARY KEY (id),
  FOREIGN KEY(prompt) REFERENCES prompts (id));
CREATE INDEX ix_judgements_prompt ON judgements (prompt);
PRAGMA user_version = 1;
INSERT INTO prompts VALUES (1, '0123456789abcdef', '[{"role":"user","content":"Hi"}]', 1.0);
INSERT INTO answers VALUES (1, 1, '[{"role":"assistant","content":"Hello"}]', 'chat', 'abc', '{"seed": 7}', 1.0);
INSERT INTO answers VALUES (2, 1, '[{"role":"assistant","content":"What?"}]', 'chat', 'abc', 'null', 1.0);
INSERT INTO judgements VALUES (1, 1, 'choice', '[1, 2]', NULL, 0, 'Ada', 1.0);
"""


def message(id: str, text: str, parent: str | None = None) -> dict[str, Any]:
    kept = {"id": id, "parent_id": parent, "message": {"role": "user", "content": text}}
    return {**kept, "model": "chat", "seed": 2**63 - 1, "sampling": {"temperature": 0.5}, "created": 1.5}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a real PostgreSQL, started for these tests (it refuses to run as root)."""
    server = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None) or Path("/nowhere")
    if not (server / "initdb").exists():
        found = shutil.which("initdb")
        if found is None:
            pytest.skip("PostgreSQL is not installed here: apt install postgresql")
        server = Path(found).parent
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install 'liuli[postgres]'")
    folder = Path(tempfile.mkdtemp(prefix="liuli-postgres-"))  # pytest's own folders are closed to other users
    user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")

    def run(name: str, *options: str) -> None:
        command = [str(server / name), "-D", str(folder / "data"), *options]
        done = subprocess.run(command, **user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr

    run("initdb", "-U", "liuli", "-A", "trust", "-E", "UTF8", "--no-sync")
    run("pg_ctl", "-w", "start", "-o", f"-c listen_addresses='' -k {folder} -c fsync=off", "-l", str(folder / "log"))
    yield f"postgresql+psycopg://liuli@/postgres?host={folder}"
    run("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    if request.param == "sqlite":
        opened = Store(tmp_path / "run" / "store.sqlite")
    else:
        url = request.getfixturevalue("postgres")
        with sql.create_engine(url).begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        opened = Store(url)
    yield opened
    opened.close()


def difference(store: Store) -> list[Any]:
    """How the tables in the database differ from those in the code; by Alembic itself."""
    with store.writing() as connection:
        return compare_metadata(MigrationContext.configure(connection), TABLES)


def test_migrations_make_the_tables_that_the_code_reads(store: Store) -> None:
    assert difference(store) == []
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


def test_an_old_file_of_judgements_is_brought_up_to_date_and_loses_nothing(tmp_path: Path) -> None:
    old = tmp_path / "judgements.sqlite"
    with sqlite3.connect(old) as raw:
        raw.executescript(OLD)
    judgements = Judgements(old)
    assert export(judgements, tmp_path / "dpo.jsonl", "dpo").rows == 1
    (said,) = judgements.said()
    assert (said.who, said.digest, "Hello" in said.answers[0]) == ("Ada", "0123456789abcdef", True)
    assert difference(judgements.store) == []
    Chats(judgements.store, "").save("c", "new", [message("m", "Hi")])
    judgements.store.close()
    assert Judgements(old).counts()["choice"] == 1 and Chats(Store(old), "").all()[0]["title"] == "new"


def test_a_store_of_a_newer_liuli_is_refused_and_left_as_it_is(store: Store) -> None:
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9999'")
    again = Store(store.url.render_as_string(hide_password=False))
    with pytest.raises(LiuliError, match="newer Liuli"):
        again.rows(sql.select(TABLES.tables["chats"]))
    with pytest.raises(LiuliError, match="newer Liuli"), again.writing():
        pass
    assert store.rows(sql.text("SELECT version_num FROM alembic_version")) == [("v9999",)]  # type: ignore[arg-type]


START = """
import sys
from liuli.assistant import Candidate, Chats, Judgement, Judgements, Store
from liuli.text import Message
store = Store(sys.argv[1])
judgements = Judgements(store)
for n in range(10):
    ids = judgements.show((Message("user", f"question {n % 3}"),), [Candidate((Message("assistant", sys.argv[2]),))])
    judgements.judge(Judgement("thumb", tuple(ids), sys.argv[2], good=True))
    Chats(store, sys.argv[2]).save(f"{sys.argv[2]}{n}", "x", [])
"""


def test_processes_that_start_at_once_migrate_once_and_lose_nothing(store: Store) -> None:
    where = str(store.path) if store.is_file else store.url.render_as_string(hide_password=False)
    writers = [
        subprocess.Popen([sys.executable, "-c", START, where, who], stderr=subprocess.PIPE, text=True)
        for who in ("Ada", "Bob", "Cyn")
    ]
    assert [writer.communicate(timeout=100)[1] for writer in writers] == ["", "", ""]
    assert Judgements(store).counts()["thumb"] == 30
    assert len(Judgements(store).said()) == 30 and {len(Chats(store, who).all()) for who in ("Ada", "Bob")} == {10}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, max_size=4), title=TEXT, who=TEXT)
def test_any_text_comes_back_as_it_was(store: Store, texts: list[str], title: str, who: str) -> None:
    chats = Chats(store, who)
    saved = [message(f"m{n}", text, f"m{n - 1}" if n else None) for n, text in enumerate(texts)]
    chats.save(f"chat of {who}", title, saved)
    read = chats.read(f"chat of {who}")
    assert (read["title"], read["messages"]) == (title, saved)
    judgements = Judgements(store)
    prompt = (Message("user", title + "\0"),)  # kept as JSON, which spells it out
    ids = judgements.show(prompt, [Candidate((Message("assistant", text),)) for text in (*texts, title)])
    judgements.judge(Judgement("thumb", (ids[0],), who, good=True))
    assert judgements.said()[-1].who == who.strip()


def test_a_chat_is_its_owners_alone(store: Store) -> None:
    ada, bob = Chats(store, "ada"), Chats(store, "bob")
    ada.save("c1", "first", [message("a", "1"), message("b", "2", "a"), message("c", "other", "a")])
    ada.save("c2", "second", [])
    bob.save("c3", "bob's", [message("a", "mine")])
    for forbidden in (lambda: bob.read("c1"), lambda: bob.delete("c1"), lambda: bob.save("c1", "stolen", [])):
        with pytest.raises(KeyError):
            forbidden()
    assert [chat["id"] for chat in ada.all()] == ["c2", "c1"] and [chat["id"] for chat in bob.all()] == ["c3"]
    ada.save("c1", "again", [message("d", "new")])
    read = ada.read("c1")
    assert (read["title"], [each["id"] for each in read["messages"]]) == ("again", ["d"])
    ada.delete("c1")
    for gone in (ada.read, ada.delete):
        with pytest.raises(KeyError):
            gone("c1")
    assert bob.read("c3")["messages"] == [message("a", "mine")]


def fill(chats: Chats) -> list[str]:
    """Save until the store refuses; the ids that were acknowledged."""
    acknowledged: list[str] = []
    with pytest.raises(LiuliError, match="full") as error:
        for n in range(1000):
            chats.save(f"c{n}", "t", [message("m", "x" * 4000)])
            acknowledged.append(f"c{n}")
    assert "make room" in str(error.value)
    return acknowledged


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: this test needs root (the next one fills a store without it)")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_on_a_full_disk_nothing_acknowledged_is_lost_and_it_goes_on_when_there_is_room(tiny_disk: Path) -> None:
    (tiny_disk / "other").write_bytes(b"x" * 200_000)
    store = Store(tiny_disk / "store.sqlite")
    acknowledged = fill(Chats(store, ""))
    assert acknowledged and {chat["id"] for chat in Chats(store, "").all()} == set(acknowledged)
    (tiny_disk / "other").unlink()
    Chats(store, "").save("after", "t", [])
    store.close()
    again = Chats(Store(tiny_disk / "store.sqlite"), "")
    assert {chat["id"] for chat in again.all()} == {*acknowledged, "after"}
    assert all(len(again.read(id)["messages"]) == 1 for id in acknowledged)
    again.store.close()


def test_a_store_that_may_not_grow_says_so(tmp_path: Path) -> None:
    """SQLite's own "disk is full", without a disk that is."""
    store = Store(tmp_path / "store.sqlite")
    Chats(store, "").all()
    with store.writing() as connection:
        connection.exec_driver_sql("SELECT 1")
    sql.event.listen(store._engine, "checkout", lambda raw, *_: raw.execute("PRAGMA max_page_count=60"))
    acknowledged = fill(Chats(store, ""))
    assert {chat["id"] for chat in Chats(store, "").all()} == set(acknowledged)


def unreadable(folder: Path) -> str:
    Chats(Store(folder / "s.sqlite"), "").save("c", "t", [])
    return f"sqlite:///file:{folder}/s.sqlite?mode=ro&uri=true"


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        (unreadable, LiuliError, "readonly"),
        (lambda folder: str(folder / "file" / "s.sqlite"), LiuliError, "cannot be read or written"),
        (lambda _: "mysql://u:secret@host/db", UsageError, "no driver"),
        (lambda _: "nonsense://", UsageError, "no driver"),
        (lambda _: "postgresql+psycopg://u:secret@127.0.0.1:1/db", LiuliError, "cannot be read or written"),
    ],
)
def test_a_store_that_cannot_be_written_says_why_and_tells_no_password(
    tmp_path: Path, where: Callable[[Path], str], error: type[LiuliError], said: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=said) as raised:
        Chats(Store(where(tmp_path)), "").save("d", "t", [])
    assert "secret" not in str(raised.value)
