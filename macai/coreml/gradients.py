"""How much an error in a matrix's output counts: at each token, and in each row.

By the second order of the Kullback-Leibler divergence of a model's next-token distributions from
what they are, an error d_t in the output at token t costs (g_t d_t)^2 / 2 nats, where g_t is the
gradient of the log probability of tokens that the model itself draws: the diagonal of the Fisher
information (Kunstner et al., arXiv:1905.12558). Where all inputs count alike a matrix is rounded
for the few largest, which may be of tokens whose output hardly matters, as the first one's in many
models; to weigh them is GuidedQuant (Kim et al., arXiv:2505.07004).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.matrices import PLACES, matrix_paths
from macai.coreml.watch import watching

Progress = Callable[[int, int], None]
_SEED = 0


@dataclass(slots=True)
class Gradients:
    """Squared gradients with respect to the output of a matrix [out, in].

    Attributes:
        rows: The mean over tokens of each row, float64 [out].
        columns: Of a table, where rows of it are read, the mean over tokens, float64 [in].
        tokens: Of each batch, the mean over rows at each token, float32 [B L].
    """

    rows: np.ndarray
    columns: np.ndarray | None = None
    tokens: list[mx.array] = field(default_factory=list)

    @property
    def multiplies(self) -> bool:
        """Whether the matrix is multiplied with at all, not only read."""
        return bool(self.rows.any())

    def product(self, number: int, x: mx.array, y: mx.array) -> mx.array:
        """Return the sum of x y^T over the tokens of a batch, each as it counts, float32 [in, in].

        Args:
            number: Of the batch.
            x: [..., in]; of a matrix that is used n times, n times the tokens.
            y: As x.
        """
        left, right = (a.reshape(-1, a.shape[-1]).astype(mx.float32) for a in (x, y))
        tokens = self.tokens[number]
        return (left * mx.tile(tokens, len(left) // len(tokens))[:, None]).T @ right


def squared_gradients(
    model: nn.Module,
    batches: Sequence[mx.array],
    progress: Progress = lambda done, total: None,
) -> dict[str, Gradients]:
    """Return squared gradients at all matrices of a model, by path.

    Args:
        model: int32 [B, L] -> logits [B, L, V].
        batches: Texts, int32 [B, L] each.
        progress: Told how many batches are done, and of how many.
    """
    modules = matrix_paths(model)
    found = {path: _none_yet(module) for path, module in modules.items()}
    tokens = sum(batch.size for batch in batches)
    key = mx.random.key(_SEED)
    for number, batch in enumerate(batches):
        key, own = mx.random.split(key)
        for (path, reads), squares in _squares(model, modules, batch, own).items():
            wide = np.array(squares[batch.size :], np.float64) / tokens
            if not reads:
                found[path].tokens.append(squares[: batch.size])
                found[path].rows += wide
            elif (columns := found[path].columns) is not None:
                columns += wide
        progress(number + 1, len(batches))
    return found


def _none_yet(module: nn.Module) -> Gradients:
    rows, columns = module.weight.shape
    return Gradients(np.zeros(rows), np.zeros(columns) if type(module) is nn.Embedding else None)


@mx.custom_function
def _tap(y: mx.array, squares: mx.array) -> mx.array:
    """Return y; the gradient of `squares` is that of y, squared: means of tokens, sums of rows."""
    del squares
    return y


@_tap.vjp
def _tap_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    y, squares = primals
    square = cotangent.astype(mx.float32).reshape(-1, y.shape[-1]).square()
    tokens = squares.size - y.shape[-1]
    of_tokens = square.mean(1).reshape(-1, tokens).sum(0)  # of a matrix that is used twice: both
    return cotangent, mx.concatenate([of_tokens, square.sum(0)])


def _squares(
    model: nn.Module, modules: Mapping[str, nn.Module], batch: mx.array, key: mx.array
) -> dict[tuple[str, bool], mx.array]:
    """Return tokens' and rows' squared gradients in one array, by path and whether it is read."""
    places: dict[tuple[str, bool], mx.array] = {}
    for path, module in modules.items():
        rows, columns = module.weight.shape
        places[path, False] = mx.zeros(batch.size + rows)
        if type(module) is nn.Embedding:
            places[path, True] = mx.zeros(batch.size + columns)
    paths = {id(module): path for path, module in modules.items()}

    def likelihood(*squares: mx.array) -> mx.array:
        given = dict(zip(places, squares, strict=True))

        def tap(module: nn.Module, x: mx.array, y: mx.array) -> mx.array | None:
            if (path := paths.get(id(module))) is None:
                return None
            reads = not mx.issubdtype(x.dtype, mx.floating)
            tapped: mx.array = _tap(y, given[path, reads])  # type: ignore[assignment]
            return tapped

        with watching([*PLACES, (nn.Embedding, "__call__")], tap):
            logits = model(batch).astype(mx.float32)
        drawn = mx.random.categorical(mx.stop_gradient(logits), key=key)
        taken = mx.take_along_axis(logits, drawn[..., None], -1)[..., 0]
        return (taken - mx.logsumexp(logits, axis=-1)).sum()

    _, found = mx.vjp(likelihood, list(places.values()), [mx.array(1.0)])
    mx.eval(found)
    return dict(zip(places, found, strict=True))
