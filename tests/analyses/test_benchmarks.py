"""Benchmarks of analyses/: they run, and the compared implementations compute the same numbers."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import torch

from attnprobe.measures import MEASURES
from attnprobe.statistics import Scores, gradient_statistics, pattern_statistics, score_statistics

FOLDER = Path(__file__).parents[2] / "analyses"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return script("bench_statistics")


def test_the_benchmark_of_measures_runs_and_its_committed_table_has_all_measures(tmp_path):
    script("bench_measures").main(n=16, sequences=4, only=("proximity",), out=tmp_path / "table.csv")
    found, committed = (pd.read_csv(path) for path in (tmp_path / "table.csv", FOLDER / "results/bench_measures.csv"))
    assert (found[["seconds", "peak MiB"]] > 0).all(axis=None)
    assert list(found.columns) == list(committed.columns)
    assert committed["measure"].tolist() == list(MEASURES)
    assert (committed["n"] == 1024).all() and (committed["sequences"] == 16).all()


def test_the_materialised_implementation_agrees_with_the_engine(bench):
    q, k, v, dz = torch.randn(4, 1, bench.HEADS, 40, bench.D_HEAD, dtype=torch.float64)
    scores = Scores(q, k)
    score, pattern, gradient = score_statistics(scores), pattern_statistics(scores), gradient_statistics(scores, v, dz)
    for head in range(bench.HEADS):
        square, rows, columns, row_centred, offsets, double = bench.by_head(bench.score_materialised, q, k)[head]
        torch.testing.assert_close(square, score.square[0, head])
        torch.testing.assert_close(rows[:, 0], score.mean_by_query[0, head])
        torch.testing.assert_close(columns, score.mean_by_key[0, head])
        torch.testing.assert_close(row_centred, score.square_row_centred[0, head])
        torch.testing.assert_close(offsets, score.centred_by_offset[0, head] * score.pairs[0])
        torch.testing.assert_close(double, score.square_double_centred[0, head])
        offsets, keys, entropy = bench.by_head(bench.pattern_materialised, q, k)[head]
        torch.testing.assert_close(offsets / 40, pattern.mass_by_offset[0, head])
        torch.testing.assert_close(keys, pattern.mass_by_key[0, head])
        torch.testing.assert_close(entropy / 40, pattern.entropy[0, head])
        offsets, keys, square = bench.by_head(bench.gradient_materialised, q, k, v, dz)[head]
        torch.testing.assert_close(offsets, gradient.by_offset[0, head])
        torch.testing.assert_close(keys, gradient.by_key[0, head])
        torch.testing.assert_close(square, gradient.square[0, head])


def test_the_plain_network_agrees_with_attnprobe():
    bench = script("bench_training")
    found = bench.ways(20, torch.device("cpu"))
    inputs = torch.randint(bench.VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))
    (ours, loss), (plain, plain_loss) = found["attnprobe"], found["plain"]
    torch.testing.assert_close(plain(inputs), ours(inputs, output="tokens"))
    batch, mask = bench.Batch(inputs, torch.zeros(3, dtype=torch.long)), torch.arange(20).expand(3, 20) % 2 == 0
    torch.testing.assert_close(plain_loss(batch, mask), loss(batch, mask))
    # plain has no label head
    sizes = {name: sum(weight.numel() for weight in model.parameters()) for name, (model, _) in found.items()}
    assert sizes["attnprobe"] - sizes["plain"] == sum(weight.numel() for weight in ours.classify.parameters())


def test_operations_agree_with_torch_flop_counter():
    from torch.utils.flop_counter import FlopCounterMode

    bench = script("bench_training")
    model, loss = bench.ways(24, torch.device("cpu"))["attnprobe"]
    batch = bench.Batch(torch.zeros(2, 24, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", lambda x, hook: None) for layer in range(3)]):
        with FlopCounterMode(display=False) as counter:
            loss(batch, torch.ones(2, 24, dtype=torch.bool)).backward()
    assert counter.get_total_flops() == bench.operations(2, 24)


def test_the_benchmark_of_training_runs_and_activations_are_linear_in_n(tmp_path):
    bench = script("bench_training")
    bench.main(lengths=(16, 32), turns=2, out=tmp_path / "table.csv")
    found = pd.read_csv(tmp_path / "table.csv")
    assert set(found["way"]) == {"attnprobe", "plain", "nn.TransformerEncoder", "TransformerLens"}
    kept = found.pivot(index="n", columns="way", values="activations KiB a token")
    assert kept["attnprobe"].tolist() == pytest.approx([kept["attnprobe"].iloc[0]] * 2, rel=0.01), "linear in n"
    assert (kept["attnprobe"] <= kept["plain"] * 1.01).all()
    assert kept["TransformerLens"].iloc[1] > kept["TransformerLens"].iloc[0] * 1.05


WAYS = {"engine", "engine in torch", "fused", "materialised", "TransformerLens"}


def test_the_benchmark_of_statistics_runs_and_its_committed_table_is_current(bench, tmp_path, capsys):
    bench.main(longest=256, out=tmp_path / "table.csv")
    found, committed = (pd.read_csv(path) for path in (tmp_path / "table.csv", FOLDER / "results/bench_statistics.csv"))
    assert (found[["milliseconds", "over engine", "peak MiB"]] > 0).all(axis=None)
    assert list(found.columns) == list(committed.columns)
    assert set(found["way"]) == set(committed["way"]) == WAYS
    assert sorted(committed["n"].unique()) == list(bench.LENGTHS)


@pytest.mark.parametrize("kind", ["BERT", "ModernBERT"])
def test_all_ways_to_run_a_model_agree(kind, monkeypatch):
    bench = script("bench_any_model")
    monkeypatch.setattr(bench, "WINDOW", 8)
    results = {way: make(kind, 24)() for way, make in bench.WAYS.items()}
    torch.testing.assert_close(results["watching"], results["plain"], rtol=0, atol=0)
    assert len(results["statistics"]) == len(results["eager"]) == results["loading"].network.shape.layers == 2
    for (score, pattern), weights in zip(results["statistics"], results["eager"], strict=True):
        entropy = torch.special.entr(weights.double()).sum(-1).mean(-1)
        torch.testing.assert_close(pattern.entropy, entropy, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pattern.mass_by_key, weights.double().sum(2), rtol=1e-4, atol=1e-5)
        assert torch.equal(score.pairs[0] > 0, pattern.mass_by_offset[0, 0] > 0)
    # a window of 8 tokens hides the keys at distances above 4
    assert (score.pairs.sum() < 24 * 24) == (kind == "ModernBERT")


def test_the_benchmark_of_any_model_runs_and_its_committed_table_is_complete(tmp_path):
    bench = script("bench_any_model")
    bench.main(models=("BERT",), lengths=(16,), only=("statistics",), seconds=0.1, out=tmp_path / "table.csv")
    found, committed = (pd.read_csv(path) for path in (tmp_path / "table.csv", FOLDER / "results/bench_any_model.csv"))
    assert list(found.columns) == list(committed.columns)
    assert found["way"].tolist() == ["plain", "statistics"]
    assert (found[["CPU seconds", "over plain", "peak MiB", "turns"]] > 0).all(axis=None)
    rows = [(model, n, way) for model in bench.MODELS for n in (512, 4096) for way in bench.WAYS]
    assert list(committed[["model", "n", "way"]].itertuples(index=False, name=None)) == rows
    assert committed["machine"].str.endswith("1 thread").all()


def test_the_committed_table_of_training_is_current():
    committed = pd.read_csv(FOLDER / "results/bench_training.csv")
    assert sorted(committed["n"].unique()) == [256, 1024, 4096]
    assert set(committed["way"]) == {"attnprobe", "plain", "nn.TransformerEncoder", "TransformerLens"}
    assert (committed["low"] <= committed["over attnprobe"]).all()
    assert (committed["over attnprobe"] <= committed["high"]).all()


def test_tools_agree_on_the_profiles_of_a_model():
    bench = script("bench_peers")
    found = {
        tool: bench.TOOLS[tool](24)() for tool in ("attnprobe", "Hugging Face", "TransformerLens", "identity values")
    }
    for profiles in found.values():
        assert len(profiles) == bench.LAYERS and bench.difference(profiles, found["Hugging Face"]) < 1e-5
        for (_, distance), (_, expected) in zip(profiles, found["Hugging Face"], strict=True):
            torch.testing.assert_close(distance.float(), expected, rtol=1e-5, atol=1e-5)


def test_the_committed_table_of_tools_is_complete():
    bench = script("bench_peers")
    committed = pd.read_csv(FOLDER / "results/bench_peers.csv")
    rows = [(tool, n) for n in (128, 512, 2048, 8192) for tool in bench.TOOLS]
    assert list(committed[["tool", "n"]].itertuples(index=False, name=None)) == rows
    run = committed[committed["milliseconds"].notna()]
    assert (run["difference"] < 1e-5).all() and set(run["tool"]) == set(bench.TOOLS)
    assert set(committed["n"][committed["milliseconds"].isna()]) <= {8192} and (run["tool"] == "attnprobe").sum() == 4
