"""Is this the same person, years on? Who of these is it?

    python3 verify.py weights a.jpg b.jpg [--out PNG]            # similarity, decision, ages
    python3 verify.py weights --find face.jpg FOLDER [--out PNG] # the most similar below FOLDER
    python3 verify.py weights --serve [FOLDER]                   # both at http://127.0.0.1:8000/

An image of 112 high × 96 wide, or of 112×112, is taken for an aligned face; in any other the
largest face is found and aligned. The threshold is the one that was best in the training's
validation, kept in the weights file; --threshold sets another.
"""

import argparse
from pathlib import Path

import utils
from training.checkpoint import load_weights
from verification import drawing, portraits
from verification.matcher import Gallery, Matcher


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('weights', help='best.pth, epoch_*.pth or last.pth of a training')
    parser.add_argument('images', nargs='*', metavar='image', help='two images to compare')
    parser.add_argument(
        '--find',
        nargs=2,
        metavar=('FACE', 'FOLDER'),
        help='look for FACE among all images below FOLDER',
    )
    parser.add_argument(
        '--serve',
        nargs='?',
        const='',
        metavar='FOLDER',
        help='the web page; with FOLDER it also looks for faces there',
    )
    parser.add_argument(
        '--threshold', type=float, metavar='T', help='decide at this similarity, −1 to 1'
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='PNG',
        help='where the answer is drawn; of --find by default FACE-found.png, here',
    )
    parser.add_argument(
        '--top',
        type=int,
        default=12,
        metavar='K',
        help='--find: how many faces are listed and drawn (default 12)',
    )
    parser.add_argument(
        '--ctx', type=int, default=-1, help='the GPU to use; below 0, the default, the CPU'
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='--serve: the address to listen on; by default this machine alone reaches it',
    )
    parser.add_argument('--port', type=int, default=8000, help='--serve: the port (default 8000)')
    args = parser.parse_args(argv)
    asked = [len(args.images) == 2, args.find is not None, args.serve is not None].count(True)
    if asked != 1 or len(args.images) not in (0, 2):
        parser.error('give two images, or --find FACE FOLDER, or --serve')
    if args.threshold is not None and not -1 <= args.threshold <= 1:
        parser.error('--threshold is a similarity, between -1 and 1')
    if args.top < 1 or not 0 < args.port < 2**16:
        parser.error('--top must be at least 1, --port between 1 and 65535')
    return args


def matcher(args):
    """The Matcher of the command line. Raises UserError where the weights can't be used."""
    device = utils.pick_device(args.ctx)
    return Matcher(*load_weights(args.weights, device), device, args.threshold)


def compare(args):
    """Two images: prints, and draws where --out says."""
    two = [portraits.read_file(path) for path in args.images]
    known = matcher(args)
    looks = known.look([portrait.face for portrait in two])
    similarity = float(looks[0].embedding @ looks[1].embedding)
    for portrait, look in zip(two, looks, strict=True):
        print(f'{portrait.name}: {portrait.about}; {look.about}')
    print(f'similarity {similarity:.3f}: {known.decision.verdict(similarity)}')
    if known.decision.genuine is not None:
        print(f'which means: {known.decision.meaning(similarity)}')
    if args.out:
        drawing.draw_pair(two, looks, similarity, known.decision, args.out)
        print(f'{args.out}: the answer, drawn')


def find(args):
    """One image among a folder's: prints the ranking and draws it."""
    portrait = portraits.read_file(args.find[0])
    known = matcher(args)
    look, = known.look([portrait.face])
    gallery = Gallery(known, args.find[1], but=args.find[0])
    found = gallery.nearest(look.embedding, args.top)
    print(f'{portrait.name}: {portrait.about}; {look.about}; among {len(gallery.names)} faces:')
    for rank, one in enumerate(found, 1):
        star = '*' if known.decision.same(one.similarity) else ' '
        print(f'{rank:3} {one.similarity:.3f}{star}  {one.name}; {one.look.about}')
    if known.decision.threshold is not None:
        print(
            f'* above the threshold of {known.decision.threshold:.3f}, which is one for pairs: '
            'among many faces other people pass it too'
        )
    if gallery.left_out:
        print(f'{len(gallery.left_out)} images left out: {"; ".join(gallery.left_out[:3])}')
    drawing.draw_found(portrait, look, found, known.decision, args.out)
    print(f'{args.out}: the answer, drawn')


def serve(args):
    """The page, until it is interrupted."""
    try:
        from verification import page
    except ImportError as error:
        raise utils.UserError(
            f'the page needs {error.name}: pip install -r requirements-serve.txt'
        ) from None
    known = matcher(args)
    gallery = Gallery(known, args.serve) if args.serve else None
    page.serve(page.application(known, gallery, args.host), args.host, args.port)


def run(args):
    if args.find and not args.out:
        args.out = Path(f'{Path(args.find[0]).stem}-found.png')
    if args.out and args.out.exists():
        raise utils.UserError(f'{args.out} is there already: remove it, or name another with --out')
    if args.out and not args.out.absolute().parent.is_dir():
        raise utils.UserError(f'{args.out}: there is no folder {args.out.parent}')
    (find if args.find else compare if args.images else serve)(args)


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
