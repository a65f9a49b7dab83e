"""The base class of all models: configuration, tokenizer, saving and loading."""

import contextlib
import dataclasses
import difflib
import gc
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import keras
import numpy as np

from ..layers import KeyValueCache, MultiHeadAttention, TransformerBlock
from ..layers.arguments import plain, plain_fields
from ..layers.pair_block import PairBlock
from ..training import (
    CheckpointError,
    Model,
    build_optimizer,
    compiled,
    write_file,
    write_tensors,
)
from ..training.averages import inner
from ..training.states import assign, by_path, some
from .published import family, open_checkpoint, read_json, rename_fields, write_checkpoint

# Files that `save_pretrained` may write, apart from the tokenizer's.
POOLING = "1_Pooling"  # a folder, in the format of sentence-transformers
BESIDE = (
    "generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "modules.json",
    "sentence_bert_config.json", POOLING, f"{POOLING}/config.json",
)  # fmt: skip


class Pretrained(Model):
    """A model with a configuration and a tokenizer that is saved to a folder.

    The folder holds ``config.json``, ``model.safetensors`` (the tensors' names are the variables'
    paths) and the tokenizer's file, if there is one. None of them contains code.

    Args:
        config: an instance of ``Config``.
        tokenizer: needed by the methods that take strings.
        initialize: False skips the paper's initialization, when weights are about to be loaded.
    """

    Config: ClassVar[type]
    PRESETS: ClassVar[dict]
    # Fields in which configuration and tokenizer must agree; a configuration's size may be larger.
    VOCABULARY: ClassVar[tuple] = ("vocab_size", "end_id")
    # Fields whose change by `from_pretrained` gives some weights of a head new values; the
    # classmethod ``change_head(config, **changes)`` returns a configuration and their pattern.
    HEAD: ClassVar[tuple] = ()
    # Fields that no compiled function reads.
    UNCOMPILED: ClassVar[tuple] = ()
    # {family: module of `published`}; the family is the ``model_type`` of a config.json, or "timm".
    FAMILIES: ClassVar[dict] = {}

    @classmethod
    def preset(cls, name: str, tokenizer: Any = None, **overrides: Any) -> Self:
        """Builds a model of a published size with new weights.

        Args:
            name: a key of ``PRESETS``.
            tokenizer: sets the size of the vocabulary and the special tokens.
            overrides: changes to the configuration.

        Raises:
            TypeError: the configuration has no such setting.
            ValueError: there is no such preset, or a setting is invalid.

        >>> polyhead.GPT.preset("char-small", num_layers=1).config.dim
        128
        """
        if name not in cls.PRESETS:
            raise ValueError(f"{cls.__name__} has presets {', '.join(cls.PRESETS)}: {name!r}")
        if tokenizer is not None:
            for agreed in cls.VOCABULARY:
                overrides.setdefault(agreed, getattr(tokenizer, agreed))
        check_fields(cls, overrides)
        return cls(dataclasses.replace(cls.PRESETS[name], **overrides), tokenizer)

    def __init__(
        self, config: Any, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        # Keras wraps each object's `quantize` to check its arguments; ours checks them itself.
        del self.quantize
        self._searches = {}  # compiled functions
        self.config = config
        self.tokenizer = tokenizer
        # The variables that they use; in a namespace, so that Keras does not track them.
        self._compiled_for = SimpleNamespace(variables=[])

    @property
    def config(self) -> Any:
        """The configuration. A new one must be for the same weights."""
        return self._configuration

    @config.setter
    def config(self, config):
        before = getattr(self, "_configuration", None)
        self._configuration = config
        fixed = {name: getattr(config, name) for name in self.UNCOMPILED}
        if before is not None and dataclasses.replace(before, **fixed) != config:
            self._searches.clear()
            self.train_function = self.test_function = self.predict_function = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        for name in self.VOCABULARY if tokenizer is not None else ():
            theirs, ours = getattr(tokenizer, name), getattr(self.config, name)
            padded = name.endswith("size") and None not in (theirs, ours) and theirs < ours
            if theirs != ours and not padded:
                raise ValueError(
                    f"tokenizer and model must have the same vocabulary: {name} {theirs} and {ours}"
                )
        self._tokenizer = tokenizer
        self._searches.clear()  # compiled for another vocabulary

    def get_config(self) -> dict:
        """The configuration, with dtype policy, quantization and frozen weights.

        It is saved in ``.keras`` files, which `pickle` and `copy.deepcopy` use too.
        """
        config = {
            **dataclasses.asdict(self.config),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "quantization": self._quantization(),
        }
        if not self._has_lora():  # a copy with merged adapters is trainable
            config["frozen"] = [v.path for v in self.weights if not v.trainable]
        return config

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> Self:
        config = dict(config)
        dtype = keras.dtype_policies.deserialize(config.pop("dtype", None))
        quantization, frozen = config.pop("quantization", {}), set(config.pop("frozen", ()))
        model = cls(cls.Config(**rename_fields(config)), dtype=dtype)
        model._restore_quantization(quantization)
        for v in model.weights:
            if v.path in frozen:
                v.trainable = False
        return model

    def save_assets(self, folder: str) -> None:
        """Saves the tokenizer in a ``.keras`` file."""
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    def load_assets(self, folder: str | None) -> None:
        if folder is not None:  # Keras passes None for a nested model without a tokenizer
            self.tokenizer = self.load_tokenizer(Path(folder), self.config)

    def drop_padding(self, logits: Any) -> Any:
        """Drops the ``logits`` (..., V) beyond the tokenizer's vocabulary.

        Published embeddings are often padded, to 50,304 rows for example.
        """
        size = None if self.tokenizer is None else self.tokenizer.vocab_size
        return logits if size in (None, logits.shape[-1]) else logits[..., :size]

    def freeze(self, pattern: str) -> None:
        """Freezes the weights whose paths match a regular expression.

        Call `compile` afterwards. The paths are ``[v.path for v in model.weights]``.

        Raises:
            ValueError: no path matches, or ``pattern`` is not a regular expression.

        >>> model = polyhead.GPT.preset("char-small", num_layers=2)
        >>> model.freeze("^(tokens|positions|block_0)/")
        >>> sorted({v.path.split("/")[0] for v in model.trainable_weights})
        ['block_1', 'norm']
        """
        expression = compile_pattern(pattern)
        frozen = [v for v in self.weights if expression.search(v.path)]
        if not frozen:
            raise ValueError(f"no weight matches {pattern!r}")
        for v in frozen:
            v.trainable = False

    def enable_lora(self, rank: int, alpha: float | None = None) -> None:
        """Adds LoRA adapters to all query and value projections, and freezes all other weights.

        (Hu et al. 2021, arXiv 2106.09685.) Call `compile` afterwards. Saved files and exports have
        the adapters merged into the weights.

        Args:
            rank: rank of the adapters.
            alpha: scales the adapters by ``alpha`` / rank. Default: ``rank``.

        Raises:
            ValueError: LoRA is enabled already, the model is quantized, or it has no such layers.

        >>> model = polyhead.GPT.preset("char-small", num_layers=1)
        >>> model.enable_lora(rank=4)
        >>> sum(v.trainable for v in model.weights)
        4
        """
        if self._has_lora():
            raise ValueError("LoRA is enabled already")
        if self._quantization():
            raise ValueError("the model is quantized: enable LoRA before quantize")
        if not (attentions := self._attentions()):
            raise ValueError(f"LoRA is not supported by {type(self).__name__}")
        before = self.weights
        for attention in attentions:
            attention.enable_lora(rank, alpha)
        for v in before:
            v.trainable = False
        self.train_function = self.test_function = self.predict_function = None

    def quantize(
        self, mode: str | None = None, config: Any = None, filters: Any = None, **kwargs: Any
    ) -> None:
        """Quantizes the weights to 8-bit integers with scales, for inference.

        It overrides Keras's `quantize`. All matrices are quantized, the token embedding included;
        LoRA adapters are merged first. Saved files and exports are quantized too, with a quarter of
        float32's size.

        Args:
            mode: "int8".
            filters: selects layers: a regular expression for their names, a list of expressions,
                or a function of a layer.

        Raises:
            ValueError: another mode, custom quantizers in ``config``, an invalid regular
                expression, or a dtype policy of float16, whose range is too small.

        >>> model = polyhead.GPT.preset("char-small", num_layers=1)
        >>> model.quantize("int8")  # doctest: +SKIP
        """
        default = keras.quantizers.Int8QuantizationConfig()
        mode = config.mode if mode is None and config is not None else mode
        if mode != "int8":
            raise ValueError(f"{type(self).__name__} supports the quantization 'int8': {mode!r}")
        if config is not None and config.get_config() != default.get_config():
            raise ValueError("quantize supports Keras's default quantizers only: leave out config")
        if self.compute_dtype == "float16":
            raise ValueError(f"quantize does not support the dtype policy {self.dtype_policy.name}")
        if unknown := sorted(kwargs.keys() - {"type_check"}):
            raise TypeError(f"not arguments of quantize: {unknown}")
        patterns = [filters] if isinstance(filters, str) else filters
        if isinstance(patterns, list | tuple):
            for pattern in patterns:
                compile_pattern(pattern)
        elif filters is not None and not callable(filters):
            raise ValueError(f"filters must be regular expressions or a function: {filters!r:.100}")
        with warnings.catch_warnings(), cheap_collections():
            # Keras warns about each layer without a matrix: dropout, normalization.
            warnings.filterwarnings("ignore", "Layer .* does not have a `quantize` method")
            for layer in self._lora_layers():
                layer.merge()
            super().quantize(mode, filters=filters, **kwargs)

    def _quantization(self):
        """``{path: mode}`` of the quantized layers."""
        layers = self._flatten_layers(include_self=False)
        return {x.path: x.quantization_mode for x in layers if x.quantization_mode is not None}

    def _restore_quantization(self, modes):
        """Quantizes the layers ``{path: mode}`` of a model whose weights will be loaded.

        Raises:
            ValueError: an unknown layer or mode.
        """
        if not modes:
            return
        if not isinstance(modes, dict) or any(mode != "int8" for mode in modes.values()):
            raise ValueError(f"quantization must map layers to 'int8': {modes!r:.100}")
        self.quantize("int8", filters=lambda layer: layer.path in modes)
        if unknown := sorted(modes.keys() - self._quantization().keys()):
            raise ValueError(
                f"quantization names layers that the model does not have: {some(unknown)}"
            )

    def _compiled(self, key, function, name, xla=True):
        """Compiles ``function`` once per ``key``; ``name`` names it in progress lines.

        A compiled function keeps the variables that it was traced with. If layers have new
        variables (after `quantize` or `enable_lora`), all functions are compiled again.
        """
        variables, traced = self.weights, self._compiled_for.variables
        if len(variables) != len(traced) or any(
            v is not w for v, w in zip(variables, traced, strict=True)
        ):
            self._searches.clear()
            self._compiled_for.variables = variables
        if (result := self._searches.get(key)) is None:
            result = self._searches[key] = compiled(self, function, name, xla)
        return result

    def make_train_function(self, force: bool = False) -> None:
        """Checks that the model can be trained; Keras calls this first in every training method.

        Raises:
            ValueError: the optimizer was built for other weights than those that are trainable now.
        """
        if self._quantization():
            raise ValueError("a quantized model cannot be trained: quantize it after training")
        if not self._optimizer_fits():
            raise ValueError(
                "the trainable weights have changed (freeze, enable_lora) since the optimizer was "
                "built: call compile again, with a new optimizer"
            )
        super().make_train_function(force)

    def _optimizer_fits(self):
        """Whether the optimizer is not built yet, or built for the current trainable weights."""
        built = getattr(inner(getattr(self, "optimizer", None)), "_trainable_variables", [])
        return not built or list(map(id, built)) == list(map(id, self.trainable_variables))

    def _attentions(self):
        return [x for x in self._flatten_layers() if isinstance(x, MultiHeadAttention)]

    def _lora_layers(self):
        """The layers that have a LoRA adapter."""
        return [x for x in self._flatten_layers() if getattr(x, "adapter", None) is not None]

    def _merge_lora(self, weights):
        """Merges LoRA adapters into the kernels of ``weights``, ``{path: array}``."""
        weights = dict(weights)

        def merge(layer, names, product):
            paths = {v.name: v.path for v in layer.weights}
            change = product(*(weights.pop(paths[name]) for name in names))
            # Not in place: the arrays are the caller's.
            weights[paths["kernel"]] = weights[paths["kernel"]] + change

        for layer in self._lora_layers():
            merge(layer, ("down", "up"), layer.adapter.product)
        for layer in self._keras_lora_layers():
            if layer.quantization_mode is not None:
                raise ValueError(f"{layer.path} is quantized and has LoRA: it cannot be saved")
            scale = layer.lora_alpha / layer.lora_rank
            merge(layer, ("lora_kernel_a", "lora_kernel_b"), lambda a, b, s=scale: s * (a @ b))
        return weights

    def _keras_lora_layers(self):
        """The layers with LoRA adapters of Keras, by the layer's own `enable_lora`."""
        return [x for x in self._flatten_layers() if getattr(x, "lora_enabled", False)]

    def _has_lora(self):
        """Whether the model has LoRA adapters, to be merged in files and exports."""
        return bool(self._lora_layers() or self._keras_lora_layers())

    def _without_lora(self):
        """The model itself or, if it has LoRA adapters, a copy that has them merged."""
        if not self._has_lora():
            return self
        return self._copy(self.tokenizer)

    def _copy(self, tokenizer):
        """Copies the model and its weights, with LoRA adapters merged."""
        model = type(self)(self.config, tokenizer, initialize=False, dtype=self.dtype_policy)
        model._restore_quantization(self._quantization())
        weights = {path: v.numpy() for path, v in by_path(self.weights).items()}
        assign(by_path(model.weights), self._merge_lora(weights), "this model")
        return model

    def _export_network(self, filepath, format, signature, limit, settings):
        """Exports the network to ONNX, LiteRT or OpenVINO; see `polyhead.serving.formats`."""
        from ..serving.formats import export_network

        # Without the tokenizer, whose tables would be converted too.
        return export_network(self._copy(None), filepath, format, signature, limit, **settings)

    def save_pretrained(
        self,
        folder: str | PathLike[str],
        weights: dict[str, np.ndarray] | None = None,
        format: str = "polyhead",
    ) -> None:
        """Writes the model to ``folder`` atomically; an existing model is replaced.

        Args:
            weights: ``{path: array}``, written instead of the model's own.
            format: "polyhead"; "huggingface" for Hugging Face's library; for ViT also "timm".

        Raises:
            FileExistsError: the folder holds something other than a model.
            ValueError: the format is unknown, or cannot express a setting.

        >>> model = polyhead.GPT.preset("char-small", num_layers=1)
        >>> model.save_pretrained("saved")
        >>> model.save_pretrained("for-transformers", format="huggingface")
        """
        from ..serving.folder import temporary_folder

        if weights is None:
            weights = {path: v.numpy() for path, v in by_path(self.weights).items()}
        files = write_checkpoint(self, format, self._merge_lora(weights))
        folder = Path(folder)
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file; a model is saved as a folder")
        if folder.exists() and not self.is_replaceable(folder):
            raise FileExistsError(f"{folder} holds something other than a {type(self).__name__}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent, folder.name) as around:
            beside = around / "new"
            beside.mkdir()
            try:
                if self.tokenizer is not None:
                    self.tokenizer.save(beside)
                for name, content in files.items():
                    path = beside / name
                    path.parent.mkdir(exist_ok=True)
                    if not name.endswith(".json"):
                        write_tensors(path, content)
                        continue
                    if path.exists():  # the tokenizer's own
                        content = read_json(path) | content
                    write_file(path, f"{json.dumps(content, indent=2)}\n".encode())
                replace_folder(beside, folder, around / "old")
            except OSError as error:  # for example, the disk is full
                if isinstance(error.filename, str):
                    error.filename = error.filename.replace(str(beside), str(folder))
                raise

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], **overrides: Any) -> Self:
        """Loads the model that `save_pretrained` wrote to ``folder``, or a published one.

        Published models are those of the families in ``FAMILIES``, in the files of Hugging Face's
        library or of timm: safetensors (one file or shards), or ``.bin`` if torch is installed; or
        a KerasHub preset. Unknown tensors or settings and non-finite weights are errors. Shapes are
        checked before memory is allocated, and tensors are read one at a time.

        Args:
            folder: a folder; if there is none, the name of a model on the Hugging Face hub.
            overrides: changes to the configuration: ``dropout=0.2``. A text encoder may get another
                ``head``, ``num_classes`` or ``class_names``: a warning names the new weights.

        Raises:
            FileNotFoundError: there is no model.
            CheckpointError: it is a model of another class, or invalid; the message names the file.
            TypeError: the configuration has no such setting.
            ValueError: a change to a setting is invalid.

        >>> polyhead.GPT.preset("char-small", num_layers=1).save_pretrained("saved")
        >>> polyhead.GPT.from_pretrained("saved", dropout=0.2).config.dropout
        0.2
        """
        check_fields(cls, overrides)
        checkpoint = open_checkpoint(folder, cls)
        config = checkpoint.config(overrides)
        tokenizer = checkpoint.tokenizer(config)
        return checkpoint.load(lambda: cls(config, tokenizer, initialize=False))

    def build_layers(self) -> None:
        """Builds the layers of a network for inputs (B, T, D), except those that are built."""
        for layer in self._flatten_layers(include_self=False, recursive=False):
            if not layer.built:
                layer.build((None, None, self.config.dim))
        self.built = True

    @classmethod
    def shapes(cls, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields the path and the shape of each weight of a model with ``config``.

        Files are compared with them before the model is built and memory is allocated. The last
        block comes first, so that a wrong number of blocks is detected immediately.
        """
        raise NotImplementedError

    @classmethod
    def count_parameters(cls, config: Any) -> int:
        """The number of parameters of a model of ``config``, without building it.

        >>> polyhead.GPT.count_parameters(polyhead.GPTConfig())
        124439808
        """
        return sum(math.prod(shape) for _, shape in cls.shapes(config))

    @classmethod
    def load_tokenizer(cls, folder: Path, config: Any) -> Any:
        """Loads the tokenizer in the ``folder`` of a model with ``config``, or returns None."""
        from ..data.tokenizers import load

        return load(folder, config.end_id) if hasattr(config, "end_id") else None

    @classmethod
    def is_replaceable(cls, folder: Path) -> bool:
        """Whether a folder is empty, or holds only files that `save_pretrained` wrote."""
        from ..data.tokenizers import FILES

        names = {path.name for path in folder.iterdir()}
        names |= {f"{POOLING}/{path.name}" for path in (folder / POOLING).glob("*")}
        if not names:
            return True
        ours = {"config.json", "model.safetensors", *BESIDE, *FILES}
        if not {"config.json"} <= names <= ours:
            return False
        try:
            config = read_json(folder / "config.json")
        except (CheckpointError, OSError):
            return False
        return family(config) in (cls.__name__, *cls.FAMILIES)

    def _need_tokenizer(self, verb):
        if self.tokenizer is None:
            raise ValueError(
                f"{verb} needs a tokenizer, and this model has none: set model.tokenizer"
            )
        return self.tokenizer

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains like `keras.Model.fit`; compiles the model with its defaults if necessary.

        >>> model = polyhead.GPT.preset("char-small", num_layers=1)
        >>> x = np.ones([2, 8], "int32")
        >>> history = model.fit(x, x, verbose=0)
        >>> type(model.optimizer).__name__
        'AdamW'
        """
        if not self.compiled:
            strategy = getattr(self, "distribute_strategy", None)  # on TensorFlow
            with contextlib.nullcontext() if strategy is None else strategy.scope():
                self.compile()
        return super().fit(*args, **kwargs)

    def compile(self, *args: Any, remat: bool = False, **kwargs: Any) -> None:
        """Keras's `compile`; with ``remat`` the backward pass recomputes activations.

        Training then keeps only the inputs of each block: less memory, more time.
        """
        for layer in self._flatten_layers():
            if isinstance(layer, (TransformerBlock, PairBlock)):
                layer.remat = remat
        super().compile(*args, **kwargs)

    def get_compile_config(self) -> Any:
        """Keras's compile configuration; None if the optimizer does not fit the saved weights."""
        if self._has_lora() or self._quantization() or not self._optimizer_fits():
            return None
        config = super().get_compile_config()
        return config and {**config, "optimizer_built": self.optimizer.built}

    def compile_from_config(self, config: dict) -> None:
        # Keras does not compile models that override `compile`.
        config = keras.saving.deserialize_keras_object(config)
        built = config.pop("optimizer_built", False)
        self.compile(**config)
        if built:
            build_optimizer(self)  # Keras loads its state next


@contextlib.contextmanager
def cheap_collections():
    """Makes garbage collections skip the existing objects within a block.

    Keras collects once per quantized weight, which takes a second if TensorFlow is loaded.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()  # frees the old weights


def replace_folder(new, folder, old):
    """Renames ``folder`` to ``old``, if it exists, and ``new`` to ``folder``; or neither."""
    replaced = folder.exists()
    if replaced:
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        if replaced:
            os.rename(old, folder)
        raise


class ScoredText(str):
    """A string that also has a ``score``, which the model gives it."""

    def __new__(cls, text: str, score: float) -> Self:
        self = super().__new__(cls, text)
        self.score = score
        return self

    def __getnewargs__(self):
        return str(self), self.score


class Generation(ScoredText):
    """A generated text: a string with a ``score``.

    The score is its log-probability; with beam search, the length-normalized one (see `Search`).

    >>> text = polyhead.Generation(" upon a time", -3.5)
    >>> text.upper(), text.score
    (' UPON A TIME', -3.5)
    """


def stack(blocks, x, caches=None, memories=None, **masks):
    """Applies ``blocks`` to ``x`` (B, T, D), each with its cache and its memory, if given.

    Returns:
        x, and the caches extended by T positions, or None.
    """
    extended = None if caches is None else []
    for i, block in enumerate(blocks):
        inputs = masks if memories is None else {**masks, "memory": memories[i]}
        if caches is None:
            x = block(x, **inputs)
        else:
            x, cache = block(x, cache=caches[i], **inputs)
            extended.append(cache)
    return x, extended


def empty_caches(blocks, rows, length, kind=KeyValueCache):
    """Makes a cache of class ``kind`` for each block, of ``rows`` rows and ``length`` positions."""
    parts = [block.attention for block in blocks]
    return [kind.empty(rows, length, a.num_kv_heads, a.head_dim, a.compute_dtype) for a in parts]


def compile_pattern(pattern):
    """Compiles a regular expression that a user gave."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {pattern!r}: {error}") from None


