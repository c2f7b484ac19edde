"""For every rule of the lint what triggers it, and what nearly does.

Long because it is a table: two entries or more a rule.
"""

import json
import os

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from tests.mil.lint_build import (
    WEIGHTS,
    blocks,
    built,
    clean,
    codes,
    copied,
    edited,
    half,
    in_json,
    of_copy,
    of_json,
    of_package,
    operation,
    palette,
    sdpa,
    set_enumerated,
    set_range,
    stateful,
    swift,
    weight,
    without,
)
from tests.mil.packages import tensor

H = np.float16


def _update(x, s):
    return mb.coreml_update_state(state=s, value=mb.add(x=mb.read_state(input=s), y=x))


def _kept(x, s):
    return mb.mul(x=_update(x, s), y=H(2))


KEPT = stateful(_kept)


def _stale(x, s):
    old = mb.read_state(input=s)
    mb.coreml_update_state(state=s, value=mb.add(x=old, y=x))
    return mb.mul(x=old, y=H(2))


def _unread(x, s):
    mb.coreml_update_state(state=s, value=x)
    return mb.mul(x=x, y=H(2))


def _reshaped(x, s):
    flat = mb.reshape(x=mb.read_state(input=s), shape=[32, 4])
    mb.coreml_update_state(state=s, value=x)
    return flat


def _float_state(spec):
    wrapped = spec.mlProgram.functions["main"].inputs[1].type.stateType.wrappedType
    wrapped.tensorType.dataType = 11
    spec.description.state[0].type.stateType.arrayType.dataType = 65568


def _flexible_state(spec):
    spec.description.state[0].type.stateType.arrayType.enumeratedShapes.shapes.add(shape=[4, 32])


def _second_state(spec):
    inputs = spec.mlProgram.functions["main"].inputs
    inputs.add().CopyFrom(inputs[1])
    inputs[2].name = "other"
    spec.description.state.add().CopyFrom(spec.description.state[0])
    spec.description.state[1].name = "other"


def _other_context(spec):
    described = next(f for f in spec.description.functions if f.name == "decode").state[0]
    described.type.stateType.arrayType.shape[3] = 96
    for value in spec.mlProgram.functions["decode"].inputs:
        if value.name == described.name:
            tensor_type = value.type.stateType.wrappedType.tensorType
            tensor_type.dimensions[3].constant.size = 96


STATES = {
    "state-not-fp16": (edited(KEPT, _float_state), KEPT),
    "flexible-state": (edited(KEPT, _flexible_state), KEPT),
    "unused-state": (edited(KEPT, _second_state), KEPT),
    "state-never-read": (stateful(_unread), KEPT),
    "stale-state": (stateful(_stale), KEPT),
    "states-differ": (of_package(_other_context), clean),
    "state-reshaped": (stateful(_reshaped), KEPT),
    "state-width": (
        stateful(lambda x, s: mb.mul(x=mb.read_state(input=s), y=H(2)), (32, 30)),
        stateful(lambda x, s: mb.mul(x=mb.read_state(input=s), y=H(2)), (3, 32, 64)),
    ),
    "many-states": (
        stateful(lambda x, s, t: mb.add(x=_update(x, s), y=_update(x, t)), (4, 32), (4, 32)),
        KEPT,
    ),
}


def _norm(x, *, scaled=False, dtype=None):
    given = x
    if scaled:
        largest = mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True)
        x = mb.real_div(x=x, y=largest)
    if dtype:
        x = mb.cast(x=x, dtype=dtype)
    mean = mb.reduce_mean(x=mb.square(x=x), axes=[-1], keep_dims=True)
    root = mb.rsqrt(x=mb.add(x=mean, y=(np.float32 if dtype else H)(1e-3)))
    return mb.mul(x=given, y=mb.cast(x=root, dtype="fp16") if dtype else root)


def _island(x, dtype="fp32"):
    square = mb.square(x=mb.cast(x=x, dtype=dtype))
    x = mb.mul(x=mb.cast(x=square, dtype="fp16"), y=H(2))
    return mb.mul(x=mb.add(x=x, y=H(1)), y=H(3))


def _stable_softplus(x):
    tail = mb.exp(x=mb.mul(x=mb.abs(x=x), y=H(-1)))
    return mb.add(x=mb.maximum(x=x, y=H(0)), y=mb.log(x=mb.add(x=tail, y=H(1))))


def _stable_logsumexp(x):
    largest = mb.reduce_max(x=x, axes=[-1], keep_dims=True)
    total = mb.reduce_sum(x=mb.exp(x=mb.sub(x=x, y=largest)), axes=[-1], keep_dims=True)
    return mb.add(x=largest, y=mb.log(x=total))


