"""No network: x is a stored vector of any system, and R in closed form acts on it."""

from .base import PretrainedBackbone


class Vectors(PretrainedBackbone):
    """Stands in for a network if the data set holds x itself, (N, dim)."""

    def __init__(self, name: str = 'vectors', dim: int = 512):
        super().__init__(name, dim=dim)
        self.vectors = dim  # DALModel asks it for no face

    def forward(self, images):
        raise ValueError('these weights are of stored vectors: they know no network for faces')
