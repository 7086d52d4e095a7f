"""Where the surviving weights go back to before each level's training.

"init"      theta_0: the paper's own strategy (1803.03635, appendix B, strategy 1)
"500it"     theta_k, the weights after k = 500 optimiser steps of level 0 (Frankle et al. 2019, 1903.01611)
"continue"  nowhere: the trained weights train on (strategy 2); the ticket itself still holds theta_0
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["Rewind"]


@dataclass(frozen=True)
class Rewind:
    """A parsed ``rewind`` argument.

    Attributes:
        name: what the user typed.
        step: optimiser steps of level 0 after which the weights are taken; 0 is initialisation.
        keeps_training: True for "continue".
    """

    name: str
    step: int
    keeps_training: bool

    @classmethod
    def parse(cls, text: str) -> Rewind:
        """Read "init", "continue" or a number of iterations such as "500it".

        Raises:
            ArgumentError, ArgumentTypeError: anything else.
        """
        if not isinstance(text, str):
            raise ArgumentTypeError(expected("rewind", "a string such as 'init' or '500it'", text))
        if text in ("init", "continue"):
            return cls(text, 0, text == "continue")
        match = re.fullmatch(r"(\d+)it", text)
        if match is None:
            what = "'init', 'continue' or a number of steps such as '500it'"
            raise ArgumentError(expected("rewind", what, repr(text)))
        return cls(text, int(match[1]), False)