def in_batches(
    rows: list,
    batch_size: int,
    run: Callable,
    length: Callable = len,
    progress: bool | Callable = False,
) -> list:
    """Applies ``run`` to ``rows`` in batches, and returns the results in the order of ``rows``.

    Rows are sorted by length before they are batched, which reduces padding.

    Args:
        run: a function of a list of rows that returns, or yields, a result for each.
        length: a function that returns the length of a row.
        progress: True shows a progress bar on a terminal; or a function that wraps the iteration
            over batches.
    """
    order = sorted(range(len(rows)), key=lambda i: length(rows[i]))
    results = [None] * len(rows)
    if not callable(progress):
        progress = progress_bar("batches") if progress else iter
    for start in progress(range(0, len(order), batch_size)):
        chosen = order[start : start + batch_size]
        for i, result in zip(chosen, run([rows[i] for i in chosen]), strict=True):
            results[i] = result
    return results


def pad_rows(rows: list, shape: tuple[int, int], value: int) -> np.ndarray:
    """Returns ``rows`` of tokens as an array of ``shape``, padded at the end with ``value``."""
    batch = np.full(shape, value, "int32")
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
    return batch


def progress_bar(title: str) -> Callable:
    """Returns a function that iterates over batches, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # Lines that are printed meanwhile appear above the bar, unless they go to a file or a pipe.
    above = sys.stdout is not None and sys.stdout.isatty()
    settings = dict(disable=not console.is_terminal, redirect_stdout=above)

    def iterate(batches):
        with Progress(console=console, **settings) as progress:
            yield from progress.track(batches, description=title)

    return iterate


def check_count(value: Any, name: str = "num_return_sequences") -> int:
    """Returns ``value`` as a positive integer below 2^31; 1 if it is None."""
    value = 1 if value is None else plain(value)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer: {value!r}")
    if value >= 2**31:
        raise ValueError(f"{name} must be less than 2^31: {value}")
    return value


def bucket(length: int, start: int = 8) -> int:
    """Rounds ``length`` up to 8, 16, 32, ..., so that there are few sizes to compile for."""
    size = start
    while size < length:
        size *= 2
    return size


def block_shapes(kind, count, config, intermediate_dim, cross=False):
    """Yields the paths and shapes of ``count`` `TransformerBlock`s, named ``kind``_0 and so on.

    The last block comes first; see `Pretrained.shapes`.
    """
    dim, heads = config.dim, config.num_heads
    split = (heads, dim // heads)
    shapes = {}
    for attention in ("attention", "cross_attention") if cross else ("attention",):
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (dim, *split)
            shapes[f"{attention}/{part}/bias"] = split
        shapes[f"{attention}/output/kernel"] = (*split, dim)
        shapes[f"{attention}/output/bias"] = (dim,)
        shapes |= norm_shapes(f"{attention}_norm", dim)
    shapes["feed_forward/expand/kernel"] = (dim, intermediate_dim)
    shapes["feed_forward/expand/bias"] = (intermediate_dim,)
    shapes["feed_forward/contract/kernel"] = (intermediate_dim, dim)
    shapes["feed_forward/contract/bias"] = (dim,)
    shapes |= norm_shapes("feed_forward_norm", dim)
    for i in reversed(range(count)):
        for name, shape in shapes.items():
            yield f"{kind}_{i}/{name}", shape


def norm_shapes(name, dim):
    """The paths and shapes of a layer normalization's weights."""
    return {f"{name}/gamma": (dim,), f"{name}/beta": (dim,)}


