"""The ways that need a package or a card of their own, as ways of measuring like any other."""

from bench.common.problem import Problem
from bench.common.torch_ways import check_norm
from bench.common.ways import Way, Work
from bench.peers import card_norms, projectors
from bench.peers.available import Missing, Peer
from bench.peers.projectors import Projector


def _norm(peer: Peer) -> Way:
    return Way(peer.name, lambda problem: check_norm(problem, peer.make(problem.g.tensors)))


def _projector(peer: Projector) -> Way:
    def build(problem: Problem) -> Work:
        n, m = problem.g.n_elements, problem.case.buckets
        if n * m > peer.most_products:
            raise Missing(f"{n * m:.1e} products a call; it is timed up to {peer.most_products:.0e}")
        x = problem.g.tensors
        error = 0.0 if problem.again else projectors.check_projection(peer.make, x, problem.second.tensors, m)
        return Work(peer.make(x, m), error)

    return Way(peer.name, build, lambda case: peer.bytes_per_element / 4)


NORMS = [_norm(peer) for peer in card_norms.PEERS]
PROJECTORS = [_projector(peer) for peer in projectors.PEERS]
