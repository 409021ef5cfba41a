"""Frames of sweeps, made by hand: one row per trial."""

import numpy as np
import pandas as pd

RTE = {"task": "rte", "metric": "accuracy", "better": 1, "percent": True, "train_size": 2490}
STSB = RTE | {"task": "stsb", "metric": "Pearson correlation", "train_size": 5749}
WIKI = RTE | {"task": "wiki", "metric": "perplexity", "better": -1, "percent": False}
PLAIN = {"method": "plain", "p": np.nan, "q": np.nan}
ADDROP = {"method": "ad-drop", "p": 0.3, "q": 0.3}
ANY = {
    "attribution": "GA", "layers": "all", "target": "pseudo", "region": "high", "cross_tuning": True, "shots": np.nan,
    "share": np.nan, "lr": np.nan, "batch_size": np.nan, "best_epoch": 3, "step_ms": 100.0, "plain_step_ms": 100.0,
    "fraction_dropped": 0.09,
}  # fmt: skip


def trial(dev, test=np.nan, seed=0, task=RTE, method=ADDROP, **columns):
    return ANY | task | method | {"seed": seed, "dev_score": dev, "test_score": test} | columns


def repeated(tests, **columns):
    """One trial per seed; the dev score is that of the test."""
    return [trial(score, score, seed, **columns) for seed, score in enumerate(tests)]


def frame(*trials):
    return pd.DataFrame(trials)
