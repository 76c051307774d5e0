"""The data sets: one dict each, plain values. Add yours here, and choose it as `dataset` in main.py
or with --dataset NAME.

train_root  one of three; images are 112 high × 96 or 112 wide
            - folder of identity folders: train_root/<identity>/<image with the age in its name>
            - WebDataset shards, '/data/x/train-{00000..00099}.tar', whose samples are key.jpg and
              key.json, {"identity": "Ada", "age": 35}
            - text file of `path label age` lines, apart by tabs or spaces, in a .csv by commas;
              paths are relative to its folder
val_root    the same for validation, or None. Of other people: verification; of the people of
            train_root: closed-set accuracy too
pat, pos    re.split(pat, file name)[pos] is the age in years: '_|\\.' splits 000_12.jpg into
            [000, 12, jpg], and pos 1 is 12
n_cls       number of identities in train_root
"""

# upper bounds of the age groups, inclusive; the last group is everybody older
age_cutoffs = (12, 18, 25, 35, 45, 55, 65)

demo = {  # faces drawn by synthetic.py on first use
    'train_root': 'data/demo/train',
    'val_root': 'data/demo/val',
    'pat': r'_|\.',
    'pos': 1,
    'n_cls': 400,
}

# Templates with the real file names of well-known sets, sorted into a folder per person and aligned
# to 112 × 96 or 112 × 112. Put in your paths.

fgnet = {  # 001A02.JPG, 001A43a.JPG
    'train_root': 'data/fgnet/train',
    'val_root': None,
    'pat': r'[A-Za-z.]+',
    'pos': 1,
    'n_cls': 82,
}

morph = {  # 009055_1M54.JPG
    'train_root': 'data/morph/train',
    'val_root': None,
    'pat': r'[MF_.]',
    'pos': 2,
    'n_cls': 13617,
}

photographs = {  # of docs/ablation.md: people young and grown, of the set Large Age-Gap
    'train_root': 'data/photographs/train',
    'val_root': 'data/photographs/val',
    'pat': r'_|\.',
    'pos': 1,
    'n_cls': 400,
}

cacd2000 = {  # 53_Robert_Duvall_0001.jpg
    'train_root': 'data/cacd2000/train',
    'val_root': None,
    'pat': r'_',
    'pos': 0,
    'n_cls': 2000,
}

agedb = {  # 0_MariaCallas_35_f.jpg
    'train_root': 'data/agedb/train',
    'val_root': None,
    'pat': r'_',
    'pos': 2,
    'n_cls': 568,
}
