"""Compares fine-tuning of MiniLM with Hugging Face's model in PyTorch, on five tasks.

    python bench/finetuning.py MINILM DATA --seeds 3

MINILM is the folder of all-MiniLM-L6-v2 (`make real` fetches it), DATA a folder with the data sets
banking77, sst2, wnut17, stsb and squad2-half. Both sides start from the same weights, with the same
tokens, batch size, peak learning rate, number of epochs, AdamW, linear decay after a warm-up of a
tenth, dropout of 0.1 and clipping at 1, in float32. Ours is `polyhead train`, which validates after
each epoch and keeps the best checkpoint. Theirs is a plain loop of eager PyTorch, with batches that
are padded to their longest text; its weights after the last epoch are evaluated, and it spends no
time on validation. `polyhead evaluate` scores both, on validation and test; it reads the weights
that Hugging Face saved.

Seconds are wall time from the settings to saved weights, without imports; for ours with
compilation, validation and checkpoints. Each training run is a process, one after the other.
Results are in bench/finetuning.json, and runs that are there are not repeated: all of them take
about seven hours. Writes bench/finetuning.md.
"""

import json
import os
import statistics
import tempfile
from datetime import date
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from measure import Stopwatch, processor, ratio, run, run_isolated, store, write


class Task(NamedTuple):
    """The recipe of a data set, its scores that are shown, and settings."""

    recipe: str
    metrics: tuple[str, ...]
    settings: dict


TASKS = {
    "stsb": Task("embedding", ("spearman",), dict(peak=2e-5, epochs=2)),
    "sst2": Task("text_classification", ("accuracy",), dict(peak=5e-5, epochs=2)),
    "wnut17": Task("tagging", ("f1",), dict(peak=1e-4, epochs=5)),
    "banking77": Task(
        "text_classification", ("accuracy",), dict(peak=2e-4, epochs=8, max_length=64)
    ),
    "squad2-half": Task(
        "answering", ("exact", "f1", "answer_f1", "no_answer"), dict(peak=2e-4, epochs=8)
    ),
}
OTHER_TEST = ("xquad", "xquad.en.clean.json")  # of the model that is trained on squad2-half


def settings_of(name, weights, data, seed):
    import importlib

    task = TASKS[name]
    recipe = importlib.import_module(f"polyhead.recipes.{task.recipe}")
    common = dict(data=str(Path(data) / name), pretrained=weights, seed=seed, patience=None)
    return recipe, recipe.Settings(**common, **task.settings)


def ours(name, weights, data, seed, out):
    """Seconds of training; the best model is in ``out``/best."""
    recipe, settings = settings_of(name, weights, data, seed)
    import polyhead.training  # before the time begins
    import polyhead.zoo  # noqa: F401

    watch = Stopwatch()
    recipe.train(settings, Path(out), say=lambda line: None)
    return watch.seconds


