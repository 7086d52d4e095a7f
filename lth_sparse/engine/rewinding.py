"""Where the surviving weights go back to before each level's training.

"init"      theta_0: the paper's own strategy (1803.03635, appendix B, strategy 1)
"500it"     theta_k, the weights after k = 500 optimiser steps of level 0 (Frankle et al. 2019, 1903.01611)
"3ep"       the same after 3 epochs, which the training loop counts with ``level.epoch()``
"auto"      theta_k for the smallest candidate k at which training is stable, see ``engine/stability.py``
"continue"  nowhere: the trained weights train on (strategy 2); the ticket itself still holds theta_0
"lr"        nowhere, and the whole learning rate schedule is replayed (Renda et al. 2020, 2003.02389): as "continue",
            but the ticket holds the weights that its own training began with
"finetune"  as "lr", at the learning rate with which level 0 ended: of what is attached, an optimiser gets its groups of
            then, without momentum, and a scheduler its state of then

With the last three nothing but the weights is carried from level to level; a training loop that wants fewer steps for
fine-tuning reads ``level.finetunes``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["END", "START", "Moment", "Rewind"]

#: When a copy of everything is taken in level 0: ("step", k), ("epoch", k) or ("end", 0).
Moment = tuple[str, int]

START: Moment = ("step", 0)
END: Moment = ("end", 0)


@dataclass(frozen=True)
class Rewind:
    """A parsed ``rewind`` argument.

    Attributes:
        name: what the user typed.
        moment: of level 0, whose weights or learning rate come back; START is initialisation; None for "auto", which
            finds it.
        keeps_training: the weights are those that the level before ended with.
        keeps_start: the ticket's initial weights are those that its training began with, not theta_0.
    """

    name: str
    moment: Moment | None
    keeps_training: bool = False
    keeps_start: bool = True

    @classmethod
    def parse(cls, text: str) -> Rewind:
        """Read one of the words above, a number of steps such as "500it" or of epochs such as "3ep".

        Raises:
            ArgumentError, ArgumentTypeError: anything else.
        """
        if not isinstance(text, str):
            raise ArgumentTypeError(expected("rewind", "a string such as 'init' or '500it'", text))
        words = {
            "init": cls(text, START),
            "auto": cls(text, None),
            "continue": cls(text, START, keeps_training=True, keeps_start=False),
            "lr": cls(text, START, keeps_training=True),
            "finetune": cls(text, END, keeps_training=True),
        }
        if text in words:
            return words[text]
        match = re.fullmatch(r"(\d+)(it|ep)", text)
        if match is None:
            what = f"{', '.join(map(repr, words))}, a number of steps such as '500it' or of epochs such as '3ep'"
            raise ArgumentError(expected("rewind", what, repr(text)))
        count = int(match[1])
        return cls(text, ("epoch" if match[2] == "ep" and count else "step", count))

    @property
    def finetunes(self) -> bool:
        """The learning rate is that of level 0's end."""
        return self.moment == END