PRECISION = {
    "fp32-operations": (built(_island, half(4)), built(lambda x: _island(x, "fp16"), half(4))),
    "fp32-program": (
        built(lambda x: mb.mul(x=x, y=np.float32(2)), tensor(4)),
        built(lambda x: mb.mul(x=x, y=H(2)), half(4)),
    ),
    "norm-in-fp16": (built(_norm, half(2, 8)), built(lambda x: _norm(x, scaled=True), half(2, 8))),
    "angle-in-fp16": (
        built(lambda x: mb.sin(x=x), half(4)),
        built(lambda x: mb.sin(x=x), tensor(4)),
    ),
    "softplus-overflow": (
        built(lambda x: mb.softplus(x=x), half(4)),
        built(_stable_softplus, half(4)),
    ),
    "logsumexp-overflow": (
        built(lambda x: mb.reduce_log_sum_exp(x=x, axes=[-1]), half(2, 8)),
        built(_stable_logsumexp, half(2, 8)),
    ),
    "log-softmax-underflow": (
        built(lambda x: mb.log(x=mb.softmax(x=x)), half(2, 8)),
        built(lambda x: mb.log(x=mb.softmax(x=x)), tensor(2, 8)),
    ),
}


def _masked(value, dtype=H):
    mask = np.zeros((4, 4), dtype)
    mask[0, 3] = value
    return built(lambda x: mb.add(x=x, y=mask), half(4, 4) if dtype == H else tensor(4, 4))


def _beyond(value):
    def body(x):
        mask = np.full((4, 4), value, np.float32)
        y = mb.cast(x=mb.add(x=mb.cast(x=x, dtype="fp32"), y=mask), dtype="fp16")
        return mb.mul(x=mb.add(x=y, y=H(1)), y=H(2))

    return built(body, half(4, 4))


CONSTANTS = {
    "nan-constant": (_masked(np.nan), _masked(-1e4)),
    "infinite-constant": (
        _masked(-np.inf),
        built(lambda x: mb.clip(x=x, alpha=H(0), beta=H(np.inf)), half(4)),
    ),
    "constant-beyond-fp16": (_beyond(-3.4e38), _beyond(-1e4)),
}


def _old(spec):
    spec.specificationVersion = 8


def _gathered(dtype):
    def body(x):
        return mb.gather(x=weight(40000, 2), indices=mb.cast(x=x, dtype=dtype), axis=0)

    return built(body, tensor(3, dtype="int32"))


def _attention(x, **more):
    scores = mb.softmax(x=mb.matmul(x=x, y=x, transpose_y=True))
    return mb.matmul(x=scores, y=x)


def _tiled(x):
    key = mb.reshape(x=mb.tile(x=x, reps=[1, 2, 1, 1]), shape=[1, 2, 4, 8])
    return mb.scaled_dot_product_attention(query=weight(1, 2, 4, 8), key=key, value=key)


OPERATIONS = {
    "specification-too-old": (edited(KEPT, _old), KEPT),
    "pow-of-two": (
        built(lambda x: mb.pow(x=H(2), y=x), half(4)),
        built(lambda x: mb.pow(x=x, y=H(2)), half(4)),
    ),
    "floor-div-by-one": (
        built(lambda x: mb.floor_div(x=x, y=H(1)), half(4)),
        built(lambda x: mb.floor_div(x=x, y=H(3)), half(4)),
    ),
    "index-too-narrow": (_gathered("int16"), _gathered("uint16")),
    "choice-in-fp16": (
        built(lambda x: mb.reduce_argmax(x=x, axis=-1), half(1, 40000)),
        built(lambda x: mb.reduce_argmax(x=x, axis=-1), half(1, 400)),
    ),
    "attention-batch": (sdpa(10, 1, 4, 8), sdpa(2, 10, 4, 8)),
    "attention-on-neural-engine": (sdpa(1, 1, 4, 8), built(_attention, half(1, 4, 8))),
    "masked-row": (
        sdpa(1, 1, 2, 8, attn_mask=np.array([[1] * 8, [0] * 8], bool)),
        sdpa(1, 1, 2, 8, attn_mask=np.array([[1] * 8, [0] * 7 + [1]], bool)),
    ),
    "repeated-keys": (built(_tiled, half(1, 1, 4, 8)), sdpa(1, 2, 4, 8)),
}


def _rank_6(spec):
    type_ = operation(spec, "mul").outputs[0].type.tensorType
    spec.description.output[0].type.multiArrayType.ClearField("shape")
    while len(type_.dimensions) < 6:
        type_.dimensions.add().constant.size = 1
    type_.rank = 6


