"""Whether an encoder knows the words of a text, as far as its tokenizer shows it."""

import re

from clipseg3d.clip.encoder import TextEncoder

REFERENCE = (
    "There is an enhancing mass with central necrosis in the left temporal lobe. "
    "The surrounding oedema reaches the frontal white matter and compresses the ventricle. "
    "A smaller lesion without contrast enhancement lies in the right parietal lobe."
)
"""English as radiologists write it, which every encoder here is meant to read."""
TOKENS_PER_LETTER, TIMES_REFERENCE = 0.45, 2.0
"""A text that needs more than both, the latter times what :data:`REFERENCE` needs, is unknown."""
_WORD = re.compile(r"[^\W_]+")
_SHORT, _LEAST = 3, 6
"""Words of so many letters are not counted; a text needs so many letters in counted ones."""
_NO_TOKENIZER = 3  # tokens that an encoder must read at least: start, one piece and end


def is_probably_unknown(encoder: TextEncoder, text: str) -> bool:
    """Return whether a text is probably not understood: an encoder does not know its words.

    A tokenizer cuts words that were rare in its own training into many pieces. A text counts as
    unknown if it needs more than 0.45 tokens per letter, and more than twice as many as English
    does (some tokenizers have a token per letter). Abbreviations, short words and words with digits
    are not counted. A text of nothing else, or of one word such as ``tumor``, which says too
    little, is taken as known, and so is every text of an encoder without a tokenizer.

    Measured with the CLIP that comes with the package: as unknown are taken none of 1,000 short
    English prompts and of 382 reports, 2 of 190 texts that others wrote (a name, and a question
    about rain), 9 of 10 German phrases, 9 of 9 French ones, and all Chinese, Arabic and Russian
    ones. OpenAI's tokenizer has pieces of many languages, so that few phrases of these are noticed.

    Args:
        encoder: whose tokenizer is asked.
        text: any.
    """
    if encoder.max_tokens < _NO_TOKENIZER:
        return False
    usual = TIMES_REFERENCE * _tokens_per_letter(encoder, REFERENCE)
    return _tokens_per_letter(encoder, text) > max(TOKENS_PER_LETTER, usual)


def _tokens_per_letter(encoder: TextEncoder, text: str) -> float:
    """Return the tokens per letter of words that tell languages apart; 0 if there are too few."""
    words = [word for word in _WORD.findall(text) if not word.isascii() or _is_plain(word)]
    letters = sum(map(len, words))
    if not letters or (letters < _LEAST and text.isascii()):
        return 0.0
    return (encoder.count_tokens(" ".join(words)) - encoder.count_tokens("")) / letters


def _is_plain(word: str) -> bool:
    """Return whether a word of ASCII is neither short nor an abbreviation such as T1ce or FLAIR."""
    return len(word) > _SHORT and word.isalpha() and not word.isupper()
