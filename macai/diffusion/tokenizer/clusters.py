"""Text as Swift's Characters: grapheme clusters, with the conjuncts of Indic scripts whole."""

import re
import unicodedata

from tokenizers import Regex, pre_tokenizers

_CLUSTERS = pre_tokenizers.Split(Regex(r"\X"), "isolated")  # Oniguruma has no rule for conjuncts

_VIRAMAS = "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d"
_CONSONANT = re.compile(
    "[\u0915-\u0939\u0958-\u095f\u0978-\u097f"  # Devanagari
    "\u0995-\u09a8\u09aa-\u09b0\u09b2\u09b6-\u09b9\u09dc-\u09dd\u09df\u09f0-\u09f1"  # Bengali
    "\u0a95-\u0aa8\u0aaa-\u0ab0\u0ab2-\u0ab3\u0ab5-\u0ab9\u0af9"  # Gujarati
    "\u0b15-\u0b28\u0b2a-\u0b30\u0b32-\u0b33\u0b35-\u0b39\u0b5c-\u0b5d\u0b5f\u0b71"  # Oriya
    "\u0c15-\u0c28\u0c2a-\u0c39\u0c58-\u0c5a"  # Telugu
    "\u0d15-\u0d3a]"  # Malayalam
)
_JOINER = "\u200d"


def clusters(text: str) -> list[str]:
    """Cut a text into what Swift 6 counts as characters.

    Rule GB9c of Unicode's annex 29 as Swift has it: a consonant, a virama among marks that combine,
    and the next consonant are one.
    """
    found: list[str] = []
    for cluster, _ in _CLUSTERS.pre_tokenize_str(text):
        if found and _CONSONANT.match(cluster) and _waits(found[-1]):
            found[-1] += cluster
        else:
            found.append(cluster)
    return found


def _waits(cluster: str) -> bool:
    """Return whether the last consonant of a cluster has a virama and no vowel."""
    virama = False
    for letter in reversed(cluster):
        if letter in _VIRAMAS:
            virama = True
        elif letter != _JOINER and not unicodedata.combining(letter):
            return virama and _CONSONANT.match(letter) is not None
    return False
