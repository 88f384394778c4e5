"""Try the same few settings for every network that is a rival, and keep the table: some minutes on one core.

    METAVOL_DATA=DIR OMP_NUM_THREADS=1 python tools/tune_rivals.py

Every second symbol of us_equities_daily.parquet, in alphabetical order, with labels known before 2018-01-01: the half that is trained
on in the results chapter. Each setting is trained with one seed and a shortened schedule, and judged on the dates and assets that
training holds out inside that half. The test half and the dates from 2018 on are not read. Writes metavol/data/results/tuning.csv, and prints
the chosen rows: they are the defaults of chapter 23.

    METAVOL_DATA=DIR OMP_NUM_THREADS=1 python tools/tune_rivals.py --longer

asks instead whether those that read sequences were trained long enough: with the chosen settings, as long as in the league and twice as
long. Writes metavol/data/results/longer.csv.
"""
import argparse
import os
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import process_time

import pandas as pd

from metavol.features import compute_features
from metavol.files import read_bars
from metavol.neural import BODIES, TUNED, Network, Scratch, SequenceNetwork, Setting, held_out_loss, train_sequence
from metavol.network import fit_standardizer
from metavol.tasks import known_at, labelled, make_windows, thin
from metavol.training import PooledSpec, split_validation, train_network

SPLIT = "2018-01-01"
RATES = (1e-3, 3e-3, 1e-2) # Highest learning rate of the schedule
WIDTHS = {"network": (32, 64), **{kind: (16, 32) for kind in BODIES}}
BATCH = {"network": 512, **{kind: 256 for kind in BODIES}}
SCRATCH = [(rate, steps, every) for every in (True, False) for steps in (5, 20) for rate in (3e-3, 1e-2, 3e-2)]


def training_windows(folder):
    "Labelled windows of the half that is trained on."
    bars = read_bars(folder/"us_equities_daily.parquet")
    mine = bars[bars.index.get_level_values(0).isin(list(bars.index.unique(0))[::2])]
    return known_at(labelled(make_windows(compute_features(mine[mine.index.get_level_values(1) < SPLIT]))), SPLIT)


def trained(kind, width, spec, train, watch):
    "A network of one seed, and how many weights it has."
    if kind == "network":
        start = train_network(train, watch, spec, hidden_dim=width, progress=False)
        return Network((spec.seed,), spec, (start,)), sum(p.numel() for p in start.params.values())
    setting = Setting(width, spec)
    net = train_sequence(kind, train, watch, setting, progress=False)
    model = SequenceNetwork(kind, (spec.seed,), setting, nets=(net,), standardizer=fit_standardizer(train.inputs))
    return model, sum(p.numel() for p in net.parameters())


def tune_networks(train, watch, updates, kinds):
    "One row for each kind, width and rate."
    for kind in kinds:
        for width in WIDTHS[kind]:
            for rate in RATES:
                began = process_time()
                spec = PooledSpec(updates, BATCH[kind], rate, validate_every=100)
                model, parameters = trained(kind, width, spec, train, watch)
                seconds = process_time() - began
                yield dict(kind=kind, setting=f"width {width}, rate {rate:g}", loss=held_out_loss(model, watch), parameters=parameters, seconds=seconds)


def tune_scratch(watch):
    "One row for each rate, number of steps and choice of labels."
    for rate, steps, every_label in SCRATCH:
        began = process_time()
        model = Scratch((0,), rate, steps, every_label)
        loss = held_out_loss(model, watch)
        labels = "every label" if every_label else "ten labels"
        yield dict(kind="scratch", setting=f"rate {rate:g}, {steps} steps, {labels}", loss=loss, parameters=7041, seconds=process_time() - began)


def train_longer(train, watch):
    "One row for each kind that reads sequences and each length of training, settings as chosen."
    for kind in BODIES:
        for updates in (PooledSpec().updates, 2*PooledSpec().updates):
            spec = replace(TUNED[kind].spec, updates=updates)
            model, _ = trained(kind, TUNED[kind].width, spec, train, watch)
            yield dict(kind=kind, setting=f"width {TUNED[kind].width}, rate {spec.learning_rate:g}", updates=updates, loss=held_out_loss(model, watch))


def write(rows, out):
    "Print rows as they come, and keep them."
    kept = []
    for row in rows:
        print(f"{row['kind']:12} {row['setting']:40} loss {row['loss']:.5f} {row.get('updates', '')}", flush=True)
        kept.append(row)
    table = pd.DataFrame(kept)
    if "parameters" in table: table["chosen"] = table.index.isin(table.groupby("kind").loss.idxmin())
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False, float_format="%.5g")
    return table


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--updates", type=int, default=400, help="gradient steps of each setting")
    words.add_argument("--out", type=Path, default=Path(__file__).parents[1]/"metavol"/"data"/"results", help="folder to write to")
    words.add_argument("--longer", action="store_true", help="train twice as long instead")
    words.add_argument("--kinds", nargs="*", default=list(WIDTHS), choices=list(WIDTHS), help="which networks; by default all")
    asked = words.parse_args()
    if "METAVOL_DATA" not in os.environ: sys.exit("METAVOL_DATA is not set: let it name the folder that holds us_equities_daily.parquet")
    train, watch = split_validation(training_windows(Path(os.environ["METAVOL_DATA"])))
    if asked.longer:
        write(train_longer(train, watch), asked.out/"longer.csv")
        return
    table = write(chain(tune_networks(train, watch, asked.updates, asked.kinds), tune_scratch(thin(watch, 5))), asked.out/"tuning.csv")
    print(table[table.chosen].to_string(index=False))


if __name__ == "__main__": main()
