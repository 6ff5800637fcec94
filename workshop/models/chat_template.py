"""Turns conversations into token ids, with a model's own chat template."""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from workshop.contracts.errors import InvalidInputError
from workshop.contracts.generator import Message

_PROBE = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "How are you?"))


class ChatTemplate:
    """The chat template of a tokenizer. Only the template can write control tokens.

    Control tokens, such as ``<|user|>``, mark who speaks. If a message contains the name of one, it stays plain text:
    no message can impersonate another role. To this end, the template is given a placeholder for each message, and the
    result is encoded by a copy of the tokenizer, in which the control tokens have secret names. The text between two
    control tokens is encoded in one piece, so an ordinary conversation has the same tokens as without this protection.

    There are two limits. A template that marks roles with plain words, such as ``USER:``, has no control tokens to
    protect. A template that inspects a message, for instance to remove its reasoning, sees only the placeholder.

    Args:
        tokenizer: of ``transformers``, backed by ``tokenizers``.

    Raises:
        ValueError: there is no chat template, or it cannot render a conversation.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ValueError("it has no chat template: choose a model that is tuned for conversations")
        self._tokenizer = tokenizer
        template = tokenizer.get_chat_template()
        # It starts and ends with a private-use character, which no token and no template contains.
        secret = f"\ue000{secrets.randbits(128)}"

        # A token of whitespace controls nothing. One that was added as ordinary text does if the template contains it.
        control = {
            id: token
            for id, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()
            if token.content.strip() and (token.special or token.content in template)
        }
        names = {token.content: f"{secret}.{id}\ue001" for id, token in control.items()}
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            token["special"] = token["id"] in control
        self._plain = Tokenizer.from_str(json.dumps(state))
        self._plain.encode_special_tokens = True  # as plain text
        self._plain.no_truncation()
        self._plain.no_padding()
        self._plain.add_tokens(
            [
                AddedToken(names[token.content], lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
                for token in control.values()
            ]
        )
        self._ids = {self._plain.token_to_id(names[token.content]): id for id, token in control.items()}
        # A vocabulary may also contain a control token as an ordinary word. The unknown token may occur in any text.
        self._never_in_text = control.keys() - {tokenizer.unk_token_id}

        self._names = names
        self._placeholder = f"{secret}:{{}}\ue001"
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        self._pattern = re.compile("|".join([*longest_first, re.escape(secret) + r":(\d+)" + "\ue001"]))
        # Other kinds of models may turn a word of any length into one unknown token.
        is_bpe = isinstance(self._plain.model, BPE)
        self._longest_token = max(map(len, self._plain.get_vocab(with_added_tokens=False))) if is_bpe else None
        self._check()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation that the model is to continue. Slow for a long one: call it in a thread.

        Raises:
            InvalidInputError: the template rejects the conversation; some accept no system message, for instance.
        """
        try:
            rendered = self._render(messages)
        except Exception as error:  # a template is a program: it may raise anything
            raise InvalidInputError(f"the model does not accept this conversation: {error}", 0, "messages") from error

        def replacement(match: re.Match[str]) -> str:
            return messages[int(match[1])].content.strip() if match[1] else self._names[match[0]]

        # A batch of one: unlike a single text, a batch is encoded without blocking other threads.
        [encoding] = self._plain.encode_batch_fast([self._pattern.sub(replacement, rendered)], add_special_tokens=False)
        return [self._ids.get(id, id) for id in encoding.ids if id not in self._never_in_text]

    def min_tokens(self, messages: Sequence[Message]) -> int:
        """A lower bound of the number of token ids in a conversation. Fast, however long it is."""
        if self._longest_token is None:
            return 0
        return sum(len(message.content.strip()) for message in messages) // self._longest_token

    def _render(self, messages: Sequence[Message]) -> str:
        marked = []
        for i, message in enumerate(messages):
            text = message.content.strip()
            # Whitespace stays around the placeholder: some templates trim it, others do not.
            start, _, end = message.content.partition(text) if text else (message.content, "", "")
            content = start + self._placeholder.format(i) + end if text else start
            marked.append({"role": message.role, "content": content})
        rendered: str = self._tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)
        return rendered

    def _check(self) -> None:
        """Render a conversation once, so that a broken template is noticed at the start."""
        try:
            rendered = self._render(_PROBE)
        except Exception as error:
            raise ValueError(f"its chat template fails: {error}") from error
        rendered_messages = {int(match[1]) for match in self._pattern.finditer(rendered) if match[1]}
        if rendered_messages != set(range(len(_PROBE))):
            raise ValueError("its chat template leaves out messages")
