"""Damage a package: bits, lengths, and fields of its program that still parse."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from coremltools.proto import MIL_pb2, Model_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
EDGES = [0, 1, 2, 3, 7, 64, 255, 1 << 16, (1 << 31) - 1, 1 << 40, (1 << 63) - 1]
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randrange(1, 64)) + data[start + 16 :]


def _messages(message: Message) -> list[Message]:
    """Return a message and all below it; maps' values as well."""
    found = [message]
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        entry = field.message_type.GetOptions().map_entry
        if entry and field.message_type.fields_by_name["value"].message_type is None:
            continue
        children = value.values() if entry else value if field.is_repeated else [value]
        for child in children:
            found += _messages(child)
    return found


def _scalar(field: FieldDescriptor, old, names: list[str], rng: random.Random):
    if field.cpp_type in INTEGERS:
        low, high = INTEGERS[field.cpp_type]
        return max(low, min(high, rng.choice([old + 1, old - 1, -old, *EDGES])))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values] + [99])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not old
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice([*names, "", "x", "@model_path/../../../../../etc/passwd"])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice([b"", old[:-1], old + b"\xff", b"\xff" * len(old)])
    return rng.choice([0.0, -1.0, 1e30, float("inf"), float("nan"), -old])


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _change(message: Message, names: list[str], rng: random.Random) -> None:
    """Change one field of a message, or of one below it."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    if _is_map(field):
        _change_map(field, value, rng)
    elif field.is_repeated:
        _change_list(field, value, names, rng)
    elif field.message_type is None:
        setattr(message, field.name, _scalar(field, value, names, rng))
    elif rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        _change(value, names, rng)


def _change_map(field: FieldDescriptor, value, rng: random.Random) -> None:
    key = rng.choice(sorted(value))
    if rng.random() < 0.5:
        del value[key]
    elif field.message_type.fields_by_name["value"].message_type is not None:
        value["x"].CopyFrom(value[key])


def _change_list(field: FieldDescriptor, value, names: list[str], rng: random.Random) -> None:
    index, other = rng.randrange(len(value)), rng.randrange(len(value))
    kind = rng.choice(["delete", "repeat", "swap", "change"])
    if kind == "delete":
        del value[index]
    elif field.message_type is None:
        value[index] = _scalar(field, value[index], names, rng)
    elif kind == "repeat":
        value.add().CopyFrom(value[index])
    elif kind == "swap":
        first, second = type(value[0])(), type(value[0])()
        first.CopyFrom(value[index])
        second.CopyFrom(value[other])
        value[index].CopyFrom(second)
        value[other].CopyFrom(first)
    else:
        _change(value[index], names, rng)


def change_program(data: bytes, rng: random.Random) -> bytes:
    """Change one to three fields of a model that still parses."""
    model = Model_pb2.Model.FromString(data)
    messages = _messages(model)
    operations = [m for m in messages if isinstance(m, MIL_pb2.Operation)]
    names = [o.name for operation in operations for o in operation.outputs]
    names += [operation.type for operation in operations]
    for _ in range(rng.choice([1, 1, 2, 3])):
        # Operations are where most can go wrong.
        pool = operations if rng.random() < 0.5 else messages
        _change(rng.choice(pool), names, rng)
    return model.SerializeToString()


Mutation = tuple[str, Callable[[bytes, random.Random], bytes]]
MUTATIONS: list[Mutation] = [
    (MODEL, flip_bits),
    (MODEL, truncate),
    (MODEL, overwrite),
    (WEIGHTS, flip_bits),
    (WEIGHTS, truncate),
    (WEIGHTS, overwrite),
    ("Manifest.json", flip_bits),
    ("Manifest.json", truncate),
    *[(MODEL, change_program)] * 12,
]


def damage(source: Path, target: Path, seed: int) -> str:
    """Copy a package with one of its files changed; return what was done."""
    rng = random.Random(seed)
    name, mutation = rng.choice([m for m in MUTATIONS if (source / m[0]).exists()])
    shutil.copytree(source, target)
    data = (source / name).read_bytes()
    (target / name).write_bytes(mutation(data, rng))
    return f"{mutation.__name__} of {name}, seed {seed}"
