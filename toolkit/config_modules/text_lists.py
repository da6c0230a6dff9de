"""Lists of texts that may also be the path of a file with one text on each line. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from toolkit.paths import resolve_path


def list_or_file(kind: str) -> BeforeValidator:
    """Annotation of a list: a text in its place is the path of a file, `kind` what the file is called."""
    return BeforeValidator(_reader(kind), json_schema_input_type=list[str] | str)


def _reader(kind: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        """The lines of a file, blank ones left out; a list stays as it is."""
        if not isinstance(value, str):
            return value
        try:
            lines = resolve_path(value).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            message = "cannot read the {kind} file {file}: {reason}"
            context = {"kind": kind, "file": value, "reason": reason}
            raise PydanticCustomError("prompt_file", message, context) from None
        return [line.strip() for line in lines if line.strip()]

    return read
