"""CLIP's byte-pair tokenizer: the shipped vocabulary or a model's own, as in Python or in Swift.

Embeddings learnt by textual inversion are not here. They would come in as further `AddedToken`s of
`folder.Settings`, each with an id past the vocabulary, and as rows appended to the text encoder's
`token_embedding`; a token of n vectors takes n ids, put in its place after `ClipTokenizer.encode`.
"""

from macai.diffusion.tokenizer.clip import ClipTokenizer as ClipTokenizer
from macai.diffusion.tokenizer.swift import Difference as Difference
from macai.diffusion.tokenizer.swift import WordDifference as WordDifference
