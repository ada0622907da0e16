"""The store: one database for keys, chats and judgements; SQLite in a file, or PostgreSQL by URL.

In: the path of a file or an SQLAlchemy URL. Out: a connection to write with, rows that were read, and errors a person
understands. Its tables are made and brought up to date by the migrations beside this file, under a lock, with the first
write. What stands in the tables is for judgements.py, chats.py and the server's keys to say.
"""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import Column
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, InterfaceError, NoSuchModuleError, OperationalError

from liuli.errors import DamagedError, LiuliError, UsageError

FILE = "judgements.sqlite"  # in a run folder
WAIT_SECONDS = 30.0  # for another process that is writing
REVISION = "v0002"  # the newest of migrations/versions
MIGRATIONS = Path(__file__).parent / "migrations"
POSTGRES_LOCK = 8_365_001  # any number that no other program takes for its advisory lock
TABLES = sql.MetaData()


def column(name: str, *kind: Any, **more: Any) -> Column[Any]:
    """A column that is never null."""
    return Column(name, *kind, nullable=False, **more)


def _table(name: str, *columns: Column[Any]) -> sql.Table:
    made = column("time", sql.Float, default=time.time)
    return sql.Table(name, TABLES, Column("id", sql.Integer, primary_key=True), *columns, made)


PROMPTS = _table("prompts", column("digest", sql.String, unique=True), column("messages", sql.Text))
ANSWERS = _table(
    "answers",
    column("prompt", sql.ForeignKey("prompts.id")),
    column("messages", sql.Text),
    column("model", sql.String),  # "": written by a person
    column("model_hash", sql.String),
    Column("sampling", sql.JSON),
)
JUDGEMENTS = _table(
    "judgements",
    column("prompt", sql.ForeignKey("prompts.id"), index=True),
    column("kind", sql.String),
    column("answers", sql.JSON),  # their ids, the best first
    Column("good", sql.Boolean),  # of a thumb
    column("skipped", sql.Boolean),
    column("who", sql.String),
)
KEYS = _table(
    "keys",
    column("name", sql.String, unique=True),
    column("digest", sql.String, unique=True),  # sha256 of the key, in hexadecimal
    Column("requests_per_minute", sql.Integer),  # null: no limit
    Column("tokens_per_minute", sql.Integer),
)
CHATS = sql.Table(
    "chats",
    TABLES,
    Column("id", sql.String, primary_key=True),
    column("owner", sql.String, index=True),  # the name of a key; "": whoever sits at this machine
    column("title", sql.Text),
    column("created", sql.Float),
    column("updated", sql.Float),
)
MESSAGES = sql.Table(
    "messages",
    TABLES,
    Column("chat", sql.ForeignKey("chats.id"), primary_key=True),
    Column("id", sql.String, primary_key=True),
    Column("parent_id", sql.String),  # the message it follows, in the same chat; null: it opens the chat
    column("place", sql.Integer),  # its position in the list that was saved
    column("message", sql.JSON),
    column("model", sql.String),
    Column("seed", sql.BigInteger),
    Column("sampling", sql.JSON),
    column("created", sql.Float),
)


