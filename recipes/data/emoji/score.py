"""Score generated emoji: is the right one among the nearest, and in which style is it drawn?

python recipes/data/emoji/score.py --data emoji --pictures generated [--json]

`generated` is a folder of pictures with metadata.jsonl, captions as in the data. The feature was
fixed before any model was trained; README.md tells how far it can be trusted.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pictures import HARMS, Gallery, Pixels, gallery_of, harmed, read_folder, read_style
from style import StyleClassifier, described


@dataclass(frozen=True, slots=True)
class Score:
    """What generated pictures are.

    Attributes:
        pictures: How many.
        emoji: How many they were compared with.
        top_1, top_10: Shares whose right emoji is the nearest, or among the nearest ten.
        unrelated_top_10: The same share with each picture under every other's caption.
        fluent: Share that the style classifier calls Fluent.
    """

    pictures: int
    emoji: int
    top_1: float
    top_10: float
    unrelated_top_10: float
    fluent: float


def score(
    pictures: Pixels, captions: Sequence[str], gallery: Gallery, classifier: StyleClassifier
) -> Score:
    """Score uint8 [N, 64, 64, 3], each under its caption: see `Score`."""
    places = gallery.places(captions)
    ranks = gallery.all_ranks(pictures)[:, places]
    own = np.diag(ranks)
    others = ranks[places[:, None] != places]
    return Score(
        pictures=len(pictures),
        emoji=len(gallery.captions),
        top_1=float((own == 1).mean()),
        top_10=float((own <= 10).mean()),
        unrelated_top_10=float((others <= 10).mean()) if others.size else 0.0,
        fluent=float(classifier.is_fluent(described(gallery, pictures)).mean()),
    )


def sanity(data: Path) -> dict[str, float]:
    """Measure the measure: find real pictures that are harmed. style.py measures itself."""
    names, noto, captions = read_style(data / "noto")
    other_names, fluent, _ = read_style(data / "fluent")
    gallery = Gallery.of(noto, [frozenset(texts) for texts in captions])
    first = [texts[0] for texts in captions]
    report = {}
    for name, harm in HARMS.items():
        ranks = np.array(gallery.ranks(harmed(noto, harm), first))
        report[f"{name}_top_1"] = float((ranks == 1).mean())
        report[f"{name}_top_10"] = float((ranks <= 10).mean())
    turned = np.array(gallery.ranks(noto, [*first[101:], *first[:101]]))
    report["unrelated_top_10"] = float((turned <= 10).mean())
    places = {name: i for i, name in enumerate(names)}
    same = gallery.ranks(fluent, [first[places[name]] for name in other_names])
    report["fluent_top_10"] = float((np.array(same) <= 10).mean())
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="what make.py wrote")
    parser.add_argument("--pictures", type=Path, help="left out: measure the measure itself")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    given = parser.parse_args(arguments)
    if given.pictures is None:
        report = sanity(given.data)
    else:
        _, pictures, captions = read_folder(given.pictures)
        first = [texts[0] for texts in captions]
        classifier = StyleClassifier.read()
        report = asdict(score(pictures, first, gallery_of(given.data), classifier))
    if given.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    main()
