"""Predict, then run: the reader's guess beside what the run says."""

from collections.abc import Mapping


def settle(guess: str, answers: Mapping[str, str], measured: str) -> None:
    """Print what the run says, and whether the reader's `guess` says it too.

    answers: a letter -> its sentence. measured: the letter that the run's own numbers give.
    ValueError where the guess is neither "?" nor one of the letters.
    """
    letters = ", ".join(answers)
    if guess not in ("?", *answers):
        raise ValueError(f"guess={guess!r}: choose one of {letters}")
    said = {"?": f"you have not guessed ({letters})", measured: "so did you"}
    yours = said.get(guess, f"you said {guess}: {answers.get(guess)}")
    print(f"The run says {measured}: {answers[measured]} ({yours}).")
