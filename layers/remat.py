"""Recomputes a part of a layer in the backward pass, instead of keeping its activations."""

import keras

from .dropout import Dropout


def recomputed(layer, forward, *inputs):
    """``forward(*inputs)``, of which only the inputs are kept; the backward pass recomputes it.

    All variables are passed as arguments, so that recomputing assigns nothing and dropout drops the
    same elements.

    Args:
        layer: the layer with the variables.
        forward: a function of tensors, of which some may be None; returns a tensor, or a tuple of
            them. It must pass ``training=True`` on, which Keras has forgotten when it recomputes.
    """
    weights = layer.weights
    drops = [part for part in layer._flatten_layers() if isinstance(part, Dropout)]
    seeds = [drop.seed_generator.state for drop in drops if drop.rate]
    states = [seed.value * 1 for seed in seeds]  # copies: the seeds advance
    given = [i for i, x in enumerate(inputs) if x is not None]

    def run(*values):
        found, weighed = dict(zip(given, values, strict=False)), values[len(given) :]
        mapping = [*zip(weights, weighed, strict=True), *zip(seeds, states, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            y = forward(*(found.get(i) for i in range(len(inputs))))
            y = y if isinstance(y, tuple) else (y,)
            return *y, *(scope.get_current_value(seed) for seed in seeds)

    results = keras.remat(run)(*(inputs[i] for i in given), *(w.value for w in weights))
    count = len(results) - len(seeds)
    for seed, state in zip(seeds, results[count:], strict=True):
        seed.assign(state)
    return results[0] if count == 1 else tuple(results[:count])
