import pytest

from macai.coreml.fewer_bits import CALIBRATION_TOKENS, FEWEST_TOKENS, PIECE, text_pieces
from macai.errors import UsageError


@pytest.mark.parametrize("count", [FEWEST_TOKENS, 200, PIECE + 1, 3 * PIECE, 10**5])
def test_text_is_two_pieces_or_more_in_its_order(count):
    pieces = [piece[0].tolist() for piece in text_pieces(range(count))]
    assert len(pieces) >= 2
    assert all(len(piece) <= PIECE for piece in pieces)
    joined = [token for piece in pieces for token in piece]
    used = min(count, CALIBRATION_TOKENS)
    assert joined == list(range(len(joined)))
    assert used - PIECE // 2 <= len(joined) <= used


def test_a_word_is_no_text_to_calibrate_with():
    with pytest.raises(UsageError, match="3 tokens") as error:
        text_pieces([1, 2, 3])
    assert error.value.hint
