"""Asking several times."""

from __future__ import annotations

from bench.attacks.base import Attack


class Sampled(Attack):
    """Outputs are sampled, several a prompt."""

    name = "sampled"
    rank = 40
    temperature = 0.8
