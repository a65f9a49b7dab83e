"""A minimal new decoder, from its configuration to an export."""

from dataclasses import dataclass

import keras
import numpy as np
import pytest

from polyhead.layers import FeedForward, MultiHeadAttention, TokenEmbedding, TransformerBlock
from polyhead.zoo import CausalLM, Sampling, Search
from polyhead.zoo.model import block_shapes, check_config, norm_shapes, stack


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = 300
    max_length: int = 48
    num_layers: int = 2
    dim: int = 16
    intermediate_dim: int = 24
    num_heads: int = 2
    activation: str = "relu"
    end_id: int = 0
    search: Search = Search(max_new_tokens=8)
    sampling: Sampling = Sampling(temperature=0)
    stop_strings: tuple = ()

    def __post_init__(self):
        check_config(self)


@keras.saving.register_keras_serializable("tests")
class Toy(CausalLM):
    """A decoder without positional encodings."""

    Config = ToyConfig
    PRESETS = {"toy": ToyConfig()}

    def __init__(self, config, tokenizer=None, initialize=True, **kwargs):
        super().__init__(config, tokenizer, **kwargs)
        c = config
        self.tokens = TokenEmbedding(c.vocab_size, c.dim, dtype=self.dtype_policy, name="tokens")
        parts = dict(
            attention=MultiHeadAttention(c.num_heads, causal=True),
            feed_forward=FeedForward(c.intermediate_dim),
        )
        self.blocks = [
            TransformerBlock(**parts, dtype=self.dtype_policy, name=f"block_{i}")
            for i in range(c.num_layers)
        ]
        self.norm = keras.layers.LayerNormalization(dtype=self.dtype_policy, name="norm")
        self.build_layers()

    @classmethod
    def shapes(cls, config):
        yield "tokens/embeddings", (config.vocab_size, config.dim)
        yield from block_shapes("block", config.num_layers, config, config.intermediate_dim)
        yield from norm_shapes("norm", config.dim).items()

    def features(self, tokens, start=0, mask=None, caches=None):
        x, caches = stack(self.blocks, self.tokens(tokens), caches, mask=mask)
        return self.norm(x), caches

    def logits(self, x):
        return self.tokens.logits(x)


TEXTS = ["the cat sat on the mat, and the dog sat on the log. " * 20]
tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="tokenizers and exports are TensorFlow's"
)


@pytest.fixture(scope="module")
def tokenizer():
    from polyhead.data import BytePairs

    return BytePairs.train(TEXTS, 300)


def toy(tokenizer):
    keras.utils.set_random_seed(1)
    model = Toy.preset("toy", tokenizer)
    model.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    return model


def batches(tokenizer, start=None):
    from polyhead.data import text_batches

    return text_batches(TEXTS, tokenizer, 16, 8, start=start)


@tensorflow
@pytest.mark.slow
def test_a_new_decoder_trains_with_adapters_generates_and_is_saved(tokenizer, tmp_path):
    model = toy(tokenizer)
    losses = model.fit(batches(tokenizer), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 1
    model.enable_lora(2)
    model.compile(jit_compile=False)
    before = model.get_weights()
    model.fit(batches(tokenizer), verbose=0)
    changed = [not (a == b).all() for a, b in zip(before, model.get_weights(), strict=True)]
    assert sum(changed) == 2 * 2 * 2  # A and B of query and value in each block
    [text] = model.generate(["the cat"])
    assert "".join(model.stream("the cat")) == text
    model.save_pretrained(tmp_path / "toy")
    again = Toy.from_pretrained(tmp_path / "toy")
    assert again.generate("the cat") == text


@tensorflow
@pytest.mark.slow
def test_a_new_decoder_resumes_and_is_exported(tokenizer, tmp_path):
    import tensorflow as tf

    from polyhead.training import Checkpoints

    def fit(folder, epochs):
        model, checkpoints = (
            toy(tokenizer),
            Checkpoints(tmp_path / folder, monitor="loss", mode="min"),
        )
        done = checkpoints.resume(model)
        stream = batches(tokenizer, checkpoints.updates)
        model.fit(
            stream, steps_per_epoch=3, initial_epoch=done, epochs=epochs, callbacks=[checkpoints],
            shuffle=False, verbose=0,
        )  # fmt: skip
        return model

    whole = fit("whole", 4)
    fit("parts", 2)
    resumed = fit("parts", 4)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    folder = whole.export(tmp_path / "export")
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    [text] = served(text=tf.constant(["the cat"]))["text"].numpy()
    assert text.decode() == whole.generate("the cat")
