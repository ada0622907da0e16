"""Prompts, answers and what people said of them: the tables of Liuli 0.1."""

import sqlalchemy as sql
from alembic import op

revision, down_revision = "v0001", None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "prompts",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("digest", sql.String, nullable=False, unique=True),
        sql.Column("messages", sql.Text, nullable=False),
        sql.Column("time", sql.Float, nullable=False),
    )
    op.create_table(
        "answers",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("prompt", sql.Integer, sql.ForeignKey("prompts.id"), nullable=False),
        sql.Column("messages", sql.Text, nullable=False),
        sql.Column("model", sql.String, nullable=False),
        sql.Column("model_hash", sql.String, nullable=False),
        sql.Column("sampling", sql.JSON),
        sql.Column("time", sql.Float, nullable=False),
    )
    op.create_table(
        "judgements",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("prompt", sql.Integer, sql.ForeignKey("prompts.id"), nullable=False, index=True),
        sql.Column("kind", sql.String, nullable=False),
        sql.Column("answers", sql.JSON, nullable=False),
        sql.Column("good", sql.Boolean),
        sql.Column("skipped", sql.Boolean, nullable=False),
        sql.Column("who", sql.String, nullable=False),
        sql.Column("time", sql.Float, nullable=False),
    )
