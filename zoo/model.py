"""The base class of the zoo's models: configuration, tokenizer, files."""

import contextlib
import dataclasses
import gc
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import keras
import numpy as np

from ..layers import KeyValueCache, MultiHeadAttention, TransformerBlock
from ..layers.arguments import plain, plain_fields
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
from .published import family, open_checkpoint, read_json, write_checkpoint

# The files that `save_pretrained` may write beside the tokenizer's.
BESIDE = ("generation_config.json", "preprocessor_config.json", "tokenizer_config.json")


class Pretrained(Model):
    """A model made from a configuration, which saves and loads itself as a folder of data.

    ``config.json``, ``model.safetensors`` (the variables' paths are the tensors' names) and,
    where there is a tokenizer, its file. Nothing in them is code.

    Without ``initialize`` weights are not drawn as the model's paper has it, which costs memory:
    of a model whose weights will be read.
    """

    Config: ClassVar[type]
    PRESETS: ClassVar[dict]
    # What a configuration and its tokenizer must agree on; a size may be larger than its own.
    VOCABULARY: ClassVar[tuple] = ("vocab_size", "end_id")
    # Modules of `published` for other libraries' checkpoints, by the ``model_type`` of their
    # config.json, or "timm".
    FAMILIES: ClassVar[dict] = {}

    @classmethod
    def preset(cls, name, tokenizer=None, **overrides):
        """A published size with fresh weights; the tokenizer says how large the vocabulary is."""
        if name not in cls.PRESETS:
            raise ValueError(f"{cls.__name__} has presets {', '.join(cls.PRESETS)}: {name!r}")
        if tokenizer is not None:
            for agreed in cls.VOCABULARY:
                overrides.setdefault(agreed, getattr(tokenizer, agreed))
        return cls(dataclasses.replace(cls.PRESETS[name], **overrides), tokenizer)

    def __init__(self, config, tokenizer=None, initialize=True, **kwargs):
        super().__init__(**kwargs)
        # Keras wraps `quantize` of each object to check its arguments; ours checks them itself.
        del self.quantize
        self.config = config
        self.tokenizer = tokenizer
        self._searches = {}  # compiled functions, for decoding above all
        # What they were compiled for; a namespace, so that Keras does not track it.
        self._compiled_for = SimpleNamespace(variables=[])

    @property
    def tokenizer(self):
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        for name in self.VOCABULARY if tokenizer is not None else ():
            theirs, ours = getattr(tokenizer, name), getattr(self.config, name)
            padded = name.endswith("size") and None not in (theirs, ours) and theirs < ours
            if theirs != ours and not padded:
                raise ValueError(
                    f"tokenizer and model must have one vocabulary: {name} {theirs} and {ours}"
                )
        self._tokenizer = tokenizer
        getattr(self, "_searches", {}).clear()  # compiled for another vocabulary

    def get_config(self):
        """The configuration, with what a copy must also know: dtype, quantization, frozen weights.

        A ``.keras`` file holds it, and so do `pickle` and `copy.deepcopy`, which use that format.
        """
        config = {
            **dataclasses.asdict(self.config),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "quantization": self._quantization(),
        }
        if not self._has_lora():  # else the frozen kernels are merged, and trainable again
            config["frozen"] = [v.path for v in self.weights if not v.trainable]
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        dtype = keras.dtype_policies.deserialize(config.pop("dtype", None))
        quantization, frozen = config.pop("quantization", {}), set(config.pop("frozen", ()))
        model = cls(cls.Config(**config), dtype=dtype)
        model._restore_quantization(quantization)
        for v in model.weights:
            if v.path in frozen:
                v.trainable = False
        return model

    def save_assets(self, folder):
        """Puts the tokenizer into a ``.keras`` file."""
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    def load_assets(self, folder):
        if folder is not None:  # Keras passes None for a nested model without a tokenizer
            self.tokenizer = self.load_tokenizer(Path(folder), self.config)

    def drop_padding(self, logits):
        """``logits`` (..., V) without those of rows that pad the embedding, which have no text.

        Published embeddings are padded to sizes such as 50,304; there may be fewer tokens.
        """
        size = None if self.tokenizer is None else self.tokenizer.vocab_size
        return logits if size in (None, logits.shape[-1]) else logits[..., :size]

    def freeze(self, pattern):
        """Excludes the weights whose paths match a regular expression from training.

        Call `compile` after it. Paths are those of ``[v.path for v in model.weights]``.

        Raises:
            ValueError: no path matches, or ``pattern`` is not a regular expression.
        """
        try:
            frozen = [v for v in self.weights if re.search(pattern, v.path)]
        except re.error as error:
            raise ValueError(f"not a regular expression: {pattern!r}: {error}") from None
        if not frozen:
            raise ValueError(f"no weight matches {pattern!r}")
        for v in frozen:
            v.trainable = False

    def enable_lora(self, rank, alpha=None):
        """Adds LoRA adapters to the query and value of every attention, and freezes all else.

        (Hu et al. 2021, arXiv 2106.09685.) Call `compile` after it. All files and exports hold
        the model with the adapters merged into its weights.

        Args:
            rank: of the adapters.
            alpha: they are scaled by ``alpha`` / rank; by 1 where it is not given.

        Raises:
            ValueError: LoRA is enabled already, or the model is quantized.
        """
        if self._has_lora():
            raise ValueError("LoRA is enabled already")
        if self._quantization():
            raise ValueError("the model is quantized: enable LoRA before quantize")
        before = self.weights
        for attention in self._attentions():
            attention.enable_lora(rank, alpha)
        for v in before:
            v.trainable = False
        self.train_function = self.test_function = self.predict_function = None

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """Keras's `quantize`, for inference: "int8" stores weights as 8-bit integers with scales.

        All matrices are quantized, the token embedding included; LoRA adapters are merged before.
        Files and exports stay quantized. The size is a quarter of float32's.

        Args:
            filters: which layers: a regular expression for their names, a list of those, or a
                function of a layer.

        Raises:
            ValueError: another mode, or quantizers of your own in ``config``.
        """
        default = keras.quantizers.Int8QuantizationConfig()
        mode = config.mode if mode is None and config is not None else mode
        if mode != "int8":
            raise ValueError(f"{type(self).__name__} supports the quantization 'int8': {mode!r}")
        if config is not None and config.get_config() != default.get_config():
            raise ValueError("quantize supports Keras's default quantizers only: leave out config")
        with warnings.catch_warnings(), cheap_collections():
            # Keras names each layer without weights to quantize: dropout, normalization.
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
            raise ValueError(f"quantization must be of layers by 'int8': {modes!r:.100}")
        self.quantize("int8", filters=lambda layer: layer.path in modes)
        if unknown := sorted(modes.keys() - self._quantization().keys()):
            raise ValueError(f"quantization names layers that the model has not: {some(unknown)}")

    def _compiled(self, key, function, name):
        """``function``, which calls the model for ``name``, compiled once for each ``key``.

        Compiled functions hold the variables that they were traced with. Where layers have got
        others (`quantize` and `enable_lora`, of the model or of a layer), all are compiled again.
        """
        variables, traced = self.weights, self._compiled_for.variables
        if len(variables) != len(traced) or any(
            v is not w for v, w in zip(variables, traced, strict=True)
        ):
            self._searches.clear()
            self._compiled_for.variables = variables
        if (found := self._searches.get(key)) is None:
            found = self._searches[key] = compiled(self, function, name)
        return found

    def make_train_function(self, force=False):
        """Keras's, which every training method calls first.

        Raises:
            ValueError: training would not change the weights that are trainable now.
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
        """Whether the optimizer, once built, is of the weights that are trainable now."""
        built = getattr(inner(getattr(self, "optimizer", None)), "_trainable_variables", [])
        return not built or list(map(id, built)) == list(map(id, self.trainable_variables))

    def _attentions(self):
        return [x for x in self._flatten_layers() if isinstance(x, MultiHeadAttention)]

    def _lora_layers(self):
        """The layers that have a LoRA adapter."""
        return [x for x in self._flatten_layers() if getattr(x, "adapter", None) is not None]

    def _merge_lora(self, weights):
        """``weights``, ``{path: array}``, with LoRA adapters merged into their kernels."""
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
        """The layers whose `enable_lora`, Keras's own, was called."""
        return [x for x in self._flatten_layers() if getattr(x, "lora_enabled", False)]

    def _has_lora(self):
        """Whether a file or an export of this model has LoRA adapters merged into its weights."""
        return bool(self._lora_layers() or self._keras_lora_layers())

    def _without_lora(self):
        """The model, or where it has LoRA adapters, another that has them merged."""
        if not self._has_lora():
            return self
        return self._copy(self.tokenizer)

    def _copy(self, tokenizer):
        """Another model of the same weights, with LoRA adapters merged."""
        model = type(self)(self.config, tokenizer, initialize=False, dtype=self.dtype_policy)
        model._restore_quantization(self._quantization())
        weights = {path: v.numpy() for path, v in by_path(self.weights).items()}
        assign(by_path(model.weights), self._merge_lora(weights), "this model")
        return model

    def _export_network(self, filepath, format, signature, limit, settings):
        """`export` in another format than TensorFlow Serving's; see `polyhead.serving.formats`."""
        from ..serving.formats import export_network

        # Without its tokenizer, whose tables would be converted too.
        return export_network(self._copy(None), filepath, format, signature, limit, **settings)

    def save_pretrained(self, folder, weights=None, format="polyhead"):
        """Writes the model to ``folder`` atomically; an older one is replaced.

        Args:
            weights: ``{path: array}``, written instead of the model's own.
            format: "polyhead", or a format of ``FAMILIES``: "huggingface" for a checkpoint that
                Hugging Face's library loads, for ViT also "timm".

        Raises:
            FileExistsError: the folder holds something else than a model.
            ValueError: a format or a setting that cannot be written.
        """
        from ..serving.folder import temporary_folder

        if weights is None:
            weights = {path: v.numpy() for path, v in by_path(self.weights).items()}
        files = write_checkpoint(self, format, self._merge_lora(weights))
        folder = Path(folder)
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file; a model is saved as a folder")
        if folder.exists() and not self.is_replaceable(folder):
            raise FileExistsError(f"{folder} holds something else than a {type(self).__name__}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent, folder.name) as beside:
            try:
                for name, content in files.items():
                    if name.endswith(".json"):
                        write_file(beside / name, f"{json.dumps(content, indent=2)}\n".encode())
                    else:
                        write_tensors(beside / name, content)
                if self.tokenizer is not None:
                    self.tokenizer.save(beside)
                beside.chmod(0o755)  # mkdtemp's folders are their owner's alone
                replace_folder(beside, folder)
            except OSError as error:  # as of a full disk
                if isinstance(error.filename, str):
                    error.filename = error.filename.replace(str(beside), str(folder))
                raise

    @classmethod
    def from_pretrained(cls, folder, **overrides):
        """Loads the model that `save_pretrained` wrote to ``folder``, or a published one.

        Published models are those that Hugging Face's library saves, as safetensors, whole or in
        shards, or as ``.bin`` where torch is installed. The class lists the families that it
        reads. Every tensor and every setting must be known, and all weights finite. Sizes are
        compared with the file's before memory is allocated, and tensors are read one at a time.
        Where there is no such folder,
        ``folder`` is the name of a model on Hugging Face's hub. ``overrides`` change the
        configuration: ``dropout=0.2``.

        Raises:
            FileNotFoundError: there is no model.
            CheckpointError: it is another model's, or broken; the message names the file.
        """
        checkpoint = open_checkpoint(folder, cls)
        config = checkpoint.config(overrides)
        tokenizer = checkpoint.tokenizer(config)
        return checkpoint.load(lambda: cls(config, tokenizer, initialize=False))

    @classmethod
    def shapes(cls, config):
        """Yields the path and the shape of each weight of a model of ``config``.

        It allocates nothing: files are compared with it before the model is built. Blocks come in
        descending order, so that one too many is found at once.
        """
        raise NotImplementedError

    @classmethod
    def load_tokenizer(cls, folder, config):
        """The tokenizer saved in ``folder`` beside a model of ``config``, or None."""
        from ..data.tokenizers import load

        return load(folder, config.end_id) if hasattr(config, "end_id") else None

    @classmethod
    def is_replaceable(cls, folder):
        """Whether a folder is empty, or holds only files that `save_pretrained` wrote."""
        from ..data.tokenizers import FILES

        names = {path.name for path in folder.iterdir()}
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

    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`; a model that is not compiled is compiled with its defaults first.

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

    def compile(self, *args, remat=False, **kwargs):
        """Keras's `compile`; with ``remat`` the backward pass recomputes blocks.

        Training then keeps only the input of each `TransformerBlock`: less memory, more time.
        """
        for layer in self._flatten_layers():
            if isinstance(layer, TransformerBlock):
                layer.remat = remat
        super().compile(*args, **kwargs)

    def get_compile_config(self):
        """Keras's; None where the optimizer's state does not belong to the weights in the file."""
        if self._has_lora() or self._quantization() or not self._optimizer_fits():
            return None
        config = super().get_compile_config()
        return config and {**config, "optimizer_built": self.optimizer.built}

    def compile_from_config(self, config):
        # Keras leaves models uncompiled whose `compile` has defaults of its own.
        config = keras.saving.deserialize_keras_object(config)
        built = config.pop("optimizer_built", False)
        self.compile(**config)
        if built:
            build_optimizer(self)  # for its state, which is read next


@contextlib.contextmanager
def cheap_collections():
    """Within it garbage collections skip the objects that exist already.

    Keras runs one for each weight that it quantizes: a second where TensorFlow is loaded.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()  # the weights before, once


def replace_folder(new, folder):
    """Renames ``new`` to ``folder``; one that was there is set aside, and goes at the end."""
    old = None
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        if old is not None:
            os.rename(old, folder)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


class ScoredText(str):
    """A string that also has a ``score``: what a model's text is worth to the model."""

    def __new__(cls, text, score):
        self = super().__new__(cls, text)
        self.score = score
        return self

    def __getnewargs__(self):
        return str(self), self.score


def stack(blocks, x, caches=None, memories=None, **masks):
    """``x`` (B, T, D) through ``blocks``, each with its cache and its memory where there are any.

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
    """A cache of ``kind`` for each of ``blocks``: ``rows`` rows, room for ``length`` positions."""
    parts = [block.attention for block in blocks]
    return [kind.empty(rows, length, a.num_kv_heads, a.head_dim, a.compute_dtype) for a in parts]


def in_batches(rows, batch_size, run, length=len, progress=False):
    """Applies ``run`` to ``rows`` in batches, and returns its results in the order of ``rows``.

    Rows of one ``length`` share a batch, so that little is padded.

    Args:
        run: a function of a list of rows that returns, or yields, a result for each.
        length: a function of a row: rows are sorted by it.
        progress: True shows a progress bar on a terminal; or a function that wraps the iteration
            over batches.
    """
    order = sorted(range(len(rows)), key=lambda i: length(rows[i]))
    results = [None] * len(rows)
    if not callable(progress):
        progress = progress_bar if progress else iter
    for start in progress(range(0, len(order), batch_size)):
        chosen = order[start : start + batch_size]
        for i, result in zip(chosen, run([rows[i] for i in chosen]), strict=True):
            results[i] = result
    return results


def progress_bar(batches):
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(batches, "batches", console=console, disable=not console.is_terminal)


def as_list(verb, texts, name="text"):
    """``texts``, a string or several, as a list, and whether it is one string.

    Raises:
        TypeError: an item is not a string; ``verb`` is the method that it was passed to.
    """
    single = isinstance(texts, str | bytes)
    texts = [texts] if single else list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str | bytes):
            raise TypeError(f"{verb} takes a string or a list of them: {name} {i} is {text!r:.100}")
    return texts, single


def check_count(value, name="num_return_sequences"):
    """``value`` as a positive integer; 1 if it is None."""
    value = 1 if value is None else plain(value)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer: {value!r}")
    return value


def bucket(length, start=8):
    """The least of 8, 16, 32, ... that holds ``length``: few sizes to compile for."""
    size = start
    while size < length:
        size *= 2
    return size


def read_parts(config, **kinds):
    """Makes the fields of a configuration plain, and those of ``kinds`` instances of their class.

    A dictionary is what was read from a file. For the beginning of ``__post_init__``.

    Raises:
        ValueError: a field is of another kind.
    """
    plain_fields(config)
    for name, kind in kinds.items():
        value = getattr(config, name)
        if isinstance(value, dict):
            object.__setattr__(config, name, kind(**value))
        elif not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}: {value!r}")


def block_shapes(kind, count, config, intermediate_dim, cross=False):
    """Yields the paths and shapes of ``count`` `TransformerBlock`s, ``kind``_0 to the last one.

    The last comes first; see `Pretrained.shapes`.
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


def check_sizes(config, *sizes, optional=(), tokens=()):
    """Checks the settings that many configurations have, after `plain_fields`.

    ``sizes`` are positive integers below 2^31, ``optional`` ones may be None, and ``tokens`` are
    below ``vocab_size``. ``num_heads`` divides ``dim``. Where the configuration has them, rates of
    dropout are in [0, 1), ``epsilon`` is in (0, 1), and Keras knows the ``activation``.

    Raises:
        ValueError: naming the setting.
    """
    for name in (*sizes, *optional):
        if getattr(config, name) is None and name in optional:
            continue
        none = ", or None" if name in optional else ""
        check_integer(config, name, 1, f"a positive integer{none}")
    for name in tokens:
        check_integer(config, name, 0, f"a token, of {config.vocab_size}", config.vocab_size)
    if config.dim % config.num_heads:
        raise ValueError(f"num_heads must divide dim: {config.dim} / {config.num_heads}")
    for name in ("dropout", "attention_dropout", "stochastic_depth"):
        if hasattr(config, name):
            check_real(config, name, lambda rate: 0 <= rate < 1, "in [0, 1)")
    if hasattr(config, "epsilon"):
        check_real(config, "epsilon", lambda epsilon: TINY <= epsilon < 1, "in (0, 1)")
    check_activation(config.activation)


def check_integer(config, name, least, rule, limit=None):
    """Checks that a setting is an integer from ``least`` to below ``limit``, or 2^31.

    Raises:
        ValueError: with the ``rule`` that it breaks.
    """
    value = getattr(config, name)
    if type(value) is not int or value < least or (limit is not None and value >= limit):
        raise ValueError(f"{name} must be {rule}: {value!r}")
    if value >= 2**31:
        raise ValueError(f"{name} must be less than 2^31: {value}")


def check_real(config, name, holds, rule, several=False):
    """Checks that ``holds`` is true of a setting, a number, or of ``several`` in a tuple.

    NaN makes every comparison false.
    """
    value = getattr(config, name)
    for x in value if several else (value,):
        if type(x) not in (int, float) or not holds(x):
            raise ValueError(f"{name} must be {rule}: {value!r}")


def check_activation(name):
    """Checks that a name is one of Keras's activations, or our own "gelu_tanh"."""
    if name == "gelu_tanh":
        return
    try:
        if not isinstance(name, str):
            raise ValueError
        keras.activations.get(name)
    except ValueError:
        raise ValueError(f"activation must be a name that Keras knows: {name!r}") from None


# float32's smallest normal number and its largest.
TINY, HUGE = (float(x) for x in (np.finfo("float32").tiny, np.finfo("float32").max))
