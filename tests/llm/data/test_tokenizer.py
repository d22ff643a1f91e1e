"""Every text comes back; documents cannot smuggle special tokens in; saved, loaded and transformers' tokenizers agree."""
from __future__ import annotations

import random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from labkernels.errors import ArgumentError
from labkernels.llm.data.tokenizer import END_OF_TEXT, Tokenizer

TEXTS = [
    "def attention(q, k, v):\n    return softmax(q @ k.T) @ v\n" * 3,
    "The quick brown fox jumps over the lazy dog, 12345 times; isn't that enough?\r\n\r\n  Yes.",
    "Grüße aus München: naïve café, 日本語のテキスト, Привет, مرحبا, नमस्ते",
    "🦊🇩🇪👩‍👩‍👧 \u00a0 \u2028 \u0000 \ufffd tabs\t\tand\ttabs",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, 400)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer.encode_documents([text])[0]
    assert ids[-1] == tokenizer.eos_id and tokenizer.decode(ids[:-1]) == text


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.token_bytes()[tokenizer.eos_id] == 0
    assert len(ids) < len(text.encode())  # it has learnt merges


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    again = Tokenizer.train((text for text in TEXTS * 20), 400)
    assert again.fingerprint == tokenizer.fingerprint and again.vocab_size == tokenizer.vocab_size == 400
    assert Tokenizer.train(TEXTS, 300).fingerprint != tokenizer.fingerprint


def test_a_document_cannot_smuggle_special_tokens_in(tokenizer):
    text = f"one {END_OF_TEXT} two <|im_start|>system"
    ids = tokenizer.encode_documents([text])[0]
    assert ids.count(tokenizer.eos_id) == 1 and tokenizer.token_to_id("<|im_start|>") not in ids
    assert tokenizer.decode(ids[:-1]) == text
    assert tokenizer.eos_id in tokenizer.encode(text)  # a prompt may


def test_half_a_surrogate_pair_is_replaced(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode_documents(["\udc00"])[0][:-1]) == "\ufffd"


def test_saved_and_loaded_and_read_by_transformers_it_is_the_same(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer.save(tmp_path)
    loaded, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.settings == tokenizer.settings
    assert (loaded.eos_id, loaded.bos_id) == (theirs.eos_token_id, theirs.bos_token_id) == (0, 0)
    for text in [*TEXTS, f"a{END_OF_TEXT}b"]:
        assert loaded.encode(text) == theirs.encode(text) == tokenizer.encode(text)
        assert theirs.decode(loaded.encode(text)) == loaded.decode(loaded.encode(text))


def test_a_tokenizer_that_begins_texts_with_a_token_begins_documents_with_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    llama = Tokenizer(backend, {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}, stop_ids=[0])
    assert llama.adds_bos and not tokenizer.adds_bos
    assert llama.encode("hi")[0] == 1 and llama.encode("hi", add_special_tokens=False)[0] != 1
    assert llama.encode_documents(["hi"])[0] == [1, *tokenizer.encode("hi"), 2]
    assert llama.stop_ids == {0, 2}


def test_stop_ids_come_from_generation_config(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert Tokenizer.load(tmp_path).stop_ids == {0, 1, 2}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t, path: Tokenizer.train(TEXTS, 100), "need 259"),
        (lambda t, path: Tokenizer.train(TEXTS, 300, special_tokens=["a", "a"]), "must be different"),
        (lambda t, path: Tokenizer.load(path), "no tokenizer.json"),
        (lambda t, path: t.encode(b"bytes"), "must be a str"),
        (lambda t, path: t.decode([-1]), "ids must be"),
    ],
)
def test_mistakes_are_named(tokenizer, tmp_path, call, says):
    with pytest.raises(ArgumentError, match=says):
        call(tokenizer, tmp_path)


def test_a_broken_tokenizer_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ArgumentError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\0")
    with pytest.raises(ArgumentError, match="SentencePiece"):
        Tokenizer.load(tmp_path)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """As Llama 2's: spaces are part of words, unknown characters are bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij", "▁a", "bc", "▁abc"]
    model = tokenizers.models.BPE(
        {piece: id for id, piece in enumerate(pieces)}, [("▁", "a"), ("b", "c"), ("▁a", "bc")], unk_token="<unk>", byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("name", ["tokenizer", "sentencepiece"])
@pytest.mark.parametrize("text", [*TEXTS[2:], "abc abc  de 🦊 abc", "日"])
def test_a_stream_shows_whole_characters_and_all_of_them(name, text, request):
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in ids]
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids) == text
    assert sum(map(bool, pieces)) > 1 or len(text) < 2


def test_a_stream_of_nonsense_is_what_decoding_it_gives(tokenizer):
    draw = random.Random(3)
    for _ in range(50):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(40)]
        for skip in (True, False):
            stream = tokenizer.stream(skip_special_tokens=skip)
            assert "".join([stream.push(id) for id in ids]) + stream.finish() == tokenizer.decode(ids, skip_special_tokens=skip)


def test_a_stream_ends_with_the_half_of_a_character_it_has(tokenizer):
    ids = Tokenizer.train(["a"], 259).encode("é🦊")
    stream = Tokenizer.train(["a"], 259).stream()
    assert [stream.push(id) for id in ids[:-1]] == ["", "é", "", "", ""]
    assert stream.finish() == "\ufffd" and stream.finish() == ""


def test_sentencepiece_bytes_are_counted(sentencepiece):
    sizes = sentencepiece.token_bytes()
    assert sizes[sentencepiece.token_to_id("▁abc")] == 4 and sizes[sentencepiece.token_to_id("<0x41>")] == 1 and sizes[2] == 0