class Store:
    """The database at `where`, a path or a URL; a file is made with the first write. Methods raise LiuliError."""

    def __init__(self, where: str | Path) -> None:
        try:
            text = str(where)
            self.url = sql.make_url(text) if "://" in text else sql.URL.create("sqlite", database=text)
        except ArgumentError as error:
            fix = "for example --store postgresql+psycopg://name:password@host/database"
            raise UsageError("This is no URL of a database.", "--store", fix) from error
        self.is_file = self.url.get_backend_name() == "sqlite"
        self.path = Path(self.url.database or "store")
        self.where = str(self.path) if self.is_file else self.url.render_as_string(hide_password=True)

    def rows(self, query: sql.Select[Any]) -> list[Any]:
        """What a query finds; nothing where there is no file yet."""
        if self.is_file and not str(self.path).startswith("file:") and not self.path.exists():
            return []
        with self._errors(), self._engine.connect() as connection:
            return list(connection.execute(query).all())

    @contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """A transaction that is kept when the block ends, and lost when it raises. One process writes at a time."""
        with self._errors(), self._engine.begin() as connection:
            self._lock(connection)
            yield connection

    def close(self) -> None:
        """Close the connections."""
        if "_engine" in self.__dict__:
            self._engine.dispose()

    def _lock(self, connection: sql.Connection) -> None:
        lock = "BEGIN IMMEDIATE" if self.is_file else f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"
        connection.exec_driver_sql(lock)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise UsageError(f"This cannot be stored: {error.orig}.", self.where) from error
        except (OperationalError, InterfaceError, OSError) as error:
            what = f"The store cannot be read or written: {getattr(error, 'orig', error)}."
            raise LiuliError(what, self.where, "make room there, or choose another one: --store PATH or URL") from error
        except DatabaseError as error:
            what = f"The store is damaged: {error.orig}."
            raise DamagedError(what, self.where, "use a copy of it, or move it away") from error

    @functools.cached_property
    def _engine(self) -> sql.Engine:
        engine = self._file_engine() if self.is_file else self._server_engine()
        with engine.begin() as connection:
            found = self._revision(connection)
            if found != REVISION:
                self._lock(connection)
                self._migrate(connection, self._revision(connection))
        if self.is_file:
            with closing(engine.raw_connection()) as raw, suppress(sqlite3.OperationalError):
                raw.cursor().execute("PRAGMA journal_mode=WAL")  # refused while another writes: then next time
        return engine

    def _file_engine(self) -> sql.Engine:
        if not str(self.path).startswith("file:"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        # isolation_level None: sqlite3 begins no transaction of its own, so that tables are made inside of ours
        engine = sql.create_engine(self.url, connect_args={"timeout": WAIT_SECONDS, "isolation_level": None})
        # FULL: what was acknowledged is on the disk, also when the power goes (WAL's own default is less)
        sql.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=FULL"))
        return engine

    def _server_engine(self) -> sql.Engine:
        try:
            return sql.create_engine(self.url, pool_pre_ping=True)
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            fix = "for PostgreSQL: pip install 'liuli[postgres]', and postgresql+psycopg://name:password@host/database"
            raise UsageError(f"There is no driver for {self.url.drivername!r}.", "--store", fix) from error

    def _revision(self, connection: sql.Connection) -> str:
        """The newest migration that was made here; "" for an empty database. Raises LiuliError for a stranger's."""
        there = set(sql.inspect(connection).get_table_names())
        if "alembic_version" in there:
            return str(connection.execute(sql.text("SELECT version_num FROM alembic_version")).scalar_one())
        before = connection.exec_driver_sql("PRAGMA user_version").scalar_one() if self.is_file else 0
        if before > 1:
            raise self._newer(f"tables {before}")
        if before == 1:  # how judgements were kept before there were migrations: their tables are the first migration's
            return "v0001"
        if there:
            what = f"This database holds something else: the table {min(there)}."
            raise UsageError(what, self.where, "choose another one: --store PATH or URL")
        return ""

    def _migrate(self, connection: sql.Connection, found: str) -> None:
        from alembic import command  # a tenth of a second, needed once in a database's life
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if found and found not in known:
            raise self._newer(found)
        if found == "v0001" and "alembic_version" not in sql.inspect(connection).get_table_names():
            command.stamp(config, found)
        command.upgrade(config, REVISION)

    def _newer(self, found: str) -> LiuliError:
        what = f"This store was written by a newer Liuli ({found}; this one knows {REVISION})."
        return LiuliError(what, self.where, "update Liuli, or choose another one: --store PATH or URL")


def insert(connection: sql.Connection, table: sql.Table, **values: Any) -> int:
    """Add a row; return its id."""
    key = connection.execute(table.insert().values(**values)).inserted_primary_key
    return int(key[0]) if key else 0