def check_config(config):
    """Checks a configuration's settings by their types; call it first in ``__post_init__``.

    NumPy scalars become Python's. A field typed ``int`` must be positive and below 2^31, but
    ``num_classes`` and ``type_vocab_size`` may be 0 and fields named ``..._id`` are tokens, below
    ``vocab_size``; one typed ``bool`` must be True or False. A field whose type is a dataclass may
    be a dictionary, as in files. Without a ``head_dim``, ``num_heads`` must divide ``dim``. If the
    configuration has them, dropout rates must be in [0, 1), ``epsilon`` in (0, 1), and
    ``activation`` a name in Keras.

    Raises:
        ValueError: a setting is invalid; the message names it.
    """
    plain_fields(config)
    for field in dataclasses.fields(config):
        name, kind, value = field.name, field.type, getattr(config, field.name)
        optional = kind == int | None
        if dataclasses.is_dataclass(kind):
            if isinstance(value, dict):
                object.__setattr__(config, name, kind(**value))
            elif not isinstance(value, kind):
                raise ValueError(f"{name} must be a {kind.__name__}: {value!r}")
        elif kind is bool and type(value) is not bool:
            raise ValueError(f"{name} must be True or False: {value!r}")
        elif name.endswith("_id"):
            sizes = [config.vocab_size]
            if name in ("pad_id", "end_id"):  # sources have them, too
                sizes.append(getattr(config, "source_vocab_size", None) or config.vocab_size)
            rule = f"a token, from 0 to {min(sizes) - 1}"
            check_integer(config, name, 0, rule, min(sizes))
        elif name in ("num_classes", "type_vocab_size"):
            check_integer(config, name, 0, "a non-negative integer")
        elif kind is int or optional and value is not None:
            check_integer(config, name, 1, "a positive integer" + ", or None" * optional)
    if not hasattr(config, "head_dim") and config.dim % config.num_heads:
        raise ValueError(f"num_heads must divide dim: {config.dim} / {config.num_heads}")
    for name in ("dropout", "attention_dropout", "activation_dropout", "stochastic_depth"):
        if hasattr(config, name):
            check_real(config, name, lambda rate: 0 <= rate < 1, "in [0, 1)")
    if hasattr(config, "epsilon"):
        check_real(config, "epsilon", lambda epsilon: TINY <= epsilon < 1, "in (0, 1)")
    if hasattr(config, "activation"):
        check_activation(config.activation)


