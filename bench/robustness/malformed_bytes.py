"""Malformed ONNX files whose bytes are damaged."""

from __future__ import annotations

from pathlib import Path
from random import Random

from bench.robustness.malformed_parts import any_model, field, kind, nodes_of, spot, varint


@kind
def _truncated(random: Random, folder: Path) -> None:
    data = any_model(random).SerializeToString()
    (folder / "model.onnx").write_bytes(data[: random.randrange(len(data))])


@kind
def _flipped_bits(random: Random, folder: Path) -> None:
    data = bytearray(any_model(random).SerializeToString())
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        data[spot(random, data)] ^= 1 << random.randrange(8)
    (folder / "model.onnx").write_bytes(data)


@kind
def _bytes_moved(random: Random, folder: Path) -> None:
    data = bytearray(any_model(random).SerializeToString())
    start = spot(random, data)
    piece = data[start : start + random.choice((1, 2, 8, 64))]
    if random.random() < 0.5:
        del data[start : start + len(piece)]
    if random.random() < 0.7:
        place = random.randrange(len(data) or 1)
        data[place:place] = piece
    (folder / "model.onnx").write_bytes(data)


@kind
def _garbage(random: Random, folder: Path) -> None:
    head = random.choice((b"", b"\x08\x0a", b"PK\x03\x04", b"\x7fELF", b"\x80\x04.", b"{}", b"0"))
    body = random.randbytes(random.choice((0, 1, 7, 300, 5000)))
    (folder / "model.onnx").write_bytes(head + body)


@kind
def _oversized_claims(random: Random, folder: Path) -> None:
    """Write a length beyond the end of the data, or millions of empty messages."""
    if random.random() < 0.3:
        count = random.choice((300_000, 1_500_000))
        body = random.choice((b"\x0a\x00", b"\x2a\x00", b"\x12\x00", b"\x62\x00")) * count
        (folder / "model.onnx").write_bytes(b"\x08\x0a" + field(7, body))
        return
    data = bytearray(any_model(random).SerializeToString())
    place = random.randrange(len(data))
    data[place : place + 1] = varint(random.choice((1 << 20, 1 << 31, 1 << 40, (1 << 64) - 1)))
    (folder / "model.onnx").write_bytes(data)


@kind
def _not_utf_8(random: Random, folder: Path) -> None:
    model = any_model(random)
    names = sorted({n for node in nodes_of(model.graph) for n in (*node.input, node.op_type) if n})
    name = random.choice(names).encode()
    bad = random.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x80")).ljust(len(name), b"\xfe")
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data.replace(name, bad[: len(name)]))
