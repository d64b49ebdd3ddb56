"""The names, keywords, returns and state-dict keys of vector-quantize-pytorch (Wang, MIT), on fastvq's kernels."""

from .binary_mapper import BinaryMapper
from .finite_scalar import FSQ
from .grouped_residual import GroupedResidualVQ
from .latent import LatentQuantize
from .lookup_free import LFQ
from .objectives import LossBreakdown
from .random_projection import RandomProjectionQuantizer
from .residual import ResidualVQ
from .residual_fsq import GroupedResidualFSQ, ResidualFSQ
from .residual_lfq import GroupedResidualLFQ, ResidualLFQ
from .residual_sim_vq import ResidualSimVQ
from .sim_vq import SimVQ
from .vector_quantize import VectorQuantize

__all__ = [
    "FSQ",
    "LFQ",
    "BinaryMapper",
    "GroupedResidualFSQ",
    "GroupedResidualLFQ",
    "GroupedResidualVQ",
    "LatentQuantize",
    "LossBreakdown",
    "RandomProjectionQuantizer",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "SimVQ",
    "VectorQuantize",
]