def check_integer(config, name, least, rule, limit=None):
    """Checks that a setting is an integer of at least ``least``, below ``limit`` and 2^31.

    Raises:
        ValueError: it is not; the message states the ``rule``.
    """
    value = getattr(config, name)
    if type(value) is not int or value < least or (limit is not None and value >= limit):
        raise ValueError(f"{name} must be {rule}: {value!r}")
    if value >= 2**31:
        raise ValueError(f"{name} must be less than 2^31: {value}")


def check_fields(model, changes):
    """Refuses ``changes`` to settings that a configuration of the class ``model`` does not have."""
    known = [field.name for field in dataclasses.fields(model.Config)]
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
            raise TypeError(
                f"the configuration of {model.__name__} has no {name!r:.100}"
                + (f"; do you mean {near[0]!r}?" if near else f", but {', '.join(known)}")
            )


def check_real(config, name, holds, rule, several=False):
    """Checks that ``holds`` is true for a number, or with ``several`` for each of a tuple.

    NaN fails: all comparisons with it are False.
    """
    value = getattr(config, name)
    for x in value if several else (value,):
        if type(x) not in (int, float) or not holds(x):
            raise ValueError(f"{name} must be {rule}: {value!r}")


def check_activation(name):
    """Checks that a name is an activation of Keras, or "gelu_tanh"."""
    if name == "gelu_tanh":
        return
    try:
        if not isinstance(name, str):
            raise ValueError
        keras.activations.get(name)
    except ValueError:
        raise ValueError(f"activation must be a name in Keras: {name!r}") from None


# The smallest normal and the largest number of float32.
TINY, HUGE = (float(x) for x in (np.finfo("float32").tiny, np.finfo("float32").max))
