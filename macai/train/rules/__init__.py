"""How a gradient becomes a step: one rule a file, by the name it has in a recipe."""

from collections.abc import Mapping

from macai.train.rules.adafactor import adafactor
from macai.train.rules.adamw import adamw
from macai.train.rules.adamw8bit import adamw8bit
from macai.train.rules.lion import lion
from macai.train.rules.muon import muon
from macai.train.rules.rule import Options as Options
from macai.train.rules.rule import Part as Part
from macai.train.rules.rule import Rule as Rule

RULES: Mapping[str, Rule] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "adafactor": adafactor,
    "lion": lion,
    "muon": muon,
}
