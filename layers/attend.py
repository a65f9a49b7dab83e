"""Scaled dot-product attention, section 3.2.1 of Vaswani et al. 2017, as a pure function."""

from collections.abc import Callable

from keras import ops

from .arguments import Tensor

MASKED = -1e9  # finite, and safe in float32: a fully masked row gives no NaN


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
    heads_first: bool = False,
) -> Tensor:
    """softmax(Q K^T scale) V, for H heads of queries and G heads of keys and values.

    If G < H, each head of keys and values serves H / G consecutive heads of queries: grouped-query
    attention (Ainslie et al. 2023, arXiv 2305.13245).

    Args:
        query: (B, T, H, K).
        key, value: (B, S, G, K), where G divides H.
        mask: boolean, True = may attend, broadcastable to (B, H, T, S). A query whose keys are all
            masked gets the mean of all values.
        bias: added to the scores, broadcastable to (B, H, T, S).
        scale: multiplies the scores. Default: K ** -0.5.
        softcap: c: a score becomes c tanh(score / c), before the bias is added (Gemma Team 2024,
            arXiv 2408.00118, section 2).
        dropout: a function that is applied to the weights (B, H, T, S).
        heads_first: whether key and value are (B, G, S, K), which no product has to transpose.

    Returns:
        (B, T, H, K), in the dtype of ``value``. The softmax is computed in float32.

    >>> x = keras.random.normal((2, 5, 8, 16))
    >>> y = attend(x, x[:, :, :2], x[:, :, :2])  # 8 heads of queries, 2 of keys and values
    >>> tuple(y.shape)
    (2, 5, 8, 16)
    """
    weights = attention_weights(query, key, mask, bias, scale, softcap, heads_first)
    if dropout is not None:
        weights = dropout(weights)
    weights = ops.cast(weights, value.dtype)
    heads, groups = query.shape[2], value.shape[1 if heads_first else 2]
    order = "bgsk" if heads_first else "bsgk"
    if heads == groups:
        return ops.einsum(f"bgts,{order}->btgk", weights, value)
    length, source_length = ops.shape(weights)[2:]
    weights = ops.reshape(weights, (-1, groups, heads // groups, length, source_length))
    attended = ops.einsum(f"bgnts,{order}->btgnk", weights, value)
    return ops.reshape(attended, (-1, length, heads, value.shape[-1]))


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    heads_first: bool = False,
) -> Tensor:
    """The softmax of the scores (B, H, T, S), in float32; see `attend` for the arguments.

    >>> x = keras.random.normal((1, 2, 4, 16))
    >>> mask = np.array([[True, False], [True, True]])
    >>> weights = np.array(attention_weights(x, x, mask))
    >>> weights[0, 0, 0].round(3)  # the first position attends only to itself
    array([1., 0.], dtype=float32)
    """
    heads, groups, size = query.shape[2], key.shape[1 if heads_first else 2], query.shape[3]
    order = "bgsk" if heads_first else "bsgk"
    query = query * (size**-0.5 if scale is None else scale)
    if heads == groups:
        scores = ops.einsum(f"btgk,{order}->bgts", query, key)
    else:
        length, source_length = ops.shape(query)[1], ops.shape(key)[2 if heads_first else 1]
        query = ops.reshape(query, (-1, length, groups, heads // groups, size))
        scores = ops.einsum(f"btgnk,{order}->bgnts", query, key)
        scores = ops.reshape(scores, (-1, heads, length, source_length))
    scores = ops.cast(scores, "float32")
    if softcap is not None:
        scores = softcap * ops.tanh(scores / softcap)
    if bias is not None:
        scores = scores + ops.cast(bias, "float32")
    return masked_softmax(scores, mask)


def masked_softmax(scores, mask=None):
    """The softmax of ``scores`` over the last axis, where ``mask`` is True; see `MASKED`."""
    if mask is not None:
        scores = ops.where(mask, scores, MASKED)
    if scores.shape[-1] == 1:
        return ops.ones_like(scores)  # the softmax of one score; Keras's would warn
    return ops.softmax(scores, axis=-1)
