"""Peers that need a package or a card, as implementations like any other."""

from collections.abc import Callable

from torch import Tensor

from bench.common.implementations.base import Implementation, Work
from bench.common.implementations.torch_impl import check_norm
from bench.common.problem import Problem
from bench.peers import card_norms, projectors
from bench.peers.available import Missing
from bench.peers.projectors import Projector


def _norm(name: str, make: Callable[..., Callable[[], Tensor]]) -> Implementation:
    return Implementation(name, lambda problem: check_norm(problem, make(problem.g.tensors)))


def _projector(peer: Projector) -> Implementation:
    def build(problem: Problem) -> Work:
        n, m = problem.g.n_elements, problem.case.buckets
        if n * m > peer.most_products:
            raise Missing(f"{n * m:.1e} products a call; it is timed up to {peer.most_products:.0e}")
        x = problem.g.tensors
        error = 0.0 if problem.again else projectors.check_projection(peer.make, x, problem.second.tensors, m)
        return Work(peer.make(x, m), error)

    return Implementation(peer.name, build, lambda case: peer.bytes_per_element / 4)


NORMS = [_norm(*peer) for peer in card_norms.PEERS.items()]
PROJECTORS = [_projector(peer) for peer in projectors.PEERS]
