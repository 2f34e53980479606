"""Weights of another run as the start of a new one: every layer that fits, the others named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from training.engine.checkpoint import load_run
from training.models.retrieval_model import RetrievalModel

# Table with a row for each word of the tokenizer, by the end of its name.
WORDS = "word_embeddings.weight"
# Tables whose rows belong to the numbers of words: with another vocabulary, those of other words.
NUMBERS = ("embeddings.pairs.weight", "words.pairs.weight", "text.vectors.weight")
# Names shown of layers that do not fit.
SHOWN = 6


def load_initial_weights(model: RetrievalModel, tokenizer: Any, run_dir: Path) -> str:
    """Copies the weights of the best checkpoint of `run_dir` into `model` where name and shape fit, and returns a sentence
    about what was copied and what was not.

    The rows of the word embeddings follow the words: those that both tokenizers know are copied, and none of NUMBERS. Raises
    ValueError, before anything is changed, when no weight matrix fits, and what `load_run` raises.
    """
    source = load_run(run_dir, device=str(next(model.parameters()).device))
    theirs, ours = source.model.state_dict(), model.state_dict()
    vocabularies: tuple[dict[str, int], dict[str, int]] = (source.tokenizer.get_vocab(), tokenizer.get_vocab())
    by_word = vocabularies[0] != vocabularies[1]
    of_words = (WORDS, *NUMBERS) if by_word else ()
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in ours and ours[name].shape == value.shape and not name.endswith(of_words)
    }
    if not any(value.ndim > 1 for value in fitting.values()):
        raise ValueError(
            f"--init {run_dir}: none of its weight matrices fits this model; expected a run of the same architecture and sizes"
        )
    notes = [f"{len(fitting)} of {len(ours)} tensors from {run_dir} (epoch {source.epoch})"]
    for name in [name for name in theirs if name.endswith(WORDS) and name in ours and by_word]:
        rows, copied = _rows_by_word(ours[name], theirs[name], *vocabularies)
        if copied:
            fitting[name] = rows
            notes.append(f"{copied} of {len(vocabularies[1])} words of {name}")
    model.load_state_dict(fitting, strict=False)
    for what, names in (("new", ours.keys() - fitting.keys()), ("not used of the run", theirs.keys() - fitting.keys())):
        if names:
            notes.append(f"{what}: {_listed(names)}")
    return "; ".join(notes)


def _rows_by_word(ours: Tensor, theirs: Tensor, old: dict[str, int], new: dict[str, int]) -> tuple[Tensor, int]:
    """(our table with their rows of the words that both know, number of these); no row for tables of different width."""
    common = [word for word in new if word in old]
    if ours.shape[1:] != theirs.shape[1:] or not common:
        return ours, 0
    result = ours.clone()
    result[[new[word] for word in common]] = theirs[[old[word] for word in common]].to(result)
    return result, len(common)


def _listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} others" if len(listed) > SHOWN else "")
