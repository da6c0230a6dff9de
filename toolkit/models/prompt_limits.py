"""What is said of a prompt that a model cannot read whole, before and while it runs. Torch-free."""

from __future__ import annotations

from toolkit.errors import Problem

_SHOWN = 60  # characters


def long_prompt(
    prompt: str, num_tokens: int, limit: int, *, file: str | None = None, key: str | None = None
) -> Problem:
    """The problem of a prompt of so many tokens, of which `limit` can be read."""
    shown = prompt if len(prompt) <= _SHOWN else f"{prompt[: _SHOWN - 3]}..."
    message = f"'{shown}' has {num_tokens} tokens, at most {limit} can be read"
    return Problem("model.prompt_too_long", message, file=file, key=key, remedy="shorten it")
