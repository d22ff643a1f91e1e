"""What bench_engine recorded on a GPU, for lab 15 and the README: `ladder()`, `many()`, `shapes()`, `answers()`. None, told in a line, where nothing is recorded."""

from __future__ import annotations

import pandas

from labkernels.lab.measured import NotRecorded, label, recorded

MODEL = "llama-3.2-1b"
RUNGS = ("naive", "cached", "fused", "graphs", "early")
SHORT = {"compiled reduce-overhead": "compiled"}  # of peers
FORMATS = {
    "tokens/s": "{:,.0f}", "ms a step": "{:.2f}", "first token, ms": "{:.1f}", "launches": "{:.0f}", "GB read a step": "{:.2f}", "of the limit": "{:.0%}",
    "GB": "{:.2f}", "estimated": "{:.2f}", "seconds": "{:.2f}",
}  # fmt: skip
COLUMNS = {
    "model": "model", "runner": "engine", "weights": "weights", "head": "head", "cache": "cache", "batch": "sequences", "prompt": "prompt", "new": "answer",
    "tokens_per_s": "tokens/s", "ms_per_token": "ms a step", "first_token_ms": "first token, ms", "launches": "launches",
    "bytes_per_step": "GB read a step", "share_of_limit": "of the limit", "peak_gb": "GB", "estimate_gb": "estimated",
}  # fmt: skip
ANSWERS = {97: "a short fact", 496: "an explanation", 196: "a poem", 146: "something looked up", 315: "a summary"}  # tokens of five published answers


def ladder(frame: pandas.DataFrame | None = None) -> pandas.DataFrame | None:
    """One sequence of the 1B shape: the engine's rungs from the lowest, its quantisations, then the peers."""
    rows = _where(frame, model=MODEL, batch=1, prompt=64)
    if rows is None:
        return None
    rung = rows["runner"].map({name: place for place, name in enumerate(RUNGS)})
    return rows.assign(rung=rung, quantised=rows["weights"].ne("bf16")).sort_values(["kind", "quantised", "rung", "tokens_per_s"]).drop(columns=["rung", "quantised"])


def many(frame: pandas.DataFrame | None = None) -> pandas.DataFrame | None:
    """Tokens/s of the 1B shape by sequences at a time, a column for each prompt and dtype of the weights, and of the cache where that is another."""
    rows = _where(frame, model=MODEL, runner="early", prompt=(1024, 8192))
    if rows is None:
        return None
    rows = rows[(rows["head"].eq("bf16") | rows["weights"].ne("bf16")) & (rows["note"].isna() | rows["note"].eq(""))]  # a note: not so many at a time
    stored = rows["weights"].where(rows["cache"].eq("bf16"), rows["weights"] + ", cache " + rows["cache"])
    wide = rows.assign(stored=stored).pivot_table(index="batch", columns=["prompt", "stored"], values="tokens_per_s")
    wide.columns = pandas.MultiIndex.from_tuples([(f"prompts of {prompt}", stored) for prompt, stored in wide.columns])
    wide.attrs["label"] = label(rows)
    return wide.rename_axis("sequences")


def shapes(frame: pandas.DataFrame | None = None) -> pandas.DataFrame | None:
    """One sequence of other models, and of a long prompt, with the compiled peer's. A model's rows stand together."""
    every = _where(frame, batch=1)
    if every is None:
        return None
    rows = every[every["model"].ne(MODEL) | every["prompt"].eq(8192)]
    return rows.sort_values("model", key=lambda model: model.map(list(dict.fromkeys(model)).index), kind="stable")


def answers(frame: pandas.DataFrame | None = None) -> pandas.DataFrame | None:
    """The five kinds of answer of a published table, by their tokens: what each takes from the prompt to the last token, in seconds."""
    rows = _where(frame, model=MODEL, batch=1, prompt=32, new=tuple(ANSWERS))
    if rows is None:
        return None
    seconds = rows["first_token_ms"] / 1e3 + (rows["new"] - 1) * rows["ms_per_token"] / 1e3
    found = pandas.DataFrame({"answer": rows["new"].map(ANSWERS), "tokens": rows["new"], "seconds": seconds, "tokens/s": rows["tokens_per_s"]})
    found.attrs["label"] = label(rows)
    return found


def table(rows: pandas.DataFrame, *columns: str):
    """Rows of engine.csv as a reader wants them, with these of their `columns`, or what `many` and `answers` made of them, and above them where they were
    recorded."""
    shown = rows.assign(bytes_per_step=rows["bytes_per_step"] / 1e9)[list(columns)].rename(columns=COLUMNS) if columns else rows
    formats = {name: FORMATS.get(name, "{:,.0f}") for name in shown.select_dtypes("number")}
    styled = shown.style.format(formats, na_rep="").set_caption(rows.attrs.get("label") or label(rows))
    return styled if shown.index.name else styled.hide(axis="index")


def _where(frame: pandas.DataFrame | None, **wanted) -> pandas.DataFrame | None:
    """The rows with these values; of a tuple, with one of them."""
    if frame is None:
        try:
            frame = recorded("engine")
        except NotRecorded:
            print("not recorded yet: on an H200, python -m labkernels.llm.inference.bench_engine llama-3.2-1b --out data/measured/h200/engine.csv")
            return None
    frame = frame.assign(runner=frame["runner"].replace(SHORT))
    for column, value in wanted.items():
        frame = frame[frame[column].isin(value if isinstance(value, tuple) else (value,))]
    return frame
