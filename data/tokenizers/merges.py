"""BPE-dropout for SentencePiece vocabularies (Provilkov et al. 2020), reproducible from a seed."""

import functools
import heapq
import itertools
import math
import re

import numpy as np
from sentencepiece import sentencepiece_model_pb2

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark of the start of a word
SHORT = 16  # characters; shorter words repeat, so their tokens are cached
KINDS = sentencepiece_model_pb2.ModelProto.SentencePiece


class Merges:
    """Segments text as SentencePiece's encoder does, and can skip merges at random.

    (SentencePiece's own sampling has another seed in each process.)

    Args:
        model: a `SentencePieceProcessor`.

    Raises:
        ValueError: it is not a BPE model, or it has unused pieces.
    """

    def __init__(self, model):
        proto = sentencepiece_model_pb2.ModelProto.FromString(model.serialized_model_proto())
        if proto.trainer_spec.model_type != sentencepiece_model_pb2.TrainerSpec.BPE:
            raise ValueError("BPE-dropout needs a BPE vocabulary")
        if any(piece.type == KINDS.UNUSED for piece in proto.pieces):
            raise ValueError("BPE-dropout does not support unused pieces in a vocabulary")
        self._model = model
        self._unknown = model.unk_id()
        self._bytes = None
        if proto.trainer_spec.byte_fallback:
            self._bytes = [model.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        kinds = (KINDS.NORMAL, KINDS.USER_DEFINED)
        self._scores = {p.piece: p.score for p in proto.pieces if p.type in kinds}
        symbols = [p.piece for p in proto.pieces if p.type == KINDS.USER_DEFINED]
        self._symbols = frozenset(symbols)
        longest_first = map(re.escape, sorted(symbols, key=len, reverse=True))
        self._characters = re.compile("|".join([*longest_first, "(?s:.)"]))
        # Words do not merge with each other if a space can only begin a piece.
        apart = not any(SPACE in piece[1:] for piece in self._scores)
        self._words = re.compile(f"(?s){SPACE}?[^{SPACE}]+|{SPACE}" if apart else "(?s).+")
        self._cut = functools.lru_cache(1 << 17)(self._cut)

    def sample(self, texts, dropout, seed):
        """Tokenizes ``texts`` to lists; each merge is skipped with probability ``dropout``."""
        waits = itertools.repeat(math.inf)
        if dropout:
            # An endless iterator of the numbers of merges between two skipped ones.
            random = np.random.Generator(np.random.PCG64(seed))
            batches = iter(lambda: (random.geometric(dropout, 8192) - 1).tolist(), None)
            waits = itertools.chain.from_iterable(batches)
        wait = next(waits)

        def skip():
            nonlocal wait
            if wait:
                wait -= 1
                return False
            wait = next(waits)
            return True

        rows = []
        for text in self._model.normalize(list(texts)):
            row = []
            for word in self._words.findall(text):
                if len(word) > SHORT:
                    row += self._merge(word, skip)
                    continue
                tokens, count = self._cut(word, ())
                skipped, done = (), 0
                while wait < count - done:
                    done += wait + 1
                    skipped += (done - 1,)
                    tokens, count = self._cut(word, skipped)
                    wait = next(waits)
                wait -= count - done
                row += tokens
            # Consecutive unknown characters are one token.
            if self._unknown in row and self._bytes is None:
                row = [
                    token
                    for before, token in zip([None, *row[:-1]], row, strict=True)
                    if token != self._unknown or before != self._unknown
                ]
            rows.append(row)
        return rows

    def _cut(self, word, skipped):
        """Returns the tokens of ``word`` without merges ``skipped``, and the number of merges."""
        numbers = itertools.count()
        tokens = self._merge(word, lambda: next(numbers) in skipped)
        return tokens, next(numbers)

    def _merge(self, word, skip):
        """Tokenizes ``word``; ``skip()`` is called for each merge and returns whether to skip it.

        Merges are in the order of their scores, the best first, and from left to right.
        """
        symbols = self._characters.findall(word)
        before, after = list(range(-1, len(symbols))), list(range(1, len(symbols) + 1))
        queue = []

        def propose(left, right):
            if left < 0 or right == len(symbols):
                return
            if symbols[left] in self._symbols or symbols[right] in self._symbols:
                return
            piece = symbols[left] + symbols[right]
            if (score := self._scores.get(piece)) is not None:
                heapq.heappush(queue, (-score, left, right, piece))

        for i in range(1, len(symbols)):
            propose(i - 1, i)
        while queue:
            _, left, right, piece = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != piece:
                continue
            if skip():
                continue
            symbols[left], symbols[right] = piece, ""
            after[left] = after[right]
            if after[right] < len(symbols):
                before[after[right]] = left
            propose(before[left], left)
            propose(left, after[left])
        tokens = []
        for symbol in filter(None, symbols):
            token = self._model.piece_to_id(symbol)
            if token == self._unknown and self._bytes is not None:
                tokens += [self._bytes[byte] for byte in symbol.encode()]
            else:
                tokens.append(token)
        return tokens
