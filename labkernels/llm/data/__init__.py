"""Text to tokens: corpora, the tokenizer, shards on disk, batches that can be resumed at any step."""
