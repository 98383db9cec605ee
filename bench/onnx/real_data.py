"""Inputs for real ONNX files: rendered text, synthesized speech, and texts.

The files' own programs prepare images and sound in the same way (scale, mean, layout). Each
function returns three batches with other contents from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]
Batch = dict[str, Array]

_LINES = (
    "Mixed precision training, 1710.03740",
    "The invoice 2024-118 is due on 3 May.",
    "Total: 1,284.50 EUR (VAT 19 %)",
)
_KHMER = "ខ្ញុំចង់រៀនភាសាខ្មែរ"
_RATE = 16_000


def known() -> tuple[str, ...]:
    """Return the files that there are inputs for, as ``package/file``."""
    return tuple(_MAKERS)


def batches(name: str, file: Path) -> list[Batch]:
    """Return three batches for a known file.

    Args:
        name: one of `known`.
        file: the model; models of the same package that make its inputs are beside it.
    """
    return _MAKERS[name](file)


def text_image(line: str, height: int, width: int, lines: int = 1) -> Array:
    """Return dark text on a light and noisy page: ``[height, width, 3]``, 0 to 255."""
    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    image = Image.new("RGB", (width, height), (238, 234, 226))
    draw = ImageDraw.Draw(image)
    each = height // lines
    for k in range(lines):
        font = ImageFont.truetype(str(font_file), max(int(each * 0.55), 8))
        draw.text((width // 40, k * each + each // 6), line, fill=(30, 32, 60), font=font)
    noise = np.random.default_rng(len(line)).normal(0, 4, (height, width, 3))
    page: Array = np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.float32)
    return page


def speech(seconds: float, seed: int) -> Array:
    """Return vowels with a moving pitch, pauses and noise, -1 to 1, 16,000 samples a second."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * _RATE)) / _RATE
    pitch = 110 + 25 * seed + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / _RATE
    vowels = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410))
    sound = np.zeros_like(time)
    for k in range(1, 40):
        for index, formants in enumerate(vowels):
            near = sum(np.exp(-(((k * 120 - f) / 150) ** 2)) for f in formants)
            turn = np.clip(np.sin(2 * np.pi * (1.3 * time + index / 3)), 0, 1)
            sound += (near + 0.02) / k**0.5 * turn * np.sin(k * phase)
    sound *= np.clip(np.sin(2 * np.pi * 2.1 * time) + 0.6, 0, 1)
    sound = 0.4 * sound / np.abs(sound).max() + random.normal(0, 0.003, len(time))
    samples: Array = sound.astype(np.float32)
    return samples


def _recognition(_: Path) -> list[Batch]:
    return [{"x": _planes(text_image(line, 48, 320)) / 127.5 - 1} for line in _LINES]


def _direction(_: Path) -> list[Batch]:
    flips = (slice(None), slice(None, None, -1), slice(None))
    images = [text_image(line, 48, 192) for line in _LINES]
    turned = [image[flip, flip] for image, flip in zip(images, flips, strict=True)]
    return [{"x": _planes(image) / 127.5 - 1} for image in turned]


def _detection(_: Path) -> list[Batch]:
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pages = [text_image(line, 320, 480, lines=5 + k) for k, line in enumerate(_LINES)]
    return [{"x": _planes((page / 255 - mean) / spread)} for page in pages]


def _grey_line(_: Path) -> list[Batch]:
    images = [text_image(line[:12], 64, 160 + 32 * k) for k, line in enumerate(_LINES)]
    return [{"input1": image.mean(2)[None, None].astype(np.float32) / 255} for image in images]


def _page(name: str, size: int, scale: float) -> Callable[[Path], list[Batch]]:
    def make(_: Path) -> list[Batch]:
        pages = [text_image(line, size, size, lines=4 + k) for k, line in enumerate(_LINES)]
        return [{name: _planes(page) / np.float32(scale)} for page in pages]

    return make


def _bytes(_: Path) -> list[Batch]:
    texts = (Path(__file__).read_text(), "\n".join(_LINES * 30), "<html><body><p>" * 200)
    rows = [np.frombuffer(text.encode()[:2048].ljust(2048), np.uint8) for text in texts]
    return [{"bytes": row.astype(np.int32)[None]} for row in rows]


def _khmer(_: Path) -> list[Batch]:
    ids = np.array([2 + (ord(sign) - 0x1780) % 60 for sign in _KHMER * 3], np.int64)
    texts = [np.roll(ids, k)[None, : 20 + 15 * k] for k in range(3)]
    return [{"x": text, "mask": np.ones(text.shape, bool)} for text in texts]


