"""Names and boxes as MWG regions in XMP sidecars, which photo managers read.

PHOTO.xmp is merged with if it is there, else PHOTO.jpg.xmp is, or is written. Source: Metadata
Working Group, Guidelines for Handling Image Metadata 2.0, chapter 5.9.
"""

import functools
import io
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from storage.images import ORIENTATION
from system.names import shown
from utils import write_whole
from verification.index import Index

SPACES = {
    'x': 'adobe:ns:meta/',
    'rdf': 'http://www.w3.org/1999/02/22-rdf-syntax-ns#',
    'mwg-rs': 'http://www.metadataworkinggroup.com/schemas/regions/',
    'stArea': 'http://ns.adobe.com/xmp/sType/Area#',
    'stDim': 'http://ns.adobe.com/xap/1.0/sType/Dimensions#',
}
DECLARED = ' '.join(f'xmlns:{prefix}="{space}"' for prefix, space in SPACES.items())
EMPTY = f'<x:xmpmeta {DECLARED}><rdf:RDF/></x:xmpmeta>'
LIST = (
    '<rdf:Description {} rdf:about=""><mwg-rs:Regions rdf:parseType="Resource">'
    '<mwg-rs:AppliedToDimensions stDim:w="{}" stDim:h="{}" stDim:unit="pixel"/>'
    '<mwg-rs:RegionList><rdf:Bag/></mwg-rs:RegionList></mwg-rs:Regions></rdf:Description>'
)
REGION = (
    '<rdf:li {}><rdf:Description mwg-rs:Type="Face"><mwg-rs:Area stArea:x="{:.6f}" '
    'stArea:y="{:.6f}" stArea:w="{:.6f}" stArea:h="{:.6f}" stArea:unit="normalized"/>'
    '</rdf:Description></rdf:li>'
)
NEAR = 0.02  # of the image's sides: centres of one region


def write_sidecars(archive: Index, rows: list[dict]) -> list[str]:
    """Sidecars of all photographs with faces, by the rows of people.csv; returns a line for each
    that was left as it is. A region that is there stays; if it has no name it gets ours."""
    faces = defaultdict(list)
    for row in rows:
        faces[archive.path(row['face'])].append((archive.faces['box'][row['face']], row['name']))
    notes = []
    for photograph, regions in faces.items():
        beside = Path(photograph).with_suffix('.xmp')
        path = beside if beside.exists() else Path(f'{photograph}.xmp')
        try:
            with Image.open(photograph) as image:
                size, turned = image.size, image.getexif().get(ORIENTATION, 1)
            before = path.read_bytes() if path.exists() else EMPTY.encode()
            after = merged(before, size, turned, regions)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            notes.append(f'{shown(photograph)}: no regions written ({error})')
            continue
        if after != before:
            write_whole(path, functools.partial(Path.write_bytes, data=after))
    return notes


def merged(before: bytes, size: tuple[int, int], turned: int, regions: list) -> bytes:
    """The sidecar `before` with our regions too; the same bytes if they were all there. `size`
    (width, height) is the stored image's, `turned` its EXIF orientation, and `regions` are (box
    (4,) in pixels of the upright image, name or ''). Raises ParseError for what is no XML."""
    theirs = [space for _, space in ElementTree.iterparse(io.BytesIO(before), ['start-ns'])]
    for prefix, space in [*SPACES.items(), *theirs]:
        if not prefix.startswith('ns'):  # ElementTree numbers its own so
            ElementTree.register_namespace(prefix, space)
    root = ElementTree.fromstring(before)
    bag, changed = root.find('.//mwg-rs:RegionList/rdf:Bag', SPACES), False
    if bag is None:
        rdf = next(root.iter(_tag('rdf:RDF')), None)
        if rdf is None:
            raise ValueError('its sidecar is no XMP')
        rdf.append(ElementTree.fromstring(LIST.format(DECLARED, *size)))
        bag, changed = next(rdf[-1].iter(_tag('rdf:Bag'))), True
    upright = np.array(size if turned < 5 else size[::-1])
    for box, name in regions:
        first, second = _stored(np.reshape(box, (2, 2)) / upright, turned)
        middle, sides = (first + second) / 2, abs(first - second)
        here = next((item for item in bag if np.allclose(_centre(item), middle, 0, NEAR)), None)
        if here is None:
            here, changed = ElementTree.fromstring(REGION.format(DECLARED, *middle, *sides)), True
            bag.append(here)
        if name and not _value(here, 'mwg-rs:Name'):
            inner = here.find('rdf:Description', SPACES)
            (here if inner is None else inner).set(_tag('mwg-rs:Name'), name)
            changed = True
    return ElementTree.tostring(root, 'utf-8', xml_declaration=True) if changed else before


def _stored(places, turned):
    """Places (n, 2) in the upright image, (x, y) from 0 to 1 -> those in the stored image."""
    x, y = places.T
    across, down = (y, x) if turned in (5, 6, 7, 8) else (x, y)
    across = 1 - across if turned in (2, 3, 7, 8) else across
    down = 1 - down if turned in (3, 4, 6, 7) else down
    return np.stack([across, down], 1)


def _tag(name):
    prefix, name = name.split(':')
    return f'{{{SPACES[prefix]}}}{name}'


def _value(item, name):
    """Of a region, written as an attribute or as an element; '' if it isn't there."""
    attributes = (node.get(_tag(name)) for node in item.iter())
    elements = (node.text for node in item.iter(_tag(name)))
    return next(filter(None, (*attributes, *elements)), '').strip()


def _centre(item):
    try:
        return [float(_value(item, f'stArea:{key}')) for key in 'xy']
    except ValueError:  # of another program: 0,5
        return [np.nan, np.nan]
