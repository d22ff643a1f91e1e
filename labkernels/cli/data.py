"""`labkernels data prepare` and `labkernels data show`: text as tokens on disk, and what there is of it."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import Json

app = typer.Typer(help="Text to train on, as tokens on disk.", no_args_is_help=True)


@app.command()
def prepare(
    corpus: Annotated[str, typer.Argument(help="stdlib, python, shakespeare, tinystories, fineweb-edu, or a folder or file of text")] = "stdlib",
    folder: Annotated[Path | None, typer.Option(help="where the tokens are put; default: the cache", file_okay=False)] = None,
    vocab_size: Annotated[int, typer.Option(help="tokens that the tokenizer has, which is trained on the text")] = 8192,
    tokenizer: Annotated[Path | None, typer.Option(help="a folder with a tokenizer.json to be used instead", file_okay=False)] = None,
    max_bytes: Annotated[int | None, typer.Option(help="take no more text than about this")] = None,
    files: Annotated[int, typer.Option(help="how many of fineweb-edu's 14 files, of 2.2 GB each")] = 1,
    validation: Annotated[float, typer.Option(help="the share of the documents that is kept for validation")] = 0.05,
    as_json: Json = False,
) -> None:
    """Make tokens of a corpus: train a tokenizer, split by document, write memory-mapped shards. What is there already is kept."""
    from labkernels.llm.data import corpora, shards
    from labkernels.llm.data.tokenizer import Tokenizer

    with complaints():
        source = corpora.corpus(corpus, max_bytes=max_bytes, files=files)
        given = Tokenizer.load(tokenizer) if tokenizer else None
        data = shards.prepare(source, vocab_size, tokenizer=given, folder=folder, validation_fraction=validation, progress=True)
        typer.echo(json.dumps(described(data)) if as_json else describe(data))


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="what `labkernels data prepare` named", file_okay=False)],
    verify: Annotated[bool, typer.Option("--verify", help="read everything and compare its checksums")] = False,
    split: Annotated[str, typer.Option(help="train or validation: of which --document is shown")] = "train",
    document: Annotated[int | None, typer.Option(help="show the document of this number, from 0")] = None,
    as_json: Json = False,
) -> None:
    """What a folder of tokens holds."""
    from labkernels.errors import ArgumentError
    from labkernels.llm.data.shards import TokenDataset

    with complaints():
        data = TokenDataset.open(folder)
        if verify:
            data.verify()
        if document is None:
            told = describe(data) + ("\nall checksums are right" if verify else "")
            typer.echo(json.dumps(described(data) | {"verified": verify}) if as_json else told)
            return
        if split not in data.splits:
            raise ArgumentError(f"--split is {split!r}; it must be {' or '.join(data.splits)}")
        if not 0 <= document < data[split].documents:
            raise ArgumentError(f"data show: {split} has the documents 0 to {data[split].documents - 1}, not {document}")
        text = data.tokenizer.decode(data[split].document(document)[:-1])
        typer.echo(json.dumps({"split": split, "document": document, "text": text}) if as_json else text)


def described(data) -> dict[str, Any]:
    """For programs."""
    splits = {
        name: {"tokens": split.tokens, "documents": split.documents, "bytes": split.bytes, "shards": len(split.entry["shards"])}
        for name, split in data.splits.items()
    }
    return {
        "folder": str(data.folder), "corpus": data.manifest["corpus"]["name"], "vocab_size": data.vocab_size, "dtype": data.manifest["dtype"],
        "splits": splits,
    }  # fmt: skip


def describe(data) -> str:
    lines = [str(data.folder), f"corpus {data.manifest['corpus']['name']}, vocabulary {data.vocab_size}, {data.manifest['dtype']}"]
    for name, split in data.splits.items():
        each = f", {split.bytes / split.tokens:.2f} bytes a token" if split.tokens else ""
        lines.append(f"{name:<10} {split.tokens:>13,} tokens, {split.documents:>9,} documents, {len(split.entry['shards'])} shards{each}")
    return "\n".join(lines)