def _sound(_: Path) -> list[Batch]:
    """The mel front end takes samples of 16-bit integers as floating-point numbers."""
    return [
        {"input": (speech(1.3, k) * 32767).astype(np.int16).astype(np.float32)[None]}
        for k in range(3)
    ]


def _mel(file: Path) -> list[Batch]:
    mels = _run(file.with_name("melspectrogram.onnx"), _sound(file))
    rows = [np.asarray(mel).reshape(-1, 32) / 10 + 2 for mel in mels]
    return [{"input_1": row[None, :76, :, None].astype(np.float32)} for row in rows]


def _wake_word(name: str, frames: int) -> Callable[[Path], list[Batch]]:
    def make(file: Path) -> list[Batch]:
        front, middle = (file.with_name(f"{n}.onnx") for n in ("melspectrogram", "embedding_model"))
        made = []
        for k in range(3):
            sound = (speech(4.2, k) * 32767).astype(np.float32)[None]
            [mel] = _run(front, [{"input": sound}])
            rows = np.asarray(mel).reshape(-1, 32) / 10 + 2
            windows = np.stack([rows[8 * t : 8 * t + 76] for t in range(frames)])[..., None]
            [found] = _run(middle, [{"input_1": windows.astype(np.float32)}])
            made.append({name: np.asarray(found).reshape(1, frames, 96)})
        return made

    return make


def _voice(
    samples: int, state: Mapping[str, tuple[int, ...]], rows: int = 1, rate: bool = True
) -> Callable[[Path], list[Batch]]:
    """A window of speech, and the state that the model itself makes of the windows before it."""

    def make(file: Path) -> list[Batch]:
        session, made = _session(file), []
        for seed in range(3):
            sound = speech(5 * samples * rows / _RATE, seed).reshape(5, rows, samples)
            held: Batch = {name: np.zeros(shape, np.float32) for name, shape in state.items()}
            batch: Batch = {}
            for window in sound:
                if batch:
                    held = dict(zip(state, session.run(None, batch)[1:], strict=True))
                batch = {"input": window} | held
                batch |= {"sr": np.array(_RATE, np.int64)} if rate else {}
            made.append(batch)
        return made

    return make


def _planes(image: Array) -> Array:
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32))


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run(file: Path, given: list[Batch]) -> list[Array]:
    """Return the first output for each batch."""
    session = _session(file)
    return [session.run(None, batch)[0] for batch in given]


_NEW = {"state": (2, 1, 128)}
_MAKERS: dict[str, Callable[[Path], list[Batch]]] = {
    "silero-vad/silero_vad.onnx": _voice(576, _NEW),
    "silero-vad/silero_vad_16k_op15.onnx": _voice(576, _NEW),
    "silero-vad/silero_vad_16k_sequence.onnx": _voice(
        576, {"h": (1, 1, 128), "c": (1, 1, 128)}, rows=20, rate=False
    ),
    "silero-vad/silero_vad_half.onnx": _voice(576, _NEW, rate=False),
    "silero-vad/silero_vad_op18_ifless.onnx": _voice(576, _NEW),
    "silero-vad/silero_vad_openvino_16k.onnx": _voice(576, _NEW, rate=False),
    "openwakeword/silero_vad.onnx": _voice(480, {"h": (2, 1, 64), "c": (2, 1, 64)}),
    "openwakeword/melspectrogram.onnx": _sound,
    "openwakeword/embedding_model.onnx": _mel,
    "openwakeword/alexa_v0.1.onnx": _wake_word("onnx::Flatten_0", 16),
    "openwakeword/hey_jarvis_v0.1.onnx": _wake_word("x.1", 16),
    "openwakeword/hey_marvin_v0.1.onnx": _wake_word("onnx::Flatten_0", 16),
    "openwakeword/hey_mycroft_v0.1.onnx": _wake_word("input_1", 16),
    "openwakeword/timer_v0.1.onnx": _wake_word("onnx::Flatten_0", 34),
    "openwakeword/weather_v0.1.onnx": _wake_word("onnx::Flatten_0", 22),
    "rapidocr-onnxruntime/ch_PP-OCRv4_det_infer.onnx": _detection,
    "rapidocr-onnxruntime/ch_PP-OCRv4_rec_infer.onnx": _recognition,
    "rapidocr-onnxruntime/ch_ppocr_mobile_v2.0_cls_infer.onnx": _direction,
    "ddddocr/common.onnx": _grey_line,
    "ddddocr/common_det.onnx": _page("images", 416, 1.0),
    "ddddocr/common_old.onnx": _grey_line,
    "magika/model.onnx": _bytes,
    "nudenet/320n.onnx": _page("images", 320, 255.0),
    "khmersm/model.onnx": _khmer,
}