def _rank_0(spec):
    type_ = spec.mlProgram.functions["main"].inputs[0].type.tensorType
    del type_.dimensions[:]
    type_.rank = 0
    spec.description.input[0].type.multiArrayType.ClearField("shape")


def _ranged_function(spec):
    feature = next(f for f in spec.description.functions[0].input if f.name == "inputIds")
    set_range(feature, (1, 1), (1, 64))


def _range(upper):
    return lambda spec: set_range(spec.description.input[0], (1, upper))


def _mixed(spec):
    set_range(spec.description.input[0], (1, 8))
    set_enumerated(spec, 1, [4], [8])


def _shapes(count):
    return lambda spec: set_enumerated(spec, 0, *[[n] for n in range(1, count + 1)])


PLAIN = built(lambda x: mb.mul(x=x, y=H(2)), half(4))
PAIR = built(lambda x, y: mb.add(x=x, y=y), half(4), half(4))


def _both_ranges(spec):
    for feature in spec.description.input:
        set_range(feature, (1, 8))


def _linear(rows):
    return built(lambda x: mb.linear(x=x, weight=weight(rows, 2), bias=weight(rows)), half(1, 2))


SHAPES = {
    "rank-over-5": (edited(PLAIN, _rank_6), PLAIN),
    "rank-0-input": (edited(PLAIN, _rank_0), PLAIN),
    "range-and-functions": (of_package(_ranged_function), edited(PLAIN, _range(8))),
    "mixed-flexibility": (edited(PAIR, _mixed), edited(PAIR, _both_ranges)),
    "flexible-input": (edited(PLAIN, _range(8)), PLAIN),
    "unbounded-input": (edited(PLAIN, _range(-1)), edited(PLAIN, _range(8))),
    "too-many-shapes": (edited(PLAIN, _shapes(129)), edited(PLAIN, _shapes(128))),
    "wide-layer": (_linear(16400), _linear(160)),
}


def _sparse(size):
    """Make a package whose weight file is as long as that, and takes no room."""

    def make(folder, bundle):
        package = copied(folder, bundle) / "Tiny.mlpackage"
        os.truncate(package / WEIGHTS, size)
        return package

    return make


def _padded(size):
    def change(copy):
        with (copy / "Tiny.mlpackage" / WEIGHTS).open("ab") as f:
            f.write(bytes(size))

    return of_copy(change)


def _two_layers(second):
    def body(x):
        x = mb.linear(x=x, weight=weight(128, 128))
        return mb.linear(x=x, weight=weight(128, 128, seed=second))

    return built(body, half(1, 128))


def _table(dtype):
    def body(x):
        rows = mb.gather(x=weight(1024, 256, dtype=dtype), indices=x, axis=0)
        y = mb.cast(x=rows, dtype="fp16")
        return mb.mul(x=mb.add(x=y, y=H(1)), y=H(2))

    return built(body, tensor(3, dtype="int32"))


def _int8(rows, columns):
    return blocks(codes(rows, columns), weight(rows, 1))


def _half_compressed(second):
    def body(x):
        return mb.linear(x=mb.linear(x=x, weight=_int8(64, 64)), weight=second())

    return built(body, half(1, 64))


def _compressed_table(table):
    def body(x):
        rows = mb.gather(x=table(), indices=x, axis=0)
        return mb.linear(x=rows, weight=_int8(64, 64))

    return built(body, tensor(3, dtype="int32"))


def _one_linear(make_weight):
    return built(lambda x: mb.linear(x=x, weight=make_weight()), half(1, 64))


WEIGHT_CASES = {
    "weights-over-2gb": (_sparse(2**31), clean),
    "weights-over-1gb": (_sparse(1_000_100_000), clean),
    "duplicate-weights": (_two_layers(0), _two_layers(1)),
    "unused-weight-bytes": (_padded(100_000), clean),
    "large-fp32-weight": (_table(np.float32), _table(np.float16)),
    "weight-left-uncompressed": (
        _half_compressed(lambda: weight(64, 64)),
        _half_compressed(lambda: _int8(64, 64)),
    ),
    "embedding-left-uncompressed": (
        _compressed_table(lambda: weight(256, 64)),
        _compressed_table(lambda: _int8(256, 64)),
    ),
    "per-block-integers": (
        _one_linear(lambda: blocks(codes(64, 64), weight(64, 2))),
        _one_linear(lambda: _int8(64, 64)),
    ),
    "palette-then-scale": (
        _one_linear(lambda: blocks(palette(64, 64), weight(64, 1))),
        _one_linear(lambda: palette(64, 64)),
    ),
    "four-bit-palette": (
        _one_linear(lambda: palette(64, 64)),
        _one_linear(lambda: palette(64, 64, bits=6)),
    ),
    "float-offset": (
        _one_linear(
            lambda: blocks(codes(64, 64, dtype="uint8"), weight(64, 1), offset=weight(64, 1))
        ),
        _one_linear(
            lambda: blocks(
                codes(64, 64, dtype="uint8"), weight(64, 1), offset=codes(64, 1, dtype="uint8")
            )
        ),
    ),
}


