"""The recipe `tabular` against scikit-learn on the same rows: gradient boosting, and a linear model.

    pip install scikit-learn          # castiron does without it
    python scripts/bench_tabular.py --data DATA default diabetes_linear adult telco_churn …

DATA holds the folders adult, telco_churn, …; scikit-learn sees the training rows as the recipe encodes them
(for boosting, categories stay categories), and neither sees the test rows before the end.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from castiron.training.backend import Silent
from castiron.training.config_file import load_config
from castiron.training.launch import train
from castiron.training.splits import load_splits

FILES = {
    "adult": {"train": "adult/adult-train.csv", "test": "adult/adult-test.csv"},
    "telco_churn": {"train": "telco_churn/WA_Fn-UseC_-Telco-Customer-Churn.csv"},
    "titanic": {"train": "titanic/titanic.csv"},
    "breast_cancer_wisconsin": {"train": "breast_cancer_wisconsin/breast-cancer-wisconsin.data"},
    "pima": {"train": "pima/pima-indians-diabetes.csv"},
    "auto_mpg": {"train": "auto_mpg/auto-mpg.data"},
}
"""Config → its files below DATA; a config that is not here brings its own data."""


def encoded(loaded: Any, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Split → numbers, categories, target."""
    recipe = loaded.recipe(loaded.config)
    data = load_splits(loaded.config, recipe, folder)
    recipe.learn(data["train"])
    target = loaded.config.model.target
    columns = {split: recipe.encode(part) for split, part in data.items()}
    return {s: (c["numbers"], c["categories"], c[target]) for s, c in columns.items()}


def rivals(parts: dict[str, Any], classes: bool) -> dict[str, float]:
    """Accuracy, or R², on the test rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LinearRegression, LogisticRegression

    sizes = parts["train"][1].max(0, initial=1) + 1
    words = [i for i, size in enumerate(sizes) if size <= 255]

    def wide(split: str) -> np.ndarray:
        numbers, categories, _ = parts[split]
        codes = [np.eye(size)[np.minimum(categories[:, k], size - 1)] for k, size in enumerate(sizes)]
        return np.concatenate([numbers, *codes], axis=1)

    def trees(split: str) -> np.ndarray:
        numbers, categories, _ = parts[split]
        return np.concatenate([numbers, categories], axis=1)

    first = parts["train"][0].shape[1]
    kind = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    boosting = kind(random_state=0, categorical_features=[first + i for i in words] or None)
    linear = LogisticRegression(max_iter=5000) if classes else LinearRegression()
    y, told = parts["train"][2], parts["test"][2]
    return {
        "boosting": boosting.fit(trees("train"), y).score(trees("test"), told),
        "linear": linear.fit(wide("train"), y).score(wide("test"), told),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value")
    given = parser.parse_args()
    print(f"{'config':<26}{'rows':>14}{'boosting':>10}{'linear':>10}{'castiron':>10}  by seed")
    for name in given.configs:
        files = [f"data.{split}={given.data / path}" for split, path in FILES.get(name, {}).items()]
        scores, theirs = [], []
        for seed in given.seeds:
            words = [*files, *given.set, f"seed={seed}", "trainer.threads=1"]
            loaded = load_config(f"tabular/{name}", words)
            with tempfile.TemporaryDirectory() as folder:
                parts = encoded(loaded, Path(folder) / "data")
                _, outcome = train(loaded, runs=Path(folder), name="run", reporter=Silent())
            classes = loaded.config.model.classes is not None
            theirs.append(rivals(parts, classes))
            scores.append(outcome.metrics["test"]["accuracy" if classes else "r2"])
        rows = f"{len(parts['train'][2]):,}/{len(parts['test'][2]):,}"
        means = [np.mean([t[key] for t in theirs]) for key in ("boosting", "linear")] + [np.mean(scores)]
        told = "".join(f"{mean:>10.4f}" for mean in means)
        print(f"{name:<26}{rows:>14}{told}  {', '.join(f'{s:.4f}' for s in scores)}", flush=True)


if __name__ == "__main__":
    main()
