"""Options that commands of several files share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text for people.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on the terminal.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count bad rows and go on.")]
STORE = "Where keys, chats and judgements are kept: a path or URL. Default: in the run folder."
