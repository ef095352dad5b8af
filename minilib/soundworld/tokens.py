"""Codes whose likelihood is known: a hidden Markov model with Q codes a frame.

Given the state, the codes of a frame are independent. Seen from the past alone, which
leaves the state open, they are not: their total correlation (Watanabe, IBM Journal of
Research and Development 4, 1960) is what a model loses that draws them independently.
Language models of codes are measured against it (chapter 20).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenProcess:
    """A stationary hidden Markov model over frames of Q codes, in float64."""

    move: Tensor  # (H, H), from state (row) to state
    emit: Tensor  # (Q, H, K), each codebook's codes in each state

    @classmethod
    def draw(
        cls, seed: int, n_states: int = 8, n_q: int = 4, n_codes: int = 8,
        contrast: float = 3.0, told: bool = True,
    ) -> TokenProcess:  # fmt: skip
        """Draw a process.

        Args:
            n_states, n_q, n_codes: H, Q and K.
            contrast: the larger, the more a state says of its codes: the standard
                deviation of the logits of the codes; 1 is that of the next state.
            told: whether the first code tells the state. Then the state is known after
                each frame, and `exact` holds.
        Raises:
            ValueError: `told` with more states than codes.
        """
        if told and n_states > n_codes:
            most = f"{n_codes}, as many as codes, if these tell it"
            raise ValueError(f"n_states must be at most {most}, not {n_states}")
        generator = torch.Generator().manual_seed(seed)
        drawn = lambda *shape: torch.randn(
            shape, generator=generator, dtype=torch.float64
        )
        move = drawn(n_states, n_states).softmax(dim=1)
        logits = contrast * drawn(n_q, n_states, n_codes)
        if told:  # state h has the codes h, h + H, ... of the first codebook to itself
            own = torch.arange(n_codes) % n_states == torch.arange(n_states)[:, None]
            logits[0].masked_fill_(~own, -torch.inf)
        return cls(move, logits.softmax(dim=2))

    @property
    def start(self) -> Tensor:
        """The stationary distribution of the state: (H,)."""
        return torch.linalg.matrix_power(self.move, 2**16)[0]

    def sample(self, n: int, M: int, generator: torch.Generator) -> Tensor:
        """n clips of M frames: (n, M, Q) long."""
        state = torch.multinomial(self.start, n, replacement=True, generator=generator)
        frames = []
        for _ in range(M):
            codes = [
                torch.multinomial(p[state], 1, generator=generator) for p in self.emit
            ]
            frames.append(torch.cat(codes, dim=1))  # (n, Q)
            after = torch.multinomial(self.move[state], 1, generator=generator)
            state = after[:, 0]
        return torch.stack(frames, dim=1)

    def log_prob(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What can be known of codes (B, M, Q) from the frames before, in nats.

        By the forward algorithm (Baum et al., Annals of Mathematical Statistics 41,
        1970): the log-probability of each frame (B, M), and of each code by itself
        (B, M, Q), which is the most that heads in parallel can reach.
        """
        belief = self.start.expand(len(codes), -1)  # (B, H), of the state to come
        frames, each = [], []
        for now in codes.unbind(dim=1):  # (B, Q)
            said = torch.stack([p[:, c].T for p, c in zip(self.emit, now.T)])
            each.append((belief * said).sum(dim=2).log().T)  # (B, Q)
            joint = belief * said.prod(dim=0)  # (B, H)
            frames.append(joint.sum(dim=1).log())
            belief = joint / joint.sum(dim=1, keepdim=True) @ self.move
        return torch.stack(frames, dim=1), torch.stack(each, dim=1)

    def entropies(self, belief: Tensor) -> tuple[Tensor, Tensor]:
        """The entropy of a frame and the total correlation of its codes, in nats, where
        the state has probabilities belief (N, H): (N,) each, by a sum over K^Q frames.
        """
        Q, _, K = self.emit.shape
        all_frames = torch.tensor(list(itertools.product(range(K), repeat=Q)))
        said = torch.stack([self.emit[q][:, all_frames[:, q]] for q in range(Q)])
        entropy = torch.special.entr(belief @ said.prod(dim=0)).sum(dim=1)
        alone = torch.special.entr(belief @ self.emit).sum(dim=(0, 2))
        return entropy, alone - entropy

    def exact(self, M: int) -> tuple[float, float]:
        """The entropy and the total correlation of a frame given those before it, in
        nats, mean over M frames: the floor of every model, and what heads in parallel
        lose to it.

        Raises:
            ValueError: the first code does not tell the state.
        """
        if ((self.emit[0] > 0).sum(dim=0) > 1).any():
            said = "the first code must tell the state: draw the process with told=True"
            raise ValueError(said)
        first = self.entropies(self.start[None])
        later = self.entropies(self.move)  # (H,), after each state
        means = [(x[0] + (M - 1) * self.start @ y) / M for x, y in zip(first, later)]
        return float(means[0]), float(means[1])
