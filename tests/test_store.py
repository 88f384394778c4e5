"Bars that were kept come back as they were, whoever is killed, whatever the disk refuses, however many write at once."
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

import metavol.store
from metavol.bars import MetavolError
from metavol.data import load_sample
from metavol.files import data_hash, read_bars
from metavol.store import RevisedError, Series, Store, StoreError, folder_name, gaps

ASKED = "2012-01-01", "2013-03-02"
AAPL, IBM, FB = (Series("yahoo", symbol, "1d") for symbol in ("AAPL", "IBM", "FB"))


FEW = load_sample("stocks").loc["FB"].iloc[:40] # read here, once for all the processes that are forked


@pytest.fixture(scope="module")
def workers():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metavol.store", "test_store"])
    return context


@pytest.fixture(scope="module")
def sample(): return load_sample("stocks").loc[pd.IndexSlice[:, "2012":], :]


@pytest.fixture
def store(tmp_path): return Store(tmp_path/"store")


@pytest.fixture
def full(store, sample):
    for series in (AAPL, IBM, FB): store.add(sample.loc[series.symbol], series, ASKED)
    return store


def results(store): return set(store.check().result)


def file_of(store, symbol): return store.root/store.manifest.set_index("symbol").file[symbol]


def break_byte(path):
    content = bytearray(path.read_bytes()); content[len(content)//2] ^= 1; path.write_bytes(content)


# What goes in comes out

def test_bars_come_back_to_the_last_bit(full, sample):
    pd.testing.assert_frame_equal(full.bars("IBM"), sample.loc["IBM"], check_freq=False)
    panel = full.bars(["IBM", "AAPL"])
    assert data_hash(panel) == data_hash(sample.loc[["AAPL", "IBM"]])
    assert data_hash(full.bars()) == data_hash(sample.loc[["AAPL", "FB", "IBM"]])
    assert panel.attrs | {"downloaded": ""} == dict(source="yahoo", market="us_equity", adjustment="none", interval="1d",
                                                    bar="1 day", downloaded="")
    assert abs(pd.Timestamp.now("UTC") - pd.Timestamp(panel.attrs["downloaded"])) < pd.Timedelta("1min")


def test_start_and_end_are_included(full, sample):
    assert len(full.bars("IBM", start="2012-03-01", end="2012-03-30")) == len(sample.loc["IBM"].loc["2012-03"])
    with pytest.raises(MetavolError, match="FB: no bars kept between"): full.bars(["AAPL", "FB"], end="2012-02-01")
    assert full.bars(end="2012-02-01").index.unique("symbol").tolist() == ["AAPL", "IBM"]


def test_one_growing_series_is_one_table(store, sample):
    ibm = sample.loc["IBM"]
    store.add(ibm.loc["2012-06":"2012-07"], IBM, ("2012-06-01", "2012-08-01"))
    store.add(ibm.loc["2013"], IBM, ("2013-01-01", "2013-03-02"))
    store.add(ibm.loc[:"2012-07-10"], IBM, ("2012-01-01", "2012-07-11"))
    assert store.missing(IBM, "2012-01-01", "2013-03-02") == [(pd.Timestamp("2012-08-01", tz="UTC"), pd.Timestamp("2013-01-01", tz="UTC"))]
    store.add(ibm, IBM, ASKED)
    assert store.missing(IBM, *ASKED) == [] and len(store.manifest) == 4
    pd.testing.assert_frame_equal(store.bars("IBM"), ibm, check_freq=False)


def test_the_same_again_changes_nothing(full, sample):
    before = {path: path.read_bytes() for path in full.root.rglob("*") if path.is_file()}
    full.add(sample.loc["IBM"], IBM, ASKED)
    assert before == {path: path.read_bytes() for path in full.root.rglob("*") if path.is_file()}


def test_nothing_in_a_span_is_remembered(store):
    for nothing in (None, pd.DataFrame()):
        store.add(nothing, FB, ("2011-01-01", "2012-01-01"))
    row, = store.manifest.itertuples()
    assert (row.rows, row.symbol) == (0, "FB") and pd.isna(row.file) and pd.isna(row.first)
    assert store.missing(FB, "2011-01-01", "2012-01-01") == [] and store.check().empty
    with pytest.raises(MetavolError, match="FB: no bars kept"): store.bars("FB")
    with pytest.raises(MetavolError, match="all symbols: no bars kept"): store.bars()


@pytest.mark.parametrize("spans, wanted", [([], [(0, 9)]), ([(0, 9)], []), ([(-5, 20)], []), ([(3, 4)], [(0, 3), (4, 9)]),
                                           ([(10, 12)], [(0, 9)]), ([(-3, -1)], [(0, 9)]), ([(0, 3), (3, 9)], []), ([(9, 11)], [(0, 9)])])
def test_gaps(spans, wanted): assert gaps(spans, 0, 9) == wanted


# Versions

def test_rounding_is_no_revision(full, sample):
    nudged = sample.loc["IBM"].copy()
    nudged[["open", "high", "low", "close"]] *= 1 + 9e-6; nudged["volume"] *= 1.009
    full.add(nudged, IBM, ASKED)
    pd.testing.assert_frame_equal(full.bars("IBM"), sample.loc["IBM"], check_freq=False)


@pytest.mark.parametrize("column, factor", [("close", 1 - 1.1e-5), ("volume", 1.011)])
def test_a_revision_is_named_and_refused(full, sample, column, factor):
    revised = sample.loc["IBM"].copy(); day = revised.index[7]
    revised.loc[day, column] *= factor
    before = full.manifest
    with pytest.raises(RevisedError, match=rf"IBM at {day:%Y-%m-%d} 00:00: {column} was .* 1 bars differ.*new_version=True"):
        full.add(revised, IBM, ASKED)
    pd.testing.assert_frame_equal(full.manifest, before)
    full.add(revised, IBM, ASKED, new_version=True)
    pd.testing.assert_frame_equal(full.bars("IBM"), revised, check_freq=False)
    pd.testing.assert_frame_equal(full.bars("IBM", version=1), sample.loc["IBM"], check_freq=False)
    assert full.query("select max(close*volume) as top from bars where symbol = 'IBM'").top[0] == (revised.close*revised.volume).max()
    with pytest.raises(MetavolError, match="no version 3; the newest is 2"): full.bars("IBM", version=3)
    with pytest.raises(MetavolError, match="AAPL: there is no version 2"): full.bars(["AAPL", "IBM"], version=2)
    assert full.bars(version=2).index.unique("symbol").tolist() == ["IBM"]


def test_adjusted_prices_join_no_others(full, sample):
    with pytest.raises(StoreError, match="have adjustment='none', those that came 'splits'"):
        full.add(sample.loc["IBM"].loc["2013"], IBM, ASKED, adjustment="splits")


def test_an_old_version_does_not_come_back_when_the_newest_is_lost(full, sample):
    full.add(sample.loc["IBM"]*[.5, .5, .5, .5, 1], IBM, ASKED, new_version=True)
    (full.root/full.manifest.query("version == 2").file.iloc[0]).unlink()
    assert full.missing(IBM, *ASKED) == [tuple(pd.Timestamp(time, tz="UTC") for time in ASKED)]
    with pytest.raises(StoreError, match="bars of IBM, is absent"): full.bars("IBM")
    full.add(sample.loc["IBM"]*[.5, .5, .5, .5, 1], IBM, ASKED)
    assert full.manifest.query("symbol == 'IBM'").version.tolist() == [1, 2] and full.missing(IBM, *ASKED) == [] and results(full) == {"good"}


def test_a_lost_file_of_an_old_version_is_struck_out(full, sample):
    full.add(sample.loc["IBM"]*[.5, .5, .5, .5, 1], IBM, ASKED, new_version=True)
    (full.root/full.manifest.query("symbol == 'IBM' and version == 1").file.iloc[0]).unlink()
    break_byte(file_of(full, "FB"))
    assert full.forget_broken().query("symbol == 'IBM'").version.tolist() == [1] and results(full) == {"good", "damaged"}
    assert full.manifest.query("symbol == 'IBM'").version.tolist() == [2] and len(full.bars("IBM"))


# Names

HOSTILE = ["^GSPC", "BTC-USD", "BRK/B", "BRK\\B", "..", ".", "CON", "con.DE", "nul", "A.", ".A", "x"*3000, "btc", "BTC", "005930", "TRUE",
           "a b", "ÄÖ", "比特币", "A%2FB", "~", "*?", "'; drop table bars; --", "{}", "NaN", "\u2028x"]


def test_hostile_names(store, sample):
    bars = sample.loc["IBM"].iloc[:30]
    names = [name for name in HOSTILE if name.isprintable()]
    for number, name in enumerate(names): store.add(bars*[1, 1, 1, 1, number + 1], Series("yahoo", name, "1d"), ASKED)
    assert results(store) == {"good"} and len(store.manifest) == len(names)
    assert all(path.resolve().is_relative_to(store.root/"bars") for path in store.root.rglob("*.parquet"))
    for number, name in enumerate(names): assert store.bars(name).volume.iloc[0] == bars.volume.iloc[0]*(number + 1)
    found = store.query("select distinct symbol from bars").symbol
    assert set(found) == set(names)
    store.rebuild()
    assert results(store) == {"good"} and set(store.manifest.symbol) == set(names)


def test_folder_names_are_plain():
    made = [folder_name(name) for name in HOSTILE]
    assert all(len(name) <= 100 and not name.startswith(".") and not name.endswith((".", " ")) for name in made)
    assert not any(set(name) & set('/\\:*?"<>| ') for name in made)
    assert not {name.split(".")[0].lower() for name in made} & {"con", "nul"}
    assert len(set(made)) == len(made)


def test_a_disk_that_ignores_case(store, sample, monkeypatch):
    monkeypatch.setattr(metavol.store, "folder_name", lambda name: folder_name(name).lower())
    bars = sample.loc["IBM"].iloc[:30]
    store.add(bars, Series("x", "BTC", "1d"), ASKED); store.add(bars*2, Series("x", "btc", "1d"), ASKED)
    lines = (store.root/"manifest.jsonl").read_text().replace("bars/x/1d/btc/", "bars/x/1d/BTC/")
    (store.root/"bars/x/1d/btc").rename(store.root/"bars/x/1d/Btc"); os.symlink("Btc", store.root/"bars/x/1d/BTC")
    (store.root/"manifest.jsonl").write_text(lines)
    store.add(bars*3, Series("x", "ETH", "1d"), ASKED)
    assert results(store) == {"good"} and len(store.manifest) == 3
    assert store.bars("btc").close.iloc[0] == 2*store.bars("BTC").close.iloc[0]


def test_names_that_are_no_names():
    for name in ("", " ", "a\nb", "a\x00b", "\ud800", None, 5):
        with pytest.raises(MetavolError, match="symbol"): Series("yahoo", name, "1d")


# What is refused

def test_one_error_for_each_mistake(full, sample):
    ibm = sample.loc["IBM"]
    for call, words in [
        (lambda: full.bars("IBN"), "did you mean IBM"),
        (lambda: full.bars("ZZZZ"), "keeps 3 symbols"),
        (lambda: full.bars([]), "needed a symbol"),
        (lambda: full.bars(5), "symbol"),
        (lambda: full.bars("IBM", source="bybit"), "choose one of: source='yahoo', interval='1d'"),
        (lambda: full.bars("IBM", start="yesterday"), "no date"),
        (lambda: full.add(ibm, IBM, ("2012-06-01", "2013-03-02")), "lies outside the span"),
        (lambda: full.add(ibm, IBM, ("2013-06-01", "2012-03-02")), "end must lie after"),
        (lambda: full.add(ibm, "IBM", ASKED), "needed a Series"),
        (lambda: full.add(ibm, IBM, "2012"), "needed two times"),
        (lambda: full.add(ibm, IBM, ("2012",)), "needed two times"),
        (lambda: full.add(sample.loc[["IBM"]], IBM, ASKED), r"use bars.loc\[symbol\]"),
        (lambda: full.add(ibm*[1, .5, 1, 1, 1], IBM, ASKED), "high is below"),
        (lambda: full.missing("IBM", *ASKED), "needed a Series"),
        (lambda: Store(5), "name of a folder"),
        (lambda: full.query("selec 1"), "(?s)syntax error.*Needed one question"),
        (lambda: full.query(""), "needed a question that begins with select"),
        (lambda: full.query(5), "needed a question"),
    ]:
        with pytest.raises(MetavolError, match=words): call()
    full.add(ibm, Series("other", "IBM", "D"), ASKED)
    with pytest.raises(MetavolError, match="IBM: kept more than once.*source='other', interval='D'; source='yahoo'"): full.bars("IBM")
    assert full.bars(["IBM", "FB"], source="yahoo").attrs["source"] == "yahoo"
    full.add(ibm, Series("other", "MSFT", "D"), ASKED)
    assert full.bars(["FB", "MSFT"]).attrs["source"] == {"FB": "yahoo", "MSFT": "other"}
    full.add(ibm, Series("other", "GOOG", "60"), ASKED)
    with pytest.raises(MetavolError, match="different lengths"): full.bars(["FB", "GOOG"])


def test_empty_store(store):
    assert repr(store) == "Store: empty" and store.manifest.empty and store.check().empty
    assert store.missing(IBM, *ASKED) == [tuple(pd.Timestamp(time, tz="UTC") for time in ASKED)]
    for call in (store.bars, lambda: store.query("select 1")):
        with pytest.raises(StoreError, match="store is empty; download something first"): call()
    assert not store.root.exists()


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("METAVOL_STORE", str(tmp_path/"named")); assert Store().root == tmp_path/"named"
    monkeypatch.delenv("METAVOL_STORE"); assert Store().root.parts[-2:] == ("metavol", "store")
    assert Store("~/x").root == Path.home()/"x"


def test_short_repr(full): assert repr(full) == "Store: 3 files, 3 symbols from 1 source, 778 bars, 2012-01-03 to 2013-03-01"


def test_a_store_right_here(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (".", "below", "../" + tmp_path.name + "/beside"):
        Store(folder).add(sample.loc["IBM"], IBM, ASKED)
        assert results(Store(folder)) == {"good"} and len(Store(folder).bars("IBM")) == 291
        Store(folder).rebuild(); assert results(Store(folder)) == {"good"}


# SQL

def test_sql_keeps_times_in_utc(full, sample, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo"); time.tzset()
    try: answer = full.query("select time, close from bars where symbol = 'IBM' and time >= '2012-06-01' order by time")
    finally: monkeypatch.undo(); time.tzset()
    wanted = sample.loc["IBM"].loc["2012-06-01":, "close"]
    assert answer.time.dt.tz is not None and str(answer.time.dt.tz) == "UTC"
    assert (answer.time.to_numpy() == wanted.index.to_numpy()).all() and (answer.close.to_numpy() == wanted.to_numpy()).all()
    assert full.query("select count(*) as files from manifest").files[0] == 3


@pytest.mark.parametrize("sql", ["copy bars to 'stolen.csv'", "copy bars to 'stolen.parquet'", "attach 'stolen.db' as s", "export database 'stolen'",
                                 "select * from read_text('{here}')", "select * from '{here}'", "select * from read_csv('{here}')",
                                 "select * from glob('/*')", "set enable_external_access=true", "install httpfs", "select * from sample",
                                 "set temp_directory='.'", "create secret (type s3)", "select getenv('HOME')"])
def test_sql_touches_no_other_file(full, sample, tmp_path, monkeypatch, sql):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MetavolError): full.query(sql.format(here=__file__))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_sql_reads_no_damaged_file(full):
    break_byte(file_of(full, "IBM"))
    with pytest.raises(StoreError, match="bars of IBM, is damaged"): full.query("select count(*) from bars where symbol = 'FB'")


# Damage

def test_every_flipped_byte_is_found(full):
    path = file_of(full, "FB"); good = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(good), size=40):
        bad = bytearray(good); bad[place] ^= 1 << (place % 8); path.write_bytes(bad)
        with pytest.raises(StoreError, match="FB, is damaged"): full.bars("FB")
    path.write_bytes(good[:-1])
    assert results(full) == {"good", "damaged"}
    assert len(full.bars(["AAPL", "IBM"])) == 582


@pytest.mark.parametrize("harm, result", [(break_byte, "damaged"), (Path.unlink, "absent")])
def test_what_is_broken_is_fetched_again(full, sample, harm, result):
    harm(file_of(full, "FB"))
    check = full.check().set_index("symbol")
    assert check.result["FB"] == result and "metavol data check --repair" in check.what_to_do["FB"]
    with pytest.raises(StoreError, match=rf"bars of FB, is {result}.*metavol data check --repair"): full.bars("FB")
    assert len(full.missing(FB, *ASKED)) == 1 and full.missing(IBM, *ASKED) == []
    full.add(sample.loc["FB"], FB, full.missing(FB, *ASKED)[0])
    assert len(list((full.root/"broken").iterdir())) == (result == "damaged")
    assert data_hash(full.bars()) == data_hash(sample.loc[["AAPL", "FB", "IBM"]]) and results(full) == {"good"}


def test_lost_manifest(full, sample):
    before = full.manifest
    (full.root/"manifest.jsonl").unlink()
    assert results(full) == {"absent", "not in the manifest"} and full.check().file[0] == "manifest.jsonl"
    with pytest.raises(StoreError, match=r"restore it with .* or Store.rebuild"): full.bars("IBM")
    full.rebuild()
    pd.testing.assert_frame_equal(full.manifest, before)
    (full.root/"manifest.jsonl").unlink()
    full.add(sample.loc["MSFT"], Series("yahoo", "MSFT", "1d"), ASKED)
    assert len(full.manifest) == 4 and results(full) == {"good"}


@pytest.mark.parametrize("text", ["{", "[]\n", "1\n", '{"file": 1}\n', "\xff", "null\n", "last"])
def test_damaged_manifest(full, sample, text):
    path = full.root/"manifest.jsonl"; before = full.manifest
    path.write_bytes(path.read_bytes()[:-40] if text == "last" else text.encode("latin-1"))
    assert repr(full).startswith("Store: manifest.jsonl does not read")
    for call in (full.bars, lambda: full.manifest, lambda: full.add(sample.loc["IBM"], IBM, ASKED), full.forget_broken):
        with pytest.raises(StoreError, match="bars are not lost: restore it from the files with .* or Store.rebuild"): call()
    assert full.check().iloc[0].file == "manifest.jsonl"
    full.rebuild()
    pd.testing.assert_frame_equal(full.manifest, before); assert results(full) == {"good"}


@pytest.mark.parametrize("name, value", [("rows", "many"), ("version", None), ("first", "soon"), ("asked_to", 5)])
def test_manifest_with_a_wrong_value(full, name, value):
    path = full.root/"manifest.jsonl"
    path.write_text("".join(json.dumps(json.loads(line) | {name: value}) + "\n" for line in path.read_text().splitlines()))
    with pytest.raises(StoreError, match="does not read"): full.bars("IBM")


def test_manifest_that_tells_another_story(full):
    path = full.root/"manifest.jsonl"; path.write_text(path.read_text().replace('"rows": 291', '"rows": 290'))
    assert results(full) == {"good", "not as the manifest says"}
    full.rebuild(); assert results(full) == {"good"}


def test_export(full, tmp_path, sample):
    assert data_hash(read_bars(full.export(tmp_path/"all.csv.gz", symbol=["IBM", "FB"]))) == data_hash(sample.loc[["FB", "IBM"]])


# A disk that refuses

LIMITED = """
import resource, signal, sys
import metavol.store, metavol.data
from metavol.store import Series, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
bars = metavol.data.load_sample('stocks').loc['IBM'].loc['2012':]
store = Store(sys.argv[1])
for limit in (0, 300, 4000, int(sys.argv[2])):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try: store.add(bars, Series('yahoo', 'IBM', '1d'), ('2012-01-01', '2013-03-02'))
    except metavol.bars.MetavolError as error: print(error)
    else: print('kept')
"""


def test_a_full_disk_leaves_the_store_good(store, sample):
    bars = sample.loc["FB"].iloc[:5]
    for number in range(40): store.add(bars, Series("yahoo", f"FB{number:02}", "1d"), ASKED)
    manifest = (store.root/"manifest.jsonl").stat().st_size # longer than the file of bars, so that both kinds of writing fail in turn
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    out = subprocess.run([sys.executable, "-c", LIMITED, store.root, str(manifest)], capture_output=True, text=True, check=True,
                         cwd=Path(metavol.store.__file__).parents[1])
    lines = out.stdout.splitlines()
    assert len(lines) == 4 and all("cannot be written (File too large)" in line and "has room" in line for line in lines), out.stdout
    assert "manifest.jsonl" in lines[-1] and "manifest.jsonl" not in lines[0]
    assert before == {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    store.add(sample.loc["IBM"], IBM, ASKED)
    assert results(store) == {"good"} and len(store.manifest) == 41


def test_a_small_disk(tmp_path, sample):
    (disk := tmp_path/"disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True).returncode: pytest.skip("mounting is not allowed here")
    try:
        store = Store(disk); kept = 0
        with pytest.raises(MetavolError, match="No space left on device.*has room"):
            for number in range(40): store.add(sample.loc["IBM"], Series("yahoo", f"S{number}", "1d"), ASKED); kept += 1
        assert 0 < kept < 40 and results(store) == {"good"} and len(store.manifest) == kept
        assert len(store.bars("S0")) == 291
    finally: subprocess.run(["umount", disk], check=True)


def test_a_folder_that_is_a_file(tmp_path, sample):
    (tmp_path/"file").write_text("")
    with pytest.raises(StoreError, match="choose a folder"): Store(tmp_path/"file").add(sample.loc["IBM"], IBM, ASKED)
    with pytest.raises(StoreError, match="choose a folder"): Store(tmp_path/"file"/"below").add(sample.loc["IBM"], IBM, ASKED)
    with pytest.raises(StoreError): Store(tmp_path/"file").bars()


def read_and_add(folder, answers):
    "What somebody gets who may read the store and not write to it."
    if os.geteuid() == 0: os.setuid(65534)
    store = Store(folder)
    answers.put(len(store.bars("S000")))
    try: store.add(FEW, IBM, ASKED)
    except StoreError as error: answers.put(str(error))


def test_no_permission(workers):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder); store.add(FEW, series_number(0), ASKED)
        os.chmod(folder, 0o555); os.chmod(store.root/".lock", 0o444)
        answers = workers.SimpleQueue()
        process = workers.Process(target=read_and_add, args=(folder, answers)); process.start(); process.join(60)
        os.chmod(folder, 0o755)
        assert answers.get() == 40
        assert "Permission denied; choose a folder that has room and that you may write to" in answers.get()


# More than one writer

def series_number(number): return Series("yahoo", f"S{number:03}", "1d")


def bars_number(number): return FEW*[1, 1, 1, 1, number + 1]


def write_many(folder, numbers, ready):
    store = Store(folder)
    ready.set()
    for number in numbers:
        if store.missing(series_number(number), *ASKED): store.add(bars_number(number), series_number(number), ASKED)


def start(workers, folder, numbers):
    ready = workers.Event()
    process = workers.Process(target=write_many, args=(folder, numbers, ready)); process.start()
    assert ready.wait(60)
    return process


def whole(store, count):
    panel = store.bars()
    wanted = pd.concat({f"S{number:03}": bars_number(number) for number in range(count)}, names=["symbol", "time"])
    return results(store) == {"good"} and data_hash(panel) == data_hash(wanted)


def test_two_processes_at_once(workers, store):
    both = [start(workers, store.root, range(first, 40, 2)) for first in (0, 1)] + [start(workers, store.root, range(0, 40, 3))]
    for process in both: process.join(60); assert process.exitcode == 0
    assert whole(store, 40) and len(store.manifest) == 40


def test_killed_at_random_moments(workers, store):
    rng, kills, left = np.random.default_rng(7), 0, set()
    for _ in range(20):
        process = start(workers, store.root, range(200))
        time.sleep(rng.uniform(0, .08)); process.kill(); process.join(60)
        kills += process.exitcode == -signal.SIGKILL
        left |= results(store)
        assert left <= {"good", "not in the manifest", "unfinished"}
    assert kills == 20
    done = len(store.manifest)
    assert 0 < done < 200
    start(workers, store.root, range(done + 5)).join(60)
    assert whole(store, done + 5)


def die_at(folder, step):
    "Add one series, and be killed just before the given call that changes the disk."
    calls = iter(range(100))

    def mortal(call):
        def changed(*args, **kwargs):
            if next(calls) == step: os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return changed
    for name in ("replace", "fsync", "unlink", "mkdir"): setattr(os, name, mortal(getattr(os, name)))
    Store(folder).add(bars_number(1), series_number(1), ASKED)


def test_killed_at_every_step(workers, tmp_path):
    seen = set()
    for step in range(20):
        store = Store(tmp_path/str(step)); store.add(bars_number(0), series_number(0), ASKED)
        process = workers.Process(target=die_at, args=(store.root, step)); process.start(); process.join(60)
        seen |= results(store)
        assert len(store.bars("S000")) == 40
        if process.exitcode == 0: break
        store.add(bars_number(2), series_number(2), ASKED)
        assert results(store) == {"good"}
        if store.missing(series_number(1), *ASKED): store.add(bars_number(1), series_number(1), ASKED)
        assert whole(store, 3)
    assert step >= 5 and seen == {"good", "not in the manifest", "unfinished"}


def test_a_lock_that_is_never_given_back(full, sample, monkeypatch):
    monkeypatch.setattr(metavol.store, "LOCK_WAIT", .1)
    with FileLock(full.root/".lock"):
        with pytest.raises(StoreError, match=r"\.lock has been held by another program for 0.1 seconds"): full.add(sample.loc["IBM"], IBM, ASKED)
        assert len(full.bars("IBM")) == 291


# Claims

def test_what_two_downloads_asked_for_is_claimed_once(sample, tmp_path):
    "Either file may be lost, and what it held is missing, whoever else had asked for it."
    year = sample.loc["IBM"]; spring, whole = ("2012-01-01", "2012-06-01"), ("2012-03-01", "2013-03-02")
    store = Store(tmp_path/"store")
    for span in (spring, whole): store.add(year.loc[span[0]:span[1]].iloc[:-1], IBM, span)
    for file in store.manifest.file:
        (store.root/file).unlink()
        missing = store.missing(IBM, "2012-01-01", "2013-03-02")
        lost = pd.concat([year[(year.index >= a) & (year.index < b)] for a, b in missing])
        assert len(missing) == 1 and len(lost) > 90
        store.add(lost, IBM, missing[0])
        assert results(store) == {"good"} and store.missing(IBM, "2012-01-01", "2013-03-02") == []


def test_a_file_that_returns_in_two_parts_is_listed_until_the_second(sample, tmp_path):
    store, year = Store(tmp_path/"store"), sample.loc["IBM"]
    store.add(year, IBM, ASKED); (store.root/store.manifest.file[0]).write_bytes(b"x")
    store.add(year.loc["2012-07":], IBM, ("2012-07-01", ASKED[1]))
    assert results(store) == {"good", "absent"} and store.missing(IBM, *ASKED)[0][1] == pd.Timestamp("2012-07-01", tz="UTC")
    store.add(year.loc[:"2012-06"], IBM, (ASKED[0], "2012-07-01"))
    assert results(store) == {"good"} and data_hash(store.bars(["IBM"])) == data_hash(sample.loc[["IBM"]])


def test_a_bar_that_turns_up_late_is_kept_and_claims_nothing(sample, tmp_path):
    store, year = Store(tmp_path/"store"), sample.loc["IBM"]
    store.add(year.drop(year.index[100]), IBM, ASKED); store.add(year, IBM, ASKED)
    assert store.manifest.rows.tolist() == [len(year) - 1, 1] and data_hash(store.bars(["IBM"])) == data_hash(sample.loc[["IBM"]])
    (store.root/store.manifest.file[0]).unlink()
    assert store.missing(IBM, *ASKED) == [tuple(pd.Timestamp(time, tz="UTC") for time in ASKED)]


def test_late_bars_that_are_damaged_are_missing_again(sample, tmp_path):
    store, year = Store(tmp_path/"store"), sample.loc["IBM"]
    store.add(year.drop(year.index[100]), IBM, ASKED); store.add(year, IBM, ASKED)
    (store.root/store.manifest.file[1]).write_bytes(b"x")
    missing = store.missing(IBM, *ASKED)
    assert [first for first, _ in missing] == [year.index[100]]
    store.add(year, IBM, ASKED)
    assert results(store) == {"good"} and store.missing(IBM, *ASKED) == [] and data_hash(store.bars(["IBM"])) == data_hash(sample.loc[["IBM"]])


def test_a_backup_that_comes_back_changes_nothing(full, sample):
    file = file_of(full, "FB"); content = file.read_bytes(); file.unlink()
    full.add(sample.loc["FB"].loc[:"2012-09"], FB, (ASKED[0], "2012-10-01")); full.add(sample.loc["FB"].loc["2012-10":], FB, ("2012-10-01", ASKED[1]))
    file.write_bytes(content)
    full.add(None, FB, ("2011-01-01", "2011-02-01"))
    assert results(full) == {"good"} and data_hash(full.bars(["FB"])) == data_hash(sample.loc[["FB"]]) and (full.root/"broken"/file.name).exists()


def test_no_such_home():
    with pytest.raises(StoreError, match="no such home"): Store("~nobodyofthisname/store").root


def test_other_files_in_the_folder_do_not_matter(full):
    (full.root/"bars"/".DS_Store").write_bytes(b"finder")
    assert results(full) == {"good"}
    full.add(None, FB, ("2011-01-01", "2011-02-01"))
    assert (full.root/"bars"/".DS_Store").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path/"file").write_text("x")
    for call in (lambda s: s.manifest, lambda s: s.bars(), lambda s: s.add(FEW, FB, ASKED)):
        with pytest.raises(StoreError, match="is a file; give a folder|File exists|Not a directory"): call(Store(tmp_path/"file"))
