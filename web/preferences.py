"""What users set on the settings page: folders, and the token of the model hub, never shown again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sqlalchemy import delete, insert, select

from web.database import Database
from web.problems import invalid
from web.schema import settings as table
from web.settings import WebSettings

Key = Literal["training_folder", "datasets_folder", "hf_token"]


class Preferences:
    """Settings kept in the database, over those of the environment; in memory too, as every page asks."""

    def __init__(self, database: Database, settings: WebSettings) -> None:
        self.database = database
        self.settings = settings
        with database.read() as connection:
            self._values = {row.key: row.value for row in connection.execute(select(table))}

    def _get(self, key: Key) -> str | None:
        return self._values.get(key)

    @property
    def output_root(self) -> Path:
        """The folder of all runs."""
        return Path(self._get("training_folder") or self.settings.output_root).resolve()

    @property
    def datasets_root(self) -> Path:
        """The folder of all datasets."""
        return Path(self._get("datasets_folder") or self.settings.datasets_root).resolve()

    @property
    def hf_token(self) -> str | None:
        """The token of the model hub, for the environment of jobs only."""
        return self._get("hf_token")

    def set(self, key: Key, value: str | None) -> None:
        """Set a value; None or blanks put back the default. Raises 422 for a folder that is none."""
        text = (value or "").strip()
        if text and key != "hf_token":
            folder = Path(text).expanduser()
            if not folder.is_absolute() or not folder.is_dir():
                raise invalid("is no folder of the server; give its whole path", f"/{key}")
            text = str(folder.resolve())
        with self.database.write() as tx:
            tx.execute(delete(table).where(table.c.key == key))
            if text:
                tx.execute(insert(table).values(key=key, value=text))
            tx.touch("settings")
        self._values = {k: v for k, v in self._values.items() if k != key} | ({key: text} if text else {})
