"""Train the starting points that ship with metavol, judge them on what they never saw, and write their cards.

    METAVOL_DATA=DIR python tools/train_pretrained.py                # both; some minutes on one core
    METAVOL_DATA=DIR python tools/train_pretrained.py daily          # one of them
    METAVOL_DATA=DIR python tools/train_pretrained.py --out DIR      # writes elsewhere, to compare

Every second symbol of a file, in alphabetical order, is trained on, with labels known before `SETTINGS[name]['split']`. The
interval comes from the same recipe, trained on a part of that span and asked about the rest of it. The other symbols, from the
split on, are only scored. Writes {name}.safetensors and {name}.md.
"""
import argparse
import os
import platform
import shlex
import sys
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from metavol.classical import Ewma, Historical
from metavol.files import data_hash, read_bars
from metavol.har import Har
from metavol.features import compute_features
from metavol.neural import Network
from metavol.pretrained import forecast_windows, model_card, with_interval
from metavol.comparison import diebold_mariano
from metavol.scoring import score
from metavol.context import load_context_model, save_context_model
from metavol.league import LeagueSpec, train_one_number
from metavol.tasks import DAILY, HOURLY, asked_between, known_at, labelled, make_windows, thin
from metavol.training import split_validation
from metavol.walk_forward import Entrant, walk_forward

SETTINGS = {
    "daily": dict(file="us_equities_daily.parquet", split="2018-01-01", task=DAILY, bar="1 day",
                  source="138 large US companies, daily bars from Yahoo, adjusted for splits and dividends",
                  market="US stocks, those that were large in 2023"),
    "hourly": dict(file="crypto_hourly.parquet", split="2022-07-01", task=HOURLY, bar="1 hour",
                   source="11 Binance spot pairs against USDT, hourly candles", market="large coins")}
SEEDS = (0, 1, 2)
RECIPE = "pooled network, then weights and the rates of one adapted number together (chapters 13, 14 and 28)"


def train(windows, task):
    "The learner: from labelled windows to the pooled network it began with and the forecaster it became."
    spec = LeagueSpec(train=("these",), test=("others",), split="2000-01-01", task=task, seeds=SEEDS)
    network = Network(spec.seeds, spec.pooled, progress=True).adapt(windows)
    return network, train_one_number(windows, network, spec)


def windows_of(bars, symbols, task):
    "All labelled windows of some assets."
    return labelled(make_windows(compute_features(bars[bars.index.get_level_values(0).isin(symbols)]), task))


def judge(name, windows, model, rivals):
    "Scores of all models on the same origins, and how often the interval held."
    every = windows.history.spec.horizon
    asked = thin(windows, every)
    forecasts = walk_forward([*rivals, Entrant("Meta-Vol", model, "full_history", "each_task")], asked, progress=False)
    scores = score(forecasts)
    def p(rival, loss): return None if rival == "Meta-Vol" else round(diebold_mariano(forecasts, rival, "Meta-Vol", loss, every, every).p_value, 4)
    rows = {rival: dict(mse_relative=round(row.mse/scores.mse["Historical"], 5), qlike=round(row.qlike, 5), p_mse=p(rival, "mse"), p_qlike=p(rival, "qlike"))
            for rival, row in scores.sort_values("mse").iterrows()}
    answered = forecast_windows(model, asked).loc[forecasts.index]
    below, above = ((side(forecasts.realized, answered[edge])).mean() for side, edge in ((pd.Series.lt, "low"), (pd.Series.gt, "high")))
    time = forecasts.index.get_level_values("time")
    return dict(name=name, symbols=sorted(forecasts.index.unique(0)), first=f"{time.min():%Y-%m-%d}", last=f"{time.max():%Y-%m-%d}", origins=len(forecasts),
                models=rows, coverage=dict(inside=round(1 - below - above, 4), below=round(below, 4), above=round(above, 4)))


def limits(settings):
    "What the model is not for, in words."
    return [f"It knows {settings['market']}: other markets, and companies or coins that failed since, may behave otherwise.",
            f"It forecasts {settings['task'].horizon} bars of {settings['bar']} ahead and nothing else.",
            "Bars must be adjusted for splits, or a split looks like a crash.",
            "The interval is one pair of factors for all assets and times. It holds its level on average over calm and wild times, not within each.",
            "Its scores were seen by the people who built it, so differences of a per cent prove little.",
            "Nothing here is advice to trade."]


def make(name, folder):
    "Train, judge and write one model with its card."
    settings = SETTINGS[name]
    bars, task, split = read_bars(folder/settings["file"]), settings["task"], settings["split"]
    symbols = list(bars.index.unique(0))
    learned, unseen = symbols[::2], symbols[1::2]
    last = pd.Timestamp(split, tz="UTC") - pd.Timedelta("1us")
    mine = bars[bars.index.get_level_values(0).isin(learned)]
    training = known_at(windows_of(mine, learned, task), last)
    network, model = train(training, task)
    less, held_out = split_validation(training)
    interval = with_interval(train(less, task)[1], held_out).about["interval"] # Of the same recipe, on windows it was not trained on
    rivals = [Entrant("Historical", Historical(), "few_shot"), Entrant("EWMA", Ewma(), "few_shot"),
              Entrant("Pooled HAR", Har().adapt(training), "full_history"), Entrant("Network", network, "full_history")]
    tests = {"unseen assets, unseen dates": unseen, "known assets, unseen dates": learned}
    model = replace(model, about={**model.about, "interval": interval})
    later = asked_between(windows_of(bars, symbols, task), split)
    scores = [judge(what, later[np.isin(later.symbol, who)], model, rivals) for what, who in tests.items()]
    versions = {"python": platform.python_version(), **{package: version(package) for package in ("metavol", "torch", "numpy", "pandas")}}
    card = dict(source=f"{settings['source']} ({settings['file']})", data_hash=data_hash(mine[mine.index.get_level_values(1) <= last]), task=asdict(task),
                command="METAVOL_DATA=... " + shlex.join(["python", "tools/train_pretrained.py", name]), date=str(date.today()), recipe=RECIPE,
                versions=versions, scores=scores, limits=limits(settings))
    return model, {**model.about, "name": name, "bar": settings["bar"], "card": card}


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("name", nargs="*", default=list(SETTINGS), help=f"which of {', '.join(SETTINGS)}; by default all")
    words.add_argument("--out", type=Path, default=Path(__file__).parents[1]/"metavol"/"pretrained", help="folder to write to")
    asked = words.parse_args()
    if unknown := set(asked.name) - set(SETTINGS): words.error(f"there is no {', '.join(sorted(unknown))}; choose of {', '.join(SETTINGS)}")
    if "METAVOL_DATA" not in os.environ: sys.exit("METAVOL_DATA is not set: let it name the folder that holds " + " and ".join(s["file"] for s in SETTINGS.values()))
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.name:
        model, about = make(name, Path(os.environ["METAVOL_DATA"]))
        path = asked.out/f"{name}.safetensors"
        save_context_model(replace(model, about=about, history=None), path)
        (asked.out/f"{name}.md").write_text(model_card(load_context_model(path)))
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__": main()
