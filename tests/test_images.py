"""One image: every way in which people have it, and what is refused."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import invalid, refused
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin

from storage import images
from storage.images import decode, open_image
from utils import DataError


def encoded(mode='RGB', kind='JPEG', size=(96, 112), **options):
    noise = Image.effect_noise(size, 80)
    colours = Image.merge('RGB', [noise, noise.rotate(90), noise.rotate(180)])
    return saved(colours.convert(mode), kind, **options)


HOW = [{}, dict(subsampling=0), dict(quality=100), dict(progressive=True), dict(mode='L')]
HOW += [dict(mode='CMYK'), dict(kind='PNG'), dict(kind='WEBP'), dict(mode='P', kind='PNG')]
HOW += [dict(mode='L', kind='BMP')]


@pytest.mark.parametrize('how', HOW, ids=str)
def test_pixels_are_pillows_and_read_by_it_without_simplejpeg(how, monkeypatch):
    data = encoded(**how)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    for simplejpeg in (images.simplejpeg, None):
        monkeypatch.setattr(images, 'simplejpeg', simplejpeg)
        assert np.abs(decode(data).astype(int) - expected).max() <= 1


def test_a_face_as_wide_as_the_model_sees_it():
    """Column k of the picture is of shade k: which columns come out is seen in the pixels."""
    columns = np.broadcast_to(np.arange(112, dtype=np.uint8)[:, None], (112, 112, 3))
    wide, narrow = saved(columns, 'PNG'), saved(columns[:, 8:104], 'PNG')
    for data, width, expected in (
        (wide, 96, [*range(8, 104)]),
        (wide, 112, [*range(112)]),
        (narrow, 96, [*range(8, 104)]),
        (narrow, 112, [8] * 8 + [*range(8, 104)] + [103] * 8),
    ):
        face = decode(data, width)
        assert face.shape == (112, width, 3) and face.dtype == np.uint8
        assert (face == np.array(expected)[:, None]).all()
    invalid('96 or 112 wide, not 100', decode, wide, 100)


RAMP = np.arange(112 * 96, dtype=np.uint8).reshape(112, 96)  # every grey there is


def saved(image, kind, **options):
    buffer = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(image))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_upright_as_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = (112, 96) if orientation > 4 else (96, 112)
    lossless = {'quality': 95} if kind == 'JPEG' else {'lossless': True} if kind == 'WEBP' else {}
    lying = Image.open(io.BytesIO(encoded(kind='PNG', size=size)))
    data = saved(lying, kind, exif=exif, **lossless)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))
    assert expected.shape == (112, 96, 3)
    assert np.abs(decode(data).astype(int) - expected).max() <= 1


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    b'tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def test_upright_as_exif_says_or_xmp_where_there_is_none():
    for kind in ['JPEG', 'PNG', 'WEBP', 'TIFF']:
        described = PngImagePlugin.PngInfo()
        # of more than a megabyte
        described.add_itxt('XML:com.adobe.xmp', XMP.decode() + ' ' * 3_000_000, zip=True)
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[700], tags.tagtype[700] = XMP, 1
        options = {
            'JPEG': {'xmp': XMP, 'quality': 95},
            'PNG': {'pnginfo': described},
            'WEBP': {'xmp': XMP, 'lossless': True},
            'TIFF': {'tiffinfo': tags},
        }[kind]
        face = decode(saved(RAMP.T, kind, **options)).astype(int)
        assert np.abs(face - np.rot90(RAMP.T, -1)[..., None]).mean() < (
            12 if kind == 'JPEG' else 1e-9
        )
    exif = Image.Exif()
    exif[0x0112] = 1
    data = encoded(exif=exif.tobytes())
    spoilt = data.replace(b'Exif\0\0' + exif.tobytes()[6:14], b'Exif\0\0' + b'\xff' * 8)
    assert spoilt != data and (decode(spoilt) == decode(data)).all()


SHORT, LONG, FLOAT = (RAMP.astype(kind) for kind in (np.uint16, np.int32, np.float32))
TWELVE = np.rint(RAMP * (4095 / 255)).astype(np.uint16)
GREYS = [(grey, kind) for grey in (SHORT * 257, TWELVE) for kind in ('PNG', 'TIFF')]
GREYS += [(SHORT, 'PNG'), (LONG * 257, 'TIFF'), (LONG * (2**23 + 2**15), 'TIFF'), (LONG, 'TIFF')]
GREYS += [(FLOAT / 255, 'TIFF'), (FLOAT, 'TIFF'), (FLOAT * 257, 'TIFF')]


def test_greys_of_more_than_eight_bits_and_colours_of_twelve():
    for grey, kind in GREYS:
        assert (decode(saved(grey, kind)) == RAMP[..., None]).all(), (grey.dtype, grey.max(), kind)
    ppm = b'P5 96 112 65535\n' + (RAMP.astype('>u2') * 257).tobytes()
    assert (decode(ppm) == RAMP[..., None]).all()
    for grey in (SHORT * 257, RAMP):  # white may be zero in TIFF
        data = saved(grey, 'TIFF', tiffinfo={262: 1})
        assert (decode(data) == RAMP[..., None]).all()
        tag = b'\x06\x01\x03\x00\x01\x00\x00\x00'  # 262, a short, one of it
        assert data.count(tag + b'\1') == 1
        assert (decode(data.replace(tag + b'\1', tag + b'\0')) == 255 - RAMP[..., None]).all()
    for value in (-1, np.nan, np.inf, 1e12):
        grey = RAMP.astype(np.float32)
        grey[3, 4] = value
        refused('not readable as an image .values', decode, saved(grey, 'TIFF'))
    for scale, black in [(257, False), (16, True)]:
        head = struct.pack('>IIBBBBB', 96, 112, 16, 2, 0, 0, 0)
        colours = (np.repeat(RAMP[..., None], 3, 2).astype(int) * scale).astype('>u2')
        lines = b''.join(b'\0' + row.tobytes() for row in colours)
        chunks = (b'IHDR', head), (b'IDAT', zlib.compress(lines)), (b'IEND', b'')
        data = b'\x89PNG\r\n\x1a\n' + b''.join(
            struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
            for kind, body in chunks
        )
        if black:
            refused('only the lowest 12 are used: save it with 8 bits', decode, data)
        else:
            assert (decode(data) == RAMP[..., None]).all()


def test_transparency_hides_nothing_and_of_an_animation_the_first_is_taken(recwarn):
    colours = np.asarray(Image.open(io.BytesIO(encoded(kind='PNG'))))
    clear = np.dstack([colours, np.zeros((112, 96), np.uint8)])
    assert (decode(saved(clear, 'PNG')) == colours).all()
    assert (decode(saved(np.dstack([RAMP, RAMP]), 'PNG')) == RAMP[..., None]).all()
    palette = Image.fromarray(colours).quantize(64)
    expected = np.asarray(palette.convert('RGB'))
    assert (decode(saved(palette, 'PNG', transparency=bytes(range(64)))) == expected).all()
    assert (decode(saved(palette, 'GIF', transparency=3)) == expected).all()
    assert not recwarn.list
    pictures = [Image.fromarray(np.full((112, 96), shade, np.uint8)) for shade in (50, 200)]
    data = saved(pictures[0], 'GIF', save_all=True, append_images=pictures[1:])
    assert (decode(data) == 50).all()


def test_what_libjpeg_calls_corrupt_is_refused(capfd):
    """Pillow shows the half that is missing in grey, without a word, as libtiff does."""
    said = r'not readable as an image \(Corrupt JPEG data: .*\)'
    for mode in ('RGB', 'CMYK'):
        data = bytearray(encoded(mode))
        data[len(data) // 2 : -2] = bytes(len(data) // 2 - 2 + len(data) % 2)
        assert np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).shape == (112, 96, 3)
        refused(said, decode, bytes(data))
    data = bytearray(encoded(kind='TIFF', compression='jpeg', quality=95))
    decode(bytes(data))
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    refused(said, decode, bytes(data))
    assert capfd.readouterr().err == ''


STRIPS = dict(kind='TIFF', compression='tiff_adobe_deflate')
TILES = dict(kind='TIFF', compression='tiff_deflate', tile=(16, 16))


@pytest.mark.parametrize('options', [dict(kind='PNG'), STRIPS, TILES])
def test_what_fails_its_checksum_is_refused(options, capfd):
    """Wherever a byte is lost; and libtiff writes nothing of its own to the screen."""
    data = encoded(**options)
    whole = decode(data)
    for at in range(600, len(data) - 400, len(data) // 30):
        damaged = bytearray(data)
        damaged[at : at + 16] = bytes(16)
        try:
            assert (decode(bytes(damaged)) == whole).all()  # tags that no pixel depends on
        except DataError as error:
            assert 'not readable as an image' in str(error)
    damaged = data[: len(data) // 2] + bytes(16) + data[len(data) // 2 + 16 :]
    refused('not readable as an image', decode, damaged)
    assert capfd.readouterr().err == ''


def test_what_is_no_image_and_the_decoders_reason(monkeypatch):
    for data, reason in (
        (b'', 'an empty file'),
        (b' <!DOCTYPE html><html>404', 'a web page'),
        (b'\xef\xbb\xbf<html>404', 'a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 112\n', 'not an image of a kind'),
        (bytes(500), 'not an image of a kind'),
    ):
        refused(rf'not readable as an image \(.*{reason}', decode, data)
    refused(r'as an image \(Premature end of JPEG file\)', decode, encoded()[:-300])
    for allowed in (False, True):  # as some library lets Pillow read cut files
        monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', allowed)
        refused(r'as an image \(image file is truncated', decode, encoded(kind='PNG')[:-300])


def test_heic_and_avif(monkeypatch):
    pillow_heif = pytest.importorskip('pillow_heif')
    pillow_heif.register_heif_opener()
    colours = np.full((112, 96, 3), (200, 90, 40), np.uint8)
    heic = saved(colours, 'HEIF')
    assert np.abs(decode(heic).astype(int) - colours).max() < 9
    monkeypatch.setattr(images, 'kinds', lambda: ['JPEG', 'PNG'])
    refused(r'HEIC needs `pip install pillow-heif`', decode, heic)
    refused('AVIF needs Pillow', decode, b'\0\0\0\x20ftypavif' + bytes(50))


def test_pillows_warnings_are_errors_in_every_thread_and_the_filters_stay(monkeypatch):
    pillow, load = {'__name__': 'PIL.PngImagePlugin'}, PngImagePlugin.PngImageFile.load
    exec('import warnings\ndef warn(): warnings.warn("half of it is missing")', pillow)

    def load_and_warn(self):
        if self.info.get('dpi'):
            pillow['warn']()
        return load(self)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', load_and_warn)
    colours, before = np.zeros((112, 96, 3), np.uint8), list(warnings.filters)
    files = [saved(colours, 'PNG'), saved(colours, 'PNG', dpi=(72, 72))] * 40

    def reason(data):
        try:
            return int(decode(data).max())
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        reasons = list(pool.map(reason, files))
    assert reasons == [0, 'not readable as an image (half of it is missing)'] * 40
    assert warnings.filters == before


def test_other_sizes_are_opened_where_the_caller_lets_them():
    data = encoded(size=(300, 200))
    assert open_image(data).shape == (200, 300, 3)

    def refuse(height, width):
        raise DataError(f'{height} by {width}')

    refused('^200 by 300$', open_image, data, refuse)
    for kind in ('PNG', 'JPEG'):  # decompression bombs, by their headers
        data = saved(Image.new('1' if kind == 'PNG' else 'L', (20000, 10000)), kind)
        refused('179 megapixels', open_image, data)
