"""Words of the WordNet ids that subsets of ImageNet call their class folders by: `wordnet.tsv`, read once."""

from __future__ import annotations

import functools
from importlib import resources


@functools.cache
def wordnet_words() -> dict[str, dict[str, str]]:
    """Data set -> id -> words, synonyms behind commas ("goldfish, Carassius auratus"); ids in the data set's order."""
    found: dict[str, dict[str, str]] = {}
    lines = (resources.files("dfkd_fast.config") / "wordnet.tsv").read_text(encoding="utf-8").splitlines()
    for line in lines[1:]:  # the first says what the file is
        if line.startswith("# "):
            words = found.setdefault(line.removeprefix("# "), {})
        else:
            name, _, written = line.partition("\t")
            words[name] = written
    return found
