"""Text to tokens and back: a byte-level BPE, trained here or read from a Hugging Face folder.

Notable:
- every text has tokens and comes back the same: the alphabet is the 256 bytes, nothing is unknown, nothing is normalised
- what stands between special tokens' brackets in a document is text: `encode_documents` never turns "<|endoftext|>" into the token
- chat templates are the model's own (jinja, in a sandbox), rendered as transformers renders them
- a stream of tokens becomes text without a broken character (`stream`, labkernels.llm.data.streaming)

    tokenizer = Tokenizer.train(texts, vocab_size=8192)
    tokenizer.decode(tokenizer.encode("def f(x):"))
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from labkernels.errors import ArgumentError
from labkernels.llm.data import chat
from labkernels.llm.survival.files import write_file
from labkernels.llm.data.streaming import TextStream

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, *chat.CHATML_TOKENS)

# Where text may be cut before merges are counted: GPT-4's pattern, with numbers in pieces of at most two digits (small vocabularies have
# no room for all numbers of three).
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "</s>")


class Tokenizer:
    """A tokenizer of the `tokenizers` library with what a language model needs to know about it.

    `settings` are those of tokenizer_config.json: bos_token, eos_token, chat_template.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: dict | None = None, stop_ids: Iterable[int] = ()):
        self.backend = tokenizer
        self.settings = dict(settings or {})
        self.bos_id = self._special("bos_token")
        self.eos_id = self._special("eos_token")
        if self.eos_id is None:
            self.eos_id = next((id for name in _KNOWN_ENDS if (id := tokenizer.token_to_id(name)) is not None), None)
        ends = [] if self.eos_id is None else [self.eos_id]
        self.stop_ids = frozenset([*stop_ids, *ends])  # any of these ends a generated text

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        chat_template: str | None = chat.CHATML,
        progress: bool = False,
    ) -> Tokenizer:
        """Byte-pair encoding (Sennrich et al., 2016) over bytes, trained on `texts`, which may be a generator.

        The first of `special_tokens` ends a document. The vocabulary is smaller than `vocab_size` if the texts have not enough pairs that
        occur twice. The same texts in the same order give the same tokenizer.
        """
        if len(set(special_tokens)) != len(special_tokens) or not special_tokens:
            raise ArgumentError(f"Tokenizer.train: special_tokens must be different, and at least one, got {list(special_tokens)}")
        if vocab_size < 256 + len(special_tokens):
            raise ArgumentError(
                f"Tokenizer.train: vocab_size is {vocab_size}, but the 256 bytes and {len(special_tokens)} special tokens need "
                f"{256 + len(special_tokens)}"
            )
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_PIECES), "isolated")
        to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
        backend.decoder = tokenizers.decoders.ByteLevel()
        backend.train_from_iterator(
            map(without_surrogates, texts),
            tokenizers.trainers.BpeTrainer(
                vocab_size=vocab_size,
                min_frequency=2,
                special_tokens=list(special_tokens),
                initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
                show_progress=progress and os.isatty(1),  # it writes there, into a file empty lines
            ),
        )
        settings = {"eos_token": special_tokens[0], "bos_token": special_tokens[0], "tokenizer_class": "PreTrainedTokenizerFast"}
        if chat_template is not None and all(token in special_tokens for token in chat.CHATML_TOKENS):
            settings["chat_template"] = chat_template
        return cls(backend, settings)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From a folder with tokenizer.json, as Hugging Face models have it; tokenizer_config.json and its like are read if there."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            hint = ""
            if (folder / "tokenizer.model").is_file():
                hint = "; it has a SentencePiece tokenizer.model: transformers' AutoTokenizer reads it and saves tokenizer.json"
            raise ArgumentError(f"Tokenizer.load: there is no tokenizer.json in {folder}{hint}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise ArgumentError(f"Tokenizer.load: {path} is no tokenizer that the tokenizers library reads: {error}") from error
        settings = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
        if (template := folder / "chat_template.jinja").is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
        stops = _read_json(folder / "generation_config.json").get("eos_token_id")
        return cls(backend, settings, stops if isinstance(stops, list) else [stops] if isinstance(stops, int) else [])

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load` and transformers' AutoTokenizer read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        write_file(folder / "tokenizer_config.json", json.dumps(self.settings, indent=2, ensure_ascii=False))

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, so that an embedding of this many rows has one for each."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which tokens a text gets."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether this tokenizer begins every text with the token `bos_id`, as Llama's do."""
        ids = self.backend.encode("a", add_special_tokens=True).ids
        return self.bos_id is not None and ids[:1] == [self.bos_id]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a prompt. Special tokens written in `text` become those tokens; with `add_special_tokens` the tokenizer adds its
        own, for Llama's the one that begins a text; what `Tokenizer.train` makes adds none."""
        if not isinstance(text, str):
            raise ArgumentError(f"Tokenizer.encode: text must be a str, got {type(text).__name__}")
        return self.backend.encode(without_surrogates(text), add_special_tokens=add_special_tokens).ids

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of documents to learn from: all cores, and what looks like a special token stays text. Ends with `eos_id`."""
        before = [self.bos_id] if self.adds_bos else []
        after = [] if self.eos_id is None else [self.eos_id]
        encoded = self._literal.encode_batch_fast([without_surrogates(text) for text in texts], add_special_tokens=False)
        return [before + one.ids + after for one in encoded]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        ids = [int(id) for id in ids]
        if ids and not 0 <= min(ids) <= max(ids) < 2**32:
            raise ArgumentError(f"Tokenizer.decode: ids must be token ids from 0, got {min(ids)} to {max(ids)}")
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """Text of tokens as they come: `push(id)` gives what is certain by now, `finish()` the rest."""
        return TextStream(self.backend, skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int64: how many bytes of text each token stands for, 0 for special ones: what bits per byte are counted with."""
        special = {id for id, token in self.backend.get_added_tokens_decoder().items() if token.special}
        sizes = np.zeros(self.vocab_size, np.int64)
        byte_level = type(self.backend.decoder) is tokenizers.decoders.ByteLevel
        for token, id in self.backend.get_vocab(with_added_tokens=True).items():
            if id not in special:  # one character of a byte-level token stands for one byte
                sizes[id] = len(token) if byte_level else len(token.replace("▁", " ").encode())
                if not byte_level and len(token) == 6 and token.startswith("<0x"):
                    sizes[id] = 1
        return sizes

    @property
    def has_chat_template(self) -> bool:
        return bool(self.settings.get("chat_template"))

    def render_chat(self, messages: Sequence[dict], add_generation_prompt: bool = True, **variables) -> str:
        """The text of a conversation, by the model's own template. `variables` (tools=..., date_string=...) are handed to it."""
        special = {name: _content(self.settings[name]) for name in chat.TOKEN_VARIABLES if self.settings.get(name)}
        template = chat.choose_template(self.settings.get("chat_template"), with_tools=bool(variables.get("tools")))
        return chat.render(template, messages, add_generation_prompt=add_generation_prompt, **(special | variables))

    def apply_chat_template(self, messages: Sequence[dict], add_generation_prompt: bool = True, **variables) -> list[int]:
        """The tokens of a conversation [{"role": "user", "content": "..."}, ...]. Raises ArgumentError if the tokenizer has no template
        or the template refuses the messages."""
        return self.encode(self.render_chat(messages, add_generation_prompt, **variables), add_special_tokens=False)

    @functools.cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        literal = tokenizers.Tokenizer.from_str(self.backend.to_str())
        literal.encode_special_tokens = True
        return literal

    def _special(self, name: str) -> int | None:
        token = self.settings.get(name)
        return None if token is None else self.backend.token_to_id(_content(token))


def without_surrogates(text: str) -> str:
    """Halves of surrogate pairs, which JSON can hold and UTF-8 cannot, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _content(token: str | dict) -> str:
    """tokenizer_config.json has special tokens as strings or as {"content": ...}."""
    return token["content"] if isinstance(token, dict) else token


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError(f"Tokenizer.load: {path} is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}
