"""Chats as the page keeps them: whose they are is asked in one place, and another's chat is one that is not there.

In: an owner (the name of a key, "" at this machine), a chat as JSON-like values. Out: the same.
"""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sql

from liuli.assistant.store import CHATS, MESSAGES, Store

LISTED_AT_MOST = 1000
_SAVED = ("id", "parent_id", "message", "model", "seed", "sampling", "created")


class Chats:
    """The chats of one owner. Methods raise KeyError for a chat that is not there, LiuliError when the store fails."""

    def __init__(self, store: Store, owner: str) -> None:
        self.store, self.owner = store, owner

    def all(self) -> list[dict[str, Any]]:
        """{"id", "title", "created", "updated"} of each, the one that was saved last first."""
        query = sql.select(CHATS).where(CHATS.c.owner == self.owner).order_by(CHATS.c.updated.desc())
        return [self._about(row) for row in self.store.rows(query.limit(LISTED_AT_MOST))]

    def read(self, id: str) -> dict[str, Any]:
        """What `all` says of it, and "messages" as they were saved."""
        found = self.store.rows(self._own(id))
        if not found:
            raise KeyError(id)
        messages = self.store.rows(sql.select(MESSAGES).where(MESSAGES.c.chat == id).order_by(MESSAGES.c.place))
        kept = [{name: getattr(row, name) for name in _SAVED} for row in messages]
        return {**self._about(found[0]), "messages": kept}

    def save(self, id: str, title: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Keep a chat, in place of what was saved under this id before. messages: with the keys of `_SAVED`."""
        now = time.time()
        with self.store.writing() as connection:
            if connection.execute(self._own(id)).first():
                connection.execute(MESSAGES.delete().where(MESSAGES.c.chat == id))
                connection.execute(CHATS.update().where(CHATS.c.id == id).values(title=title, updated=now))
            elif connection.execute(sql.select(CHATS.c.id).where(CHATS.c.id == id)).first():
                raise KeyError(id)
            else:
                connection.execute(
                    CHATS.insert().values(id=id, owner=self.owner, title=title, created=now, updated=now)
                )
            if messages:
                rows = [{**message, "chat": id, "place": place} for place, message in enumerate(messages)]
                connection.execute(MESSAGES.insert(), rows)
        return {"id": id, "title": title, "updated": now}

    def delete(self, id: str) -> None:
        """Forget a chat."""
        with self.store.writing() as connection:
            if not connection.execute(self._own(id)).first():
                raise KeyError(id)
            connection.execute(MESSAGES.delete().where(MESSAGES.c.chat == id))
            connection.execute(CHATS.delete().where(CHATS.c.id == id))

    def _own(self, id: str) -> sql.Select[Any]:
        return sql.select(CHATS).where(CHATS.c.id == id, CHATS.c.owner == self.owner)

    @staticmethod
    def _about(row: Any) -> dict[str, Any]:
        return {"id": row.id, "title": row.title, "created": row.created, "updated": row.updated}
