"""Losses that compare two answers: one a file, by the name it has in a recipe.

Each is a function of `Compared` and the numbers of a recipe's `loss` it names, to the loss of each
two, float32 [P].
"""

from collections.abc import Mapping

from macai.train.losses.compared import Compared as Compared
from macai.train.losses.compared import PairLoss as PairLoss
from macai.train.losses.dpo import DPO
from macai.train.losses.kto import KTO
from macai.train.losses.orpo import ORPO
from macai.train.losses.simpo import SIMPO

LOSSES: Mapping[str, PairLoss] = {"dpo": DPO, "orpo": ORPO, "kto": KTO, "simpo": SIMPO}
