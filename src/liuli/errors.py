"""Errors a person reads: what was wrong, where, and what to do next."""

from __future__ import annotations

from pathlib import Path


class LiuliError(Exception):
    """Something failed that the user can act on. The command line prints it without a traceback.

    what: the fact. where: file, row, option or tensor. fix: the next step. Exit code 1.
    """

    exit_code = 1

    def __init__(self, what: str, where: str | Path | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(
            "\n".join(part for part in (what, where and f"  where: {where}", fix and f"  to do: {fix}") if part)
        )


class UsageError(LiuliError):
    """The user asked for something impossible: a wrong option, recipe or path. Exit code 2."""

    exit_code = 2


class DamagedError(LiuliError):
    """A file's content is not what was written (checksum, size or structure differs)."""
