"""Language models: a transformer, training it, and serving it, on the operations of this package.

    lk.llm.ModelConfig.preset("10m")                     the shape of a model
    lk.llm.Transformer(config, kernels="labkernels")     the model
    lk.llm.Transformer.from_pretrained(folder)           a Hugging Face Llama folder
    lk.llm.Trainer(...), lk.llm.Engine(...)              training, generating

Names are loaded when they are first used. README.md beside this file is the map of the folder, in the order of reading.
"""

from importlib import import_module

_HOME = {
    "ModelConfig": "config",
    "PRESETS": "config",
    "Transformer": "model",
    "OPERATIONS": "kernels",
    "parameters": "estimate",
    "flops_per_token": "estimate",
    "training_memory": "estimate",
    "inference_memory": "estimate",
    "Tokenizer": "data.tokenizer",
    "corpus": "data.corpora",
    "prepare": "data.shards",
    "Loader": "data.loader",
    "TrainConfig": "training.train",
    "Trainer": "training.train",
    "Engine": "inference.engine",
}

__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'labkernels.llm' has no attribute {name!r}")
    found = getattr(import_module(f"labkernels.llm.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
