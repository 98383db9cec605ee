"""Programs as other people write them; `PROGRAMS` has all of them by name."""

from programs.others import everyday, gradients, sequences
from programs.others.registry import PROGRAMS

__all__ = ["PROGRAMS", "everyday", "gradients", "sequences"]
