"""A package that Hugging Face's swift-transformers loads: one function of flexible shapes.

    main: inputIds int32 [1, T], causalMask float16 [1, 1, R, E] -> logits [1, T, V]

Tokens are written into keyCache and valueCache, as llm.py has them, from place E - T on. Of the
mask only its width E is read: the model is causal by itself.

There are two callers (swift-transformers 1.3.3). Examples/Mistral7B/generate.py gives a mask of
E = n for n tokens in all. LanguageModelWithStatefulKVCache gives E = n + 1, and zeros, also for a
whole prompt: its first token is at place 1. Both are right here: while the state's first place has
zeros, as Core ML makes a state, it is not attended to, and positions count from the next.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.coreml.api import ExportFunction
from macai.coreml.calls import MaskCalls
from macai.coreml.counted import counted_by_keys
from macai.coreml.flexible import Size
from macai.coreml.llm import KeysAndValues, LayerCache, Store, cache_shape, check_lengths
from macai.coreml.lower import Compress, Settings
from macai.coreml.profiles.profile import Profile

_FUNCTION = "main"

_USAGE = """\
In an app, with [swift-transformers](https://github.com/huggingface/swift-transformers) 1.3.3:

    import Generation
    import Models
    import Tokenizers

    let tokenizer = try await AutoTokenizer.from(modelFolder: folder)
    let model = try LanguageModel.loadCompiled(url: compiled, tokenizer: tokenizer)
    await model.resetState()
    let prompt = try tokenizer.applyChatTemplate(messages: [["role": "user", "content": "Hello"]])
    var config = GenerationConfig(maxNewTokens: 128)
    config.maxLength = prompt.count + 128
    config.eosTokenId = tokenizer.eosTokenId
    let tokens = try await model.generate(config: config, tokens: prompt)
    print(tokenizer.decode(tokens: Array(tokens.dropFirst(prompt.count))))

`folder` is where the tokenizer's files are, `compiled` the package as Xcode compiles it for an app,
or `MLModel.compileModel(at:)` does. A prompt and its reply have {room} tokens at most, beyond which
the prediction fails: keep `maxLength` below. It ends a reply at one token id; those that end this
model's are above.

## What the function does

`{default}` takes any number of tokens, writes their keys and values into the states, and returns
the logits of all of them: a prompt of 1,000 tokens has 1,000 rows. It is causal by itself: of
`causalMask` only the width is read, which says where the tokens are. A mask as wide as there are
tokens in all is right, and so is one that is wider by 1, which is what swift-transformers gives.
"""


class _LayerCache(LayerCache):
    """A layer's cache, of which the first places may be empty."""

    def __init__(
        self, store: Store, layer: int, place: mx.array, context: int, empty: mx.array
    ) -> None:
        super().__init__(store, layer, place, context)
        self.offset, self._empty = place - empty, empty

    def make_mask(
        self, rows: int, *, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        mask = super().make_mask(rows, window_size=window_size)
        return mask & (mx.arange(mask.shape[1])[None] >= self._empty)


def swift_transformers_functions(
    model: nn.Module,
    chunks: Sequence[range] = (),
    *,
    context: int,
    prefill: Sequence[int] = (),
    precision: str = "fp16",
    adapter: str = "",
    compress: Compress | None = None,
) -> dict[str, ExportFunction]:
    """Return the one function of a language model's package: see llm.llm_functions."""
    check_lengths(context, prefill)
    shape, kept = cache_shape(model), KeysAndValues()
    dtype = mx.float16 if precision == "fp16" else mx.float32

    def run(ids: mx.array, mask: mx.array, keys: mx.array, values: mx.array) -> Any:
        place = mx.array([mask.shape[3] - ids.shape[1]], dtype=mx.int32)
        unwritten = mx.logical_not(mx.any(keys[0, 0, :, 0]))
        empty = mx.minimum(place, unwritten.astype(mx.int32))
        store = kept.store(shape, place, (keys, values))
        caches = [_LayerCache(store, n, place, context, empty) for n in range(shape.layers)]
        with counted_by_keys(place - empty, context=context, rows=ids.shape[1]):
            return model(ids, cache=caches), *store.arrays

    tokens, rows, width = (Size(name=name, most=context) for name in ("tokens", "rows", "width"))
    function = ExportFunction(
        fn=run,
        inputs={
            "inputIds": mx.zeros((1, 1), mx.int32),
            "causalMask": mx.zeros((1, 1, 1, 1), dtype),
        },
        outputs=("logits",),
        flexible={"inputIds": {1: tokens}, "causalMask": {2: rows, 3: width}},
        states=kept.states(shape, context, dtype),
        weights=model,
        settings=Settings(precision=precision, positions=context, compress=compress),
    )
    return {_FUNCTION: function}


SWIFT_TRANSFORMERS = Profile(
    name="swift-transformers",
    compute_units="cpuAndGPU",
    functions=swift_transformers_functions,
    default=_FUNCTION,
    calls=MaskCalls(_FUNCTION),
    inputs={
        "inputIds": "Token ids",
        "causalMask": "As wide as all tokens so far, or wider by 1; its values are not read",
    },
    repository_key="co.huggingface.exporters.name",
    usage=_USAGE,
    unverified=(
        "that Core ML loads and runs it, on any compute unit: no device was at hand",
        "that swift-transformers gets replies of it: its source was read (1.3.3), not run",
        "how fast it is, and how much memory a long prompt takes",
    ),
)
