"""What the tests of figures share: a figure as bytes, its size and its pixels."""

import io
import struct

from matplotlib.image import imread


def drawn(draw, *arguments, **options):
    file = io.BytesIO()
    draw(*arguments, target=file, **options)
    return file.getvalue()


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def pixels(png):
    return imread(io.BytesIO(png))[..., :3]
