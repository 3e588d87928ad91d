r"""Other linear maps from N numbers to m that keep squared lengths on average; what they cost beside a count sketch.

With independent signs the squared norm of all of them has the mean :math:`\|x\|^2` and the variance
:math:`2 (\|x\|^4 - \sum_i x_i^4) / m`: none is more accurate than another, but a dense one costs N m additions and as
many random signs, drawn again at every call where N m of them do not fit.

All read gradients that already lie in one vector; a trainer's do not, and that copy is not counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.peers.available import PEERS as INSTALL
from bench.peers.available import Missing, load, require_card

STANDARD_ERRORS = 5.0
"""What the squared norm of a projection may be off by."""
_ROUNDING = 5e-3
"""What a float32 map may miss linearity by: the dense one is a small difference of large sums."""
_BLOCK_SIGNS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Signs of the dense map that exist at a time: what stays in a core's cache, what keeps a card busy."""
_TRAK_BLOCK = 100
"""Rows of TRAK's map that exist at a time, as by its default."""
_TRAK_MULTIPLE = 512
"""What m must be a multiple of on a card."""


@dataclass(frozen=True)
class Projector:
    """A map to m numbers.

    Attributes:
        name: as it stands in a table.
        make: from tensors and m to the call that is timed.
        most_products: the N m up to which a call on a CPU of a few cores takes seconds at most.
        bytes_per_element: memory it takes, for each of the N, while it is checked.
    """

    name: str
    make: Callable[..., Callable[[], Tensor]]
    most_products: float = math.inf
    bytes_per_element: int = 0


def trak(tensors: Sequence[Tensor], m: int) -> Callable[[], Tensor]:
    """Random signs by TRAK (Park et al. 2023), over sqrt(m): torch in blocks on a CPU, a CUDA kernel on a card."""
    projectors = load("trak.projectors", "traker", INSTALL)
    x = _flat(tensors)
    options = {"grad_dim": len(x), "proj_dim": m, "seed": 0, "proj_type": projectors.ProjectionType.rademacher}
    if x.is_cuda:
        load("fast_jl", "fast_jl", "pip install --no-build-isolation fast_jl, with a CUDA compiler")
        require_card([x])
        if m % _TRAK_MULTIPLE:
            raise Missing(f"needs m to be a multiple of {_TRAK_MULTIPLE}, got {m}")
        projector = projectors.CudaProjector(**options, device=x.device, max_batch_size=8)
    else:
        projector = projectors.BasicProjector(**options, device=x.device, block_size=_TRAK_BLOCK)
    batch = x[None]
    return lambda: projector.project(batch, model_id=0)[0] / math.sqrt(m)


def dense(tensors: Sequence[Tensor], m: int) -> Callable[[], Tensor]:
    r"""Random signs over sqrt(m) in plain torch (Achlioptas 2003), drawn again at every call, block after block.

    A random 64-bit word gives eight of them, the low bits of its bytes. Bits b stand in place of signs 2b - 1, so that
    nothing but a product is made of a block:
    :math:`\sum_i (2 b_{ij} - 1) x_i = 2 \sum_i b_{ij} x_i - \sum_i x_i`.
    """
    x = _flat(tensors)
    rows = max(1, min(len(x), _BLOCK_SIGNS[x.device.type] // m))
    random = torch.empty(-(-rows * m // 8), dtype=torch.int64, device=x.device)
    bits = torch.empty(m, rows, device=x.device)
    generator = torch.Generator(x.device)

    def call() -> Tensor:
        generator.manual_seed(0)
        sums = torch.zeros(m, device=x.device)
        for block in x.split(rows):
            bytes_ = random.random_(generator=generator).view(torch.uint8)
            bits.copy_(bytes_.bitwise_and_(1)[: rows * m].view(m, rows))
            sums.addmv_(bits[:, : len(block)], block)
        return (2 * sums - x.sum()) / math.sqrt(m)

    return call


def stored_count_sketch(tensors: Sequence[Tensor], m: int) -> Callable[[], Tensor]:
    """A count sketch with its buckets and signs drawn once and stored, eight bytes an element, and ``index_add_``."""
    x = _flat(tensors)
    generator = torch.Generator(x.device).manual_seed(0)
    bucket = torch.randint(m, x.shape, generator=generator, dtype=torch.int32, device=x.device)
    sign = torch.randint(2, x.shape, generator=generator, dtype=torch.float32, device=x.device).mul_(2).sub_(1)
    return lambda: torch.zeros(m, device=x.device).index_add_(0, bucket, sign * x)


def check_projection(
    make: Callable[[Sequence[Tensor], int], Callable[[], Tensor]], x: Sequence[Tensor], y: Sequence[Tensor], m: int
) -> float:
    """Assert that a map estimates squared norms as well as theory says, and is linear; return how far off the first is.

    Args:
        make: from tensors and m to the call.
        x: a list, not of zeros.
        y: another of the same sizes.
        m: numbers of a projection.

    Raises:
        AssertionError: it does not; the message says by how much.
    """
    image_x, image_y, image_sum = (
        make(v, m)() for v in (x, y, [2 * a.float() + b.float() for a, b in zip(x, y, strict=True)])
    )
    errors = []
    for image, vector in ((image_x, x), (image_y, y)):
        assert image.shape == (m,), f"expected {m} numbers, got shape {tuple(image.shape)}"
        flat = _flat(vector).double()
        exact = float(flat.square().sum())
        standard_error = math.sqrt(2 * (exact**2 - float(flat.pow(4).sum())) / m)
        off = abs(float(image.double().square().sum()) - exact)
        allowed = STANDARD_ERRORS * standard_error + 1e-5 * exact
        assert off <= allowed, f"|x|^2 = {exact:.4g} is off by {off:.3g}, allowed {allowed:.3g}"
        errors.append(off / exact)
    off = float((2 * image_x + image_y - image_sum).norm() / image_sum.norm())
    assert off <= _ROUNDING, f"not linear: off by {off:.3g} of the norm"
    return errors[0]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).float() for t in tensors])


PEERS = (
    Projector("TRAK's projector", trak, most_products=2e8, bytes_per_element=4 * _TRAK_BLOCK),
    Projector("dense signs in plain torch, drawn in blocks", dense, most_products=2e9),
    Projector("count sketch by index_add_, stored tables", stored_count_sketch, bytes_per_element=56),
)