def _lost_item(manifest):
    for entry in manifest["itemInfoEntries"].values():
        if entry["name"] == "weights":
            entry["path"] = "com.apple.CoreML/lost"


def _described(spec):
    metadata = spec.description.metadata
    metadata.author, metadata.license = "me", "MIT"
    metadata.shortDescription, metadata.versionString = "a model", "1"


def _dated(spec):
    key = "com.github.apple.coremltools.conversion_date"
    spec.description.metadata.userDefined[key] = "2026-01-01"


FILES = {
    "manifest-item": (in_json("Tiny.mlpackage/Manifest.json", _lost_item), clean),
    "manifest-format": (of_json("Tiny.mlpackage/Manifest.json", fileFormatVersion="2.0.0"), clean),
    "unlisted-file": (
        of_copy(lambda copy: (copy / "Tiny.mlpackage/notes.txt").write_text("hello")),
        clean,
    ),
    "link-in-package": (
        of_copy(lambda copy: (copy / "link").symlink_to(copy / "config.json")),
        clean,
    ),
    "unreadable-file": (
        of_copy(lambda copy: (copy / "tokenizer.json").chmod(0o600)),
        clean,
    ),
    "missing-metadata": (PLAIN, edited(PLAIN, _described)),
    "conversion-date": (of_package(_dated), clean),
}

SWIFT = swift()

CONTRACTS = {
    "swift-transformers-inputs": (swift(ids="input_ids"), SWIFT),
    "swift-transformers-states": (swift(values="vCache"), SWIFT),
    "swift-transformers-cache-io": (swift(logits="presentKeys"), SWIFT),
    "swift-transformers-range": (swift(ranged=False), SWIFT),
    "swift-transformers-logits": (swift(rank=2), SWIFT),
    "swift-transformers-name": (swift(name=""), SWIFT),
    "swift-transformers-mask": (SWIFT, clean),
    "known-contract": (SWIFT, PLAIN),
}


def _deeper(manifest):
    manifest["functions"]["decode"]["inputs"]["inputIds"]["shape"] = [1, 2]


def _wider(manifest):
    manifest["states"]["keyCache"]["shape"][3] = 128


def _flipped(copy):
    file = copy / "Tiny.mlpackage" / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _failed(copy):
    reports = {"model": {"passed": True}, "b": {"passed": False}}
    (copy / "verify.json").write_text(json.dumps(reports))


def _slot(**places):
    """A slot of two layers, 4 wide and of rank 2, in a state of 32; with other places."""
    own = {"inputs": 4, "outputs": 4}
    layers = {"x": own | {"a": 0, "b": 8}, "y": own | {"a": 16, "b": 24} | places}
    slot = {"rank": 2, "state": "adapter", "shape": [4, 8], "base": {}, "layers": layers}
    return of_json("macai.json", slot=slot)


BUNDLES = {
    "bundle-slot": (_slot(a=15), _slot()),
    "bundle-manifest": (of_json("macai.json", contract=2), clean),
    "bundle-systems": (of_json("macai.json", minimum_os={"iOS": "17.4", "macOS": "15.0"}), clean),
    "bundle-hash": (of_copy(_flipped), clean),
    "bundle-functions": (in_json("macai.json", _deeper), clean),
    "bundle-states": (in_json("macai.json", _wider), clean),
    "bundle-context": (of_json("macai.json", context=128), clean),
    "context-beyond-model": (of_json("config.json", max_position_embeddings=32), clean),
    "bundle-vocabulary": (of_json("macai.json", vocab_size=300), clean),
    "bundle-verification": (of_copy(_failed), clean),
    "tokenizer-missing": (without("tokenizer.json"), clean),
    "tokenizer-class": (of_json("tokenizer_config.json", tokenizer_class="NewTokenizer"), clean),
    "chat-template-missing": (of_json("tokenizer_config.json", chat_template=None), clean),
    "eos-missing": (of_json("macai.json", eos_token_ids=[1]), clean),
    "license-missing": (without("LICENSE"), clean),
}

CASES = {
    **STATES,
    **PRECISION,
    **CONSTANTS,
    **OPERATIONS,
    **SHAPES,
    **WEIGHT_CASES,
    **FILES,
    **CONTRACTS,
    **BUNDLES,
}
"""(what triggers it, what does not) by rule."""
