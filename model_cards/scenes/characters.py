"""Letters and digits in free fonts on clutter.

The fonts are three groups of families, and no family is in two groups. Training images use only the support fonts.
Images that settings are chosen by use the dev fonts, and images of the results use the test fonts. So no accuracy is
measured on a font that was trained on, and no published accuracy on a font that a setting was chosen with.
"""

import math
import string
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vt_hub.synthesis.shapes import blend, clouds, draw_distractors, photograph

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
FOLDER = Path('/usr/share/fonts')
FONTS = {  # group -> Debian package, all of free licences (OFL, Apache-2.0, BSD), -> files
    'support': {
        'fonts-anonymous-pro': ['Anonymous Pro.ttf', 'Anonymous Pro B.ttf'],
        'fonts-cabin': ['Cabin-Regular.otf', 'Cabin-BoldItalic.otf'],
        'fonts-comic-neue': ['ComicNeue-Regular.otf', 'ComicNeue-BoldItalic.otf'],
        'fonts-crosextra-caladea': ['Caladea-Regular.ttf', 'Caladea-BoldItalic.ttf'],
        'fonts-ebgaramond': ['EBGaramond12-Regular.otf', 'EBGaramond12-Bold.otf'],
        'fonts-go': ['Go-Regular.ttf', 'Go-Mono-Bold.ttf'],
        'fonts-jura': ['Jura-Regular.otf', 'Jura-Bold.otf'],
        'fonts-lobstertwo': ['LobsterTwo-Regular.otf', 'LobsterTwo-Bold.otf'],
        'fonts-manrope': ['Manrope-Light.ttf', 'Manrope-ExtraBold.ttf'],
        'fonts-open-sans': ['OpenSans-Regular.ttf', 'OpenSans-CondBold.ttf'],
        'fonts-quicksand': ['Quicksand-Regular.ttf', 'Quicksand-Bold.ttf'],
        'fonts-roboto-slab': ['RobotoSlab-Regular.otf', 'RobotoSlab-Bold.otf'],
    },
    'dev': {
        'fonts-cantarell': ['Cantarell-Regular.otf', 'Cantarell-Bold.otf'],
        'fonts-comfortaa': ['Comfortaa-Regular.ttf', 'Comfortaa-Bold.ttf'],
        'fonts-courier-prime': ['Courier Prime.otf', 'Courier Prime Bold Italic.otf'],
        'fonts-inconsolata': ['Inconsolata.otf'],
        'fonts-vollkorn': ['Vollkorn-Regular.ttf', 'Vollkorn-BoldItalic.ttf'],
    },
    'test': {
        'fonts-averia-serif-gwf': ['AveriaSerifGWF-Regular.ttf', 'AveriaSerifGWF-BoldItalic.ttf'],
        'fonts-dosis': ['Dosis-Book.otf', 'Dosis-ExtraBold.otf'],
        'fonts-jetbrains-mono': ['JetBrainsMono-Regular.ttf', 'JetBrainsMono-BoldItalic.ttf'],
        'fonts-karla': ['Karla-Regular.otf', 'Karla-BoldItalic.otf'],
        'fonts-oldstandard': ['OldStandard-Regular.ttf', 'OldStandard-Bold.ttf'],
        'fonts-play': ['Play-Regular.ttf', 'Play-Bold.ttf'],
        'fonts-sil-gentium-basic': ['GenBasR.ttf', 'GenBkBasBI.ttf'],
    },
}


def find_fonts(group: str) -> list[Path]:
    """The files of a group's fonts.

    Raises:
        FileNotFoundError: One is not installed.
    """
    installed = {path.name: path for path in FOLDER.rglob('*.[to]tf')}
    wanted = [name for names in FONTS[group].values() for name in names]
    missing = [name for name in wanted if name not in installed]
    if missing:
        packages = ' '.join(package for families in FONTS.values() for package in families)
        raise FileNotFoundError(f'{FOLDER} has no {missing[0]}; install the fonts: apt-get install {packages}')
    return [installed[name] for name in wanted]


@cache
def open_font(path: Path, capitals: int) -> ImageFont.FreeTypeFont:
    """A font at the size at which capitals are `capitals` pixels high."""
    _, top, _, bottom = ImageFont.truetype(path, 1000).getbbox('H', anchor='ls')
    return ImageFont.truetype(path, 1000 * capitals / (bottom - top))


def character(rng: np.random.Generator, text: str, fonts: list[Path], size: int) -> np.ndarray:
    """An image (size, size, 3) uint8 of a character on clutter: turned, slanted, stretched, moved, and photographed."""
    noise = rng.spawn(1)[0]
    font = open_font(fonts[rng.integers(len(fonts))], size)
    glyph = Image.new('L', (2 * size, 2 * size))  # twice as large as it will be
    ImageDraw.Draw(glyph).text((size, 1.5 * size), text, fill=255, font=font, anchor='ms')
    turn, slant, stretch = rng.uniform(-0.12, 0.12), rng.uniform(-0.15, 0.15), rng.uniform(0.9, 1.1)
    scale = 2 / rng.uniform(1.1, 1.3)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    rows = np.array([[cos * stretch, slant * cos - sin], [sin, cos]])
    start = size - rows @ rng.uniform(0.46 * size, 0.54 * size, 2)
    affine = (*rows[0], start[0], *rows[1], start[1])
    alpha = np.asarray(glyph.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)) / 255

    paper, ink = rng.uniform(0.15, 0.4), rng.uniform(0.7, 1)
    if rng.random() < 0.5:
        paper, ink = 1 - paper, 1 - ink
    sky = Image.fromarray(clouds(rng)).convert('L').resize((size, size), Image.Resampling.BICUBIC)
    shades = np.asarray(sky, dtype=np.float32) / 255
    canvas = np.repeat((paper + 0.3 * (shades - shades.mean()))[..., None], 3, 2)
    grid = (np.arange(size) + 0.5) / size
    points = grid + 1j * grid[:, None]
    draw_distractors(canvas, points, rng)
    blend(canvas, np.float32(ink), alpha)
    return photograph(canvas, points, rng, noise)
