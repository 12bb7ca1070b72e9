"""The classifier as it is served: a look-up of tokens, a sum of their rows and one product with the cluster centres.

It chooses the same cluster as TF-IDF -> truncated SVD -> L2 normalisation -> nearest centre in scikit-learn, at a
hundredth of the cost. It knows neither how it was fitted nor which expert serves a cluster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from erhpc.errors import InputError
from erhpc.routing.features import SUBWORDS, TOKENS, Reading
from erhpc.routing.subwords import Subwords

FloatArray = npt.NDArray[np.float32]

ZERO_LENGTH = 1e-12
"""Vectors shorter than this are rounding errors of the SVD (about 1e-17) and have no direction."""

_ONES = np.ones(4096, dtype=np.float32)
"""More than texts have words that are known."""


@dataclass(slots=True, eq=False)  # not frozen: those take three times as long to make
class Classification:
    """Where one text lies among the clusters."""

    cluster: int | None
    """Number of the nearest cluster; None: the text has no known token, no cluster is meaningful."""
    distances2: FloatArray
    """(clusters,) squared Euclidean distance of the text's unit vector to each centre; from the origin if None.

    The choice of the cluster computes it anyway; it is here for policies that weigh several experts, as c-BTM does.
    """


class Classifier:
    """Finds the cluster of a text.

    The length of a TF-IDF row cancels when its projection is normalised, so a text's direction is the plain sum of
    one row per token: idf(token) x components[:, token]. Of an embedding, it is the vector of a subword, in the
    dimensions that were kept. Where counts are sub-linear, a token that occurs n times brings its row 1 + ln(n) times.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | Subwords,
        rows: FloatArray,
        centres: FloatArray,
        reading: Reading | None = None,
    ) -> None:
        """Take a token per row: `rows` is (tokens, dimensions), `centres` (clusters, dimensions).

        `reading` is how the texts were read that they were fitted on; None: as in c-BTM. The vocabulary is Subwords if
        subwords are read, else words; content words must be free of stop words and numbers: nothing here filters them.

        Raises:
            InputError: the shapes do not fit each other.
        """
        self.reading = reading or Reading()
        self._add_up = self._add_logarithmically if self.reading.counts == "log" else self._add_plainly
        self.vocabulary = vocabulary if isinstance(vocabulary, Subwords) else tuple(vocabulary)
        self.rows = np.ascontiguousarray(rows, dtype=np.float32)
        self.centres = np.ascontiguousarray(centres, dtype=np.float32)
        self._check_shapes()
        self._find_rows = _make_finder(self.vocabulary, self.reading)
        # |x - c|^2 = 1 + |c|^2 - 2 x.c; centres are means of unit vectors and hence shorter than 1.
        self._centre_lengths2: FloatArray = np.square(self.centres).sum(axis=1)
        self._both_lengths2: FloatArray = 1 + self._centre_lengths2
        self._doubled_centres: FloatArray = 2 * self.centres

    @property
    def num_clusters(self) -> int:
        """How many clusters there are; they are numbered from 0."""
        return len(self.centres)

    def classify(self, text: str) -> Classification:
        """Find the cluster whose centre is nearest to `text`; the lower number wins a tie."""
        found = self._find_rows(text)
        if not found:
            return Classification(None, self._centre_lengths2)
        direction = self._add_up(found)
        length = math.sqrt(direction.dot(direction))
        if length <= ZERO_LENGTH:
            return Classification(None, self._centre_lengths2)
        distances2: FloatArray = self._both_lengths2 - self._doubled_centres.dot(direction / np.float32(length))
        return Classification(int(distances2.argmin()), distances2)

    def _add_plainly(self, found: list[int]) -> FloatArray:
        # Counting first would cost a tenth more than adding a repeated row again, `np.add.reduce` twice as much.
        ones = _ONES[: len(found)] if len(found) <= len(_ONES) else np.ones(len(found), dtype=np.float32)
        direction: FloatArray = ones.dot(self.rows.take(found, axis=0))
        return direction

    def _add_logarithmically(self, found: list[int]) -> FloatArray:
        counts = Counter(found)
        weights = 1 + np.log(np.fromiter(counts.values(), dtype=np.float32, count=len(counts)))
        direction: FloatArray = weights.dot(self.rows.take(list(counts), axis=0))
        return direction

    def _check_shapes(self) -> None:
        if self.rows.ndim != 2 or self.centres.ndim != 2 or self.rows.shape[1] != self.centres.shape[1]:
            raise InputError(
                f"classifier: rows {self.rows.shape} and centres {self.centres.shape} must be "
                "(words, dimensions) and (clusters, dimensions). Fit it again."
            )
        different = len(self.vocabulary if isinstance(self.vocabulary, Subwords) else set(self.vocabulary))
        if not different == len(self.vocabulary) == len(self.rows) or not len(self.centres):
            raise InputError(
                f"classifier: {different} different words of {len(self.vocabulary)} and {len(self.rows)} rows "
                f"must be equally many, and {len(self.centres)} centres at least one. Fit it again."
            )


def _make_finder(vocabulary: tuple[str, ...] | Subwords, reading: Reading) -> Callable[[str], list[int]]:
    """What gives the rows of a text's tokens, in order, with repetitions; numbers from the end count like an array's.

    Raises:
        InputError: the vocabulary is not of the kind of tokens that the reading names.
    """
    if isinstance(vocabulary, Subwords) != (reading.tokens == SUBWORDS):
        raise InputError(
            f"classifier: it reads {reading.tokens}, but its vocabulary is a {type(vocabulary).__name__}. Fit it again."
        )
    if isinstance(vocabulary, Subwords):
        return vocabulary.find
    # Rows are counted from the end, as negative numbers: what is not found is then all that is false.
    split, row_of = TOKENS[reading.tokens], {word: row for row, word in enumerate(vocabulary, -len(vocabulary))}.get
    return lambda text: list(filter(None, map(row_of, split(text))))
