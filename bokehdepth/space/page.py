"""Words and looks of the Space's page: sentences, style sheet, what runs in the browser. No torch, no gradio."""

from __future__ import annotations

from ..files.formats import FORMATS
from ..tasks.limits import PAGE
from .serving import F_STOPS

INTRO = """# BokehDepth
One photo in. Out come the same photo with a blurred background, as from a wide-open lens, and its depth in metres."""
EMBEDDED_NOTE = """**Small demonstration model.** It runs without a graphics card and shows the idea; its blur and \
its metres are rough. With full weights the same page blurs with FLUX and reads depth with a full-size network."""
LIMITS_NOTE = f"""{FORMATS}, up to {PAGE.max_photo_px // 10**6} megapixels and {PAGE.max_photo_bytes // 2**20} MB. \
Your files are shown to nobody else, and deleted minutes after you leave or an hour after you last used them."""
BRACKET_HINT = """Photos from a tripod, same focus, wider apertures than the photo above: they take the place of \
generated frames. Their f-numbers are read from EXIF."""
NO_PHOTO = "Read from the photo once there is one."
DEPTH_HINT = "Click a point to read its distance, and a second one to measure between them."
REFOCUS_HINT = "Click what should be sharp; everything nearer and farther is blurred by its depth."

KIND_INFO = "Strength: 30 is the most. f-number: the aperture of your lens, smaller blurs more."
FRAMES_INFO = "Each frame is two stops narrower than the one before, which halves its blur."
METHOD_INFO = "Measured blur needs no network, and a scene that lies behind the focus."
STEPS_INFO = "More take longer; the default suits the model."
SEED_INFO = "The same seed repeats the result."

# Gradio repeats each rule under the page's own prefix, and finds one .dark in a rule, so these stand one by one.
CSS = """
.gradio-container {max-width: min(1240px, 100vw) !important; margin: 0 auto !important; box-sizing: border-box}
.gradio-container .main {max-width: 100% !important; box-sizing: border-box}
.note, .note table {font-size: var(--text-sm); width: 100%}
.note, .note p, .info-text, footer button {color: var(--neutral-500) !important}
.dark .note {color: var(--neutral-400) !important}
.dark .note p {color: var(--neutral-400) !important}
.dark .info-text {color: var(--neutral-400) !important}
.dark footer button {color: var(--neutral-400) !important}
footer .divider {display: none !important}
.note th, .note td {padding: 4px 8px !important; border-color: var(--border-color-primary) !important}
.readout p {font-size: var(--text-md)}
.picture img {max-height: 560px; object-fit: contain}
.pick img {cursor: crosshair}
.frames .grid-wrap {min-height: 0 !important; height: auto !important}
.frames .caption-label {font-size: 11px !important; max-width: 100% !important; padding: 1px 5px !important}
.frames .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}
.stops .tab-like-container, .stops .min_value, .stops .max_value {display: none !important}
.block.stop-label {padding: 8px 12px 0 !important; background: var(--block-background-fill)}
.tab-container button.selected {color: var(--body-text-color) !important; font-weight: 600}
@media (max-width: 640px) {
    .gradio-container, .gradio-container .main {padding: 4px !important}
    .frames .caption-label {white-space: normal !important; text-align: right}
    .tab-container button {padding: 0 8px !important; font-size: var(--text-sm) !important}
}
"""

# The page holds the frames already, so moving through them asks the server nothing.
SHOW_FRAME_JS = """(at, frames) => frames?.length
    ? [frames[at].image, frames[at].caption, [frames[0].image, frames[at].image]] : [null, '', null]"""

SHOW_STOP_JS = f"(at) => `Aperture f/${{{F_STOPS}[at]}}`"
NEW_SEED_JS = "() => Math.floor(Math.random() * 2 ** 31)"


def stop_label(index: int) -> str:
    """The f-number at a place of the slider, as `SHOW_STOP_JS` words it."""
    return f"Aperture f/{F_STOPS[index]:g}"
