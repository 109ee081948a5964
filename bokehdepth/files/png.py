"""PNG with text chunks and the mark of a generated picture. No torch import."""

import zlib
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import __version__
from ..errors import InputError
from .atomic import write_file

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_RESERVED_TEXT = ("Software", "Comment", "ai_generated", "digital_source_type", "XML:com.adobe.xmp")
_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def write_png(path: Path | str, image: Image.Image, text: Mapping[str, str], overwrite: bool) -> Path:
    """Write a PNG with text chunks; an ``InputError`` where the text or the path cannot be used."""
    chunks = PngInfo()
    for key, value in text.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InputError(f"metadata has {key!r}: {value!r}, wanted a string for a string")
        if not (1 <= len(key) <= 79 and key.isascii() and key.isprintable() and key == key.strip()):
            raise InputError(f"metadata has the key {key!r}, wanted 1 to 79 printable ASCII characters")
        if "\0" in value:
            raise InputError(f"metadata has a NUL character under {key!r}, wanted plain text")
        if key == "XML:com.adobe.xmp" or not value.isascii():
            chunks.add_itxt(key, value)
        else:
            chunks.add_text(key, value)
    # PIL's default takes five times as long for a twentieth off a photo, whose filtered rows repeat in runs alone.
    kind = zlib.Z_DEFAULT_STRATEGY if image.mode == "I;16" else zlib.Z_RLE
    options = {"format": "PNG", "pnginfo": chunks, "compress_level": 1, "compress_type": kind}
    return write_file(path, lambda file: image.save(file, **options), overwrite=overwrite)


def save_image(
    path: Path | str,
    image: Image.Image,
    *,
    metadata: Mapping[str, str] | None = None,
    ai_generated: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a picture as PNG with text chunks and the mark of its origin.

    A generated picture carries the text chunks ``ai_generated`` and ``Comment`` and an XMP packet whose IPTC
    ``DigitalSourceType`` is ``trainedAlgorithmicMedia``, which photo programs and platforms read. EXIF (the
    place of the photo among it) is not written; the colour profile is.

    Args:
        path: File to write.
        image: PIL picture of a mode that PNG has.
        metadata: Text chunks, names to text.
        ai_generated: Whether a network made the picture. A photo, a render or a colour map of depth is not marked.
        overwrite: Whether an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: If ``image`` is no such picture, ``metadata`` has a name or value that PNG cannot hold or that is
            written here, or the path cannot be used.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"image is {type(image).__name__}, wanted a PIL picture")
    if image.mode not in _PNG_MODES:
        raise InputError(f"image has the mode {image.mode!r}, wanted one of {', '.join(_PNG_MODES)}")
    for key in metadata or {}:
        if key in _RESERVED_TEXT:
            raise InputError(f"metadata has the key {key!r}, which save_image writes itself, wanted another name")
    text = {**(metadata or {}), "Software": f"bokehdepth {__version__}"}
    if ai_generated:
        text |= {"ai_generated": "true", "Comment": "AI-generated picture", "digital_source_type": DIGITAL_SOURCE_TYPE}
        text |= {"XML:com.adobe.xmp": _XMP}
    return write_png(path, image, text, overwrite=overwrite)
