"""Pages as a reader sees them: the text of a PDF with its places, pages as pictures; and hostile text."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifiers.report_shape import REPORT

HOSTILE = '</td></table><script>alert(1)</script><img src=x onerror=y>&lt;&#60; "\' data-f="x">'
Picture = NDArray[np.uint8]
_SCALE = 1.5
# Lighter than any ink of ours.
_PAPER = 250


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its text, the boxes of its signs (left, bottom, right, top in points), its picture."""

    width: float
    height: float
    text: str
    boxes: tuple[tuple[float, float, float, float], ...]
    picture: Picture

    def part(self, left: float, top: float, right: float, bottom: float) -> Picture:
        """Return a part of the picture, in parts of the page from its top left."""
        high, wide = self.picture.shape[:2]
        return self.picture[int(top * high) : int(bottom * high), int(left * wide) : int(right * wide)]

    def outside(self, margin: float) -> list[tuple[float, float, float, float]]:
        """Return the boxes that are not within the page less a margin."""
        return [
            box
            for box in self.boxes
            if box[0] < margin
            or box[1] < margin
            or box[2] > self.width - margin
            or box[3] > self.height - margin
        ]


def read_pages(pdf: bytes) -> list[Page]:
    """Return the pages of a PDF."""
    import pypdfium2 as pdfium

    document = pdfium.PdfDocument(pdf)
    pages = []
    for page in document:
        signs = page.get_textpage()
        text = signs.get_text_range()
        boxes = tuple(
            signs.get_charbox(at)
            for at in range(signs.count_chars())
            if not signs.get_text_range(at, 1).isspace()
        )
        # Blue comes first there.
        picture = page.render(scale=_SCALE).to_numpy()[..., 2::-1].copy()
        width, height = page.get_size()
        pages.append(Page(width, height, " ".join(text.split()), boxes, picture))
        signs.close()
        page.close()
    document.close()
    return pages


def ink(picture: Picture) -> float:
    """Return the part of a picture that is not paper."""
    return float((picture.min(axis=2) < _PAPER).mean())


def colours(picture: Picture) -> int:
    """Return how many clearly different colours a picture has."""
    return len(np.unique((picture // 48).reshape(-1, 3), axis=0))


def read_png(path: Path) -> Picture:
    """Return the picture in a PNG file of 8 bits a sample, as browsers write them."""
    content = path.read_bytes()
    at, packed, header = 8, b"", b""
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        at += length + 12
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    samples = {2: 3, 6: 4}[colour]
    assert depth == 8
    raw = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * samples)
    rows = np.zeros((height + 1, width + 1, samples), np.int32)
    for row in range(height):
        line = raw[row, 1:].reshape(width, samples).astype(np.int32)
        rows[row + 1, 1:] = _unfiltered(int(raw[row, 0]), line, rows[row])
    return rows[1:, 1:, :3].astype(np.uint8)


def _unfiltered(kind: int, line: NDArray[np.int32], above: NDArray[np.int32]) -> NDArray[np.int32]:
    """Undo a PNG filter (RFC 2083 §6); ``above`` has a zero before its first sample."""
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, axis=0) % 256
    if kind == 2:
        return (line + above[1:]) % 256
    left = np.zeros(line.shape[1], np.int32)
    done = np.empty_like(line)
    for at, one in enumerate(line):
        up, corner = above[at + 1], above[at]
        if kind == 3:
            guess = (left + up) // 2
        else:
            base = left + up - corner
            near = np.stack([abs(base - left), abs(base - up), abs(base - corner)]).argmin(axis=0)
            guess = np.choose(near, [left, up, corner])
        left = done[at] = (one + guess) % 256
    return done


def set_texts(value: Any, shape: Mapping[str, Any], text: str) -> None:
    """Set every field that may hold any text to ``text``, in place."""
    for name, (suffix, kind) in shape.items():
        if name not in value:
            # What only the series and the log know.
            continue
        inner = value[name]
        if inner is None:
            if kind in ("text", "name"):
                value[name] = text
        elif isinstance(kind, dict):
            for one in inner if suffix == "[]" else [inner]:
                set_texts(one, kind, text)
        elif kind in ("text", "name"):
            value[name] = [text for _ in inner] if suffix == "[]" else text


def hostile_draft(predicate: dict[str, Any], text: str = HOSTILE) -> None:
    """Set the texts of a draft, and leave what must not be one: reasons of what passed."""
    drafted = {name: shape for name, shape in REPORT.items() if name in predicate}
    kept = predicate["identity"]
    for name, (suffix, kind) in drafted.items():
        if name not in ("identity", "result", "trend") and isinstance(kind, dict):
            for one in predicate[name] if suffix == "[]" else [predicate[name]]:
                if one is not None:
                    set_texts(one, {key: part for key, part in kind.items() if key in one}, text)
    predicate["identity"] = kept
    predicate["result"]["limits"] = [text]
    for check in predicate["checks"]:
        check["reason"] = None if check["result"] == "PASSED" else text