def theirs(name, weights, data, seed, out):
    """Seconds of training with PyTorch; the model is saved to ``out``."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer, get_linear_schedule_with_warmup

    examples, loss, (kind, options) = problem(name, weights, data, seed)
    _, settings = settings_of(name, weights, data, seed)
    torch.manual_seed(seed)
    random, watch = np.random.default_rng(seed), Stopwatch()
    model = kind.from_pretrained(weights, **options).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.peak, eps=1e-8)
    updates = -(-len(examples) // settings.batch_size) * settings.epochs
    warmup = max(1, min(settings.longest_warmup, updates // 10))
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, updates)
    for _ in range(settings.epochs):
        order = random.permutation(len(examples))
        for start in range(0, len(order), settings.batch_size):
            chosen = [examples[i] for i in order[start : start + settings.batch_size]]
            optimizer.zero_grad()
            loss(model, chosen).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
    model.eval().save_pretrained(out)
    seconds = watch.seconds
    AutoTokenizer.from_pretrained(weights).save_pretrained(out)
    return seconds


def problem(name, weights, data, seed):
    """Examples of the training split, PyTorch's loss of some of them, and the kind of model.

    An example is (tokens, types, label): rows of the batches that our model is trained on.
    """
    import numpy as np
    import torch
    import transformers

    import polyhead
    from polyhead import data as reading
    from polyhead.recipes.encoding import max_length

    recipe, settings = settings_of(name, weights, data, seed)
    model = polyhead.load(weights)
    train, _ = recipe.read(settings.data, "train")
    length = max_length(settings, model, getattr(recipe, "LENGTH", 128))
    common = dict(batch_size=1, max_length=length, buckets=8, shuffle=False)
    task = recipe.Settings.task
    if task == "embedding":
        batches = reading.pair_batches(train, model.tokenizer, scale=max(train.scores), **common)
        kind = transformers.BertModel, dict(add_pooling_layer=False)

        def loss(model, given, labels):
            x = model(**given).last_hidden_state * given["attention_mask"][..., None]
            x = torch.nn.functional.normalize(x.sum(1))
            return ((x[::2] * x[1::2]).sum(-1) - torch.cat(labels)[::2]).square().mean()

    elif task == "answering":
        batches = reading.question_batches(
            train, model.tokenizer, overlap=settings.overlap, **common
        )
        kind = transformers.BertForQuestionAnswering, {}

        def loss(model, given, labels):
            first, last = torch.cat(labels).long().T
            return model(**given, start_positions=first, end_positions=last).loss

    else:
        make = reading.tagging_batches if task == "tagging" else reading.classification_batches
        batches = make(train, model.tokenizer, train.classes, **common)
        names = dict(enumerate(train.classes))
        kind = (
            transformers.BertForTokenClassification
            if task == "tagging"
            else transformers.BertForSequenceClassification,
            dict(num_labels=len(names), id2label=names, label2id={x: i for i, x in names.items()}),
        )

        def loss(model, given, labels):
            labels = pad(labels, -100) if task == "tagging" else torch.cat(labels)
            return model(**given, labels=labels.long()).loss

    examples = []
    rows = 2 if task == "embedding" else 1  # of an example
    for inputs, labels, weight in batches.as_numpy_iterator():
        inputs = inputs if isinstance(inputs, dict) else {"tokens": inputs, "types": 0 * inputs}
        if task == "tagging":
            labels = np.where(weight > 0, labels, -100)
        for i in range(0, len(labels), rows):
            tokens, types = (inputs[k][i : i + rows] for k in ("tokens", "types"))
            count = int((tokens != model.config.pad_id).sum(-1).max())
            if count:  # not a row that fills the last batch
                arrays = tokens[:, :count], types[:, :count], labels[i : i + rows]
                tokens, types, label = map(torch.tensor, arrays)
                label = label[:, :count] if task == "tagging" else label
                examples.append((tokens.long(), types.long(), label))

    def pad(rows, value=0):
        longest = max(row.shape[1] for row in rows)
        return torch.cat(
            [torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=value) for row in rows]
        )

    def compute(model, chosen):
        tokens, types, labels = zip(*chosen, strict=True)
        tokens, types = pad(tokens, model.config.pad_token_id), pad(types)
        mask = (tokens != model.config.pad_token_id).long()
        given = dict(input_ids=tokens, token_type_ids=types, attention_mask=mask)
        return loss(model, given, labels)

    return examples, compute, kind


def score(name, folder, data, choose):
    """The scores of the model in ``folder`` on validation and test.

    Args:
        choose: whether the threshold of "no answer" is to be chosen on validation first, as
            `polyhead train` has done for ours.
    """
    import polyhead

    recipe, settings = settings_of(name, None, data, 0)
    model = polyhead.load(folder)
    if choose and recipe.Settings.task == "answering":
        questions, _ = recipe.read(settings.data, "val")
        recipe.choose_threshold(model, settings, questions)
        model.save_pretrained(folder := f"{folder}-threshold")

    def evaluate(*arguments):
        found = recipe.evaluate(Path(folder), *arguments, say=lambda line: None)
        return {key: x for key, x in found.items() if isinstance(x, float)}

    scores = {split: evaluate(Path(settings.data), split) for split in ("val", "test")}
    if recipe.Settings.task == "answering" and (other := Path(data, *OTHER_TEST)).is_file():
        scores["xquad"] = evaluate(other)
    return scores


def show(values):
    """The mean of percentages, and half the distance between the lowest and the highest."""
    values = [100 * value for value in values]
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(results):
    lines = [
        "| data, seeds | metric | test: ours | test: HF | validation: ours | HF | "
        "seconds: ours | HF | ours / HF | processor, dates |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, task in TASKS.items():
        runs = [results.get(f"{name}, {side}", {}) for side in ("ours", "theirs")]
        if not all(runs):
            continue
        sides = [list(side.values()) for side in runs]
        seconds = [statistics.median(run["seconds"] for run in side) for side in sides]
        machines, dates = (sorted({x[k] for x in sum(sides, [])}) for k in ("machine", "date"))
        quotients = [
            runs[0][seed]["seconds"] / runs[1][seed]["seconds"]
            for seed in runs[0].keys() & runs[1].keys()
            if runs[0][seed]["machine"] == runs[1][seed]["machine"]
        ]
        quotient = ratio(statistics.median(quotients) if quotients else None, 1)
        about = ", ".join([*machines, *dates])
        times = [f"{seconds[0]:,.0f}", f"{seconds[1]:,.0f}", quotient, about]
        seeds = " and ".join(str(n) for n in dict.fromkeys(map(len, sides)))
        for split, metric in [
            *(("test", metric) for metric in task.metrics),
            *((("xquad", m) for m in task.metrics[:2]) if "xquad" in sides[0][0] else ()),
        ]:
            cells = [show([run[split][metric] for run in side]) for side in sides]
            if split == "test":
                cells += [show([run["val"][metric] for run in side]) for side in sides]
            else:
                cells += ["", ""]
            shown = name if split == "test" else "xquad (English, clean)"
            lines.append(f"| {shown}, {seeds} | {metric} | {' | '.join(cells + times)} |")
            times = ["", "", "", ""]
    return lines


def main(
    weights: Annotated[Path, typer.Argument(metavar="MINILM", exists=True, file_okay=False)],
    data: Annotated[Path, typer.Argument(metavar="DATA", exists=True, file_okay=False)],
    seeds: Annotated[int, typer.Option(help="Number of training runs of each side and task.")] = 3,
    tasks: Annotated[str, typer.Option(help="Names of data sets, separated by commas.")] = ",".join(
        TASKS
    ),
):
    """Compare fine-tuning of MiniLM with Hugging Face's model in PyTorch."""
    weights, data = weights.resolve(), data.resolve()
    chosen = tasks.split(",")
    if unknown := sorted({*chosen} - {*TASKS}):
        raise typer.BadParameter(f"unknown: {unknown[0]}; known are {', '.join(TASKS)}")
    file = Path(__file__).with_suffix(".json")
    results = json.loads(file.read_text()) if file.exists() else {}
    for seed in range(seeds):
        for name in chosen:
            for side in (ours, theirs):
                runs = results.setdefault(f"{name}, {side.__name__}", {})
                if str(seed) in runs:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    place = Path(folder) / "run"
                    seconds, memory = run_isolated(
                        side, name, weights, data, seed, place, needed=True
                    )
                    model = place / "best" if side is ours else place
                    found, _ = run_isolated(score, name, model, data, side is theirs, needed=True)
                about = dict(machine=processor(), date=str(date.today()))
                runs[str(seed)] = dict(**about, seconds=seconds, memory=memory, **found)
                store(file, results)
                print(name, side.__name__, seed, f"{seconds:.0f} s", found, flush=True)
    trained = [name for name in TASKS if results.get(f"{name}, theirs")]
    epochs = ", ".join(f"{TASKS[name].settings['epochs']} of {name}" for name in trained)
    lines = [
        "# Fine-tuning MiniLM, against Hugging Face",
        "",
        f"`python bench/finetuning.py MINILM DATA`; {os.cpu_count()} cores, float32. Epochs: "
        f"{epochs}. Scores are in percent: the mean of the seeds ± half the distance between the "
        "lowest and the highest. Seconds and their ratios are medians; ratios are of seeds "
        "whose two sides ran on processors of the same name, some on different days. "
        "all-MiniLM-L6-v2 was trained on the questions of SQuAD and of other sets, as sentence "
        "pairs.",
        "",
        *table(results),
    ]
    write(__file__, lines)


if __name__ == "__main__":
    run(lambda: typer.run(main))
