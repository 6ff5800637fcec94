"""The prompts that the workshop's own language models are trained on."""

from collections.abc import Iterable


def sources_prompt(sources: Iterable[str]) -> str:
    """The system message that asks for an answer from sources."""
    return "\n".join(["Answer from these sources.", *(f"[{i}] {text}" for i, text in enumerate(sources, 1))])
