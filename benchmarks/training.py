"""Training speed against transformers' Qwen3 and Llama classes with the same sizes, interleaved in one process.

    python benchmarks/training.py [--sizes 3m-256 10m-256 10m-512] [--no-compile] [--rounds 8] [--json OUT]

One optimizer step of 4,096 tokens each, A B C A B C; the best round counts. Liuli runs with AdamW here, as the peers
do, so that only the model differs (Muon's cost is in the last row). Share: model FLOPs (causal half of attention, no
embedding look-up) over the best matmul rate measured between the rounds of the same run, in bfloat16 where the machine
is faster with it; else nothing is run in bfloat16, which without AVX-512 takes minutes a step.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from liuli.model import ModelConfig, Transformer, flops_per_token, qwen3, racer
from liuli.train import Optimizer, OptimizerOptions, TensorBatch, measure_machine, next_token
from liuli.train.machine import matmul_rate

STEP_TOKENS = 4096
SIZES = {
    "3m-256": (4, 256, 256),
    "10m-256": (6, 384, 256),
    "10m-512": (6, 384, 512),
}
Step = Callable[[], None]


def batch_of(config: ModelConfig) -> TensorBatch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (STEP_TOKENS // config.context, config.context), generator=generator)
    return TensorBatch(tokens, tokens.roll(-1, 1), torch.ones(tokens.shape))


def our_step(config: ModelConfig, compiled: bool, kind: str = "adamw") -> Step:
    """Liuli at its defaults: bfloat16 where the machine is faster with it, float32 masters."""
    machine = measure_machine()
    model = Transformer(config)
    model.compute_dtype = machine.compute_dtype
    optimizer = Optimizer(model, OptimizerOptions(kind=kind), machine.compute_dtype)
    batch = batch_of(config)
    objective = torch.compile(next_token, dynamic=False) if compiled else next_token

    def step() -> None:
        (objective(model, batch) / batch.tokens_BT.numel()).backward()
        optimizer.step(1.0)
        optimizer.zero_grad()

    return step


def their_step(config: ModelConfig, compiled: bool, family: str, autocast: bool) -> Step:
    """transformers' own class and loss; fused AdamW; bfloat16 autocast or its default, float32."""
    import transformers

    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ff_width,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": True,
    }
    kinds = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    make_config, make_model = kinds[family]
    model = make_model(make_config(**sizes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batch = batch_of(config)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            # `labels` are shifted inside; one target fewer a row than ours, in their favour
            return model(input_ids=batch.tokens_BT, labels=batch.tokens_BT, use_cache=False).loss

    objective = torch.compile(loss, dynamic=False) if compiled else loss

    def step() -> None:
        objective().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peers_kind() -> str:
    """In which the peers are at their best here."""
    return "bf16" if measure_machine().dtype == "bfloat16" else "fp32"


def cases(config: ModelConfig, compile: bool) -> dict[str, Step]:
    c, kind = config, peers_kind()
    low = kind == "bf16"
    race = racer(c.vocab_size, c.width, c.layers, context=c.context)
    made = {
        "liuli qwen3": our_step(c, False),
        "liuli racer": our_step(race, False),
        f"hf qwen3 {kind}": their_step(c, False, "qwen3", low),
        "hf qwen3 fp32": their_step(c, False, "qwen3", False),
        f"hf llama {kind}": their_step(c, False, "llama", low),
    }
    if compile:
        made |= {
            "liuli qwen3, compiled": our_step(c, True),
            "liuli racer, compiled": our_step(race, True),
            f"hf qwen3 {kind}, compiled": their_step(c, True, "qwen3", low),
            "liuli qwen3 with Muon, compiled": our_step(c, True, "muon"),
        }
    return made


def measure(name: str, rounds: int, compile: bool) -> dict[str, object]:
    layers, width, T = SIZES[name]
    config = qwen3(4096, width, layers, context=T, tied=True)
    machine = measure_machine()
    steps = cases(config, compile)
    first, best = {}, dict.fromkeys(steps, float("inf"))
    for case, step in steps.items():
        start = time.perf_counter()
        step()
        first[case] = time.perf_counter() - start
        step()
    peak = 0.0
    for _ in range(rounds):
        for case, step in steps.items():
            start = time.perf_counter()
            step()
            best[case] = min(best[case], time.perf_counter() - start)
        peak = max(peak, matmul_rate("cpu", machine.compute_dtype, seconds=0.1))
    flops = flops_per_token(config)["model"]
    rows = {
        case: {
            "tokens_per_s": round(STEP_TOKENS / seconds),
            "share_of_peak": round(STEP_TOKENS / seconds * flops / peak, 3),
            "first_step_s": round(first[case], 1),
        }
        for case, seconds in best.items()
    }
    about = {"machine": machine.name, "threads": machine.threads, "dtype": machine.dtype, "peak_FLOPs": peak}
    return {"size": name, **about, "cases": rows}


def ratios(cases: dict[str, dict[str, float]]) -> list[tuple[str, float]]:
    """The ratios that are aimed at."""
    speed, kind = {case: row["tokens_per_s"] for case, row in cases.items()}, peers_kind()
    pairs = [
        ("liuli qwen3", f"hf qwen3 {kind}"),
        ("liuli qwen3, compiled", f"hf qwen3 {kind}"),
        ("liuli qwen3", "hf qwen3 fp32"),
        ("liuli qwen3, compiled", "hf qwen3 fp32"),
        ("liuli qwen3, compiled", f"hf qwen3 {kind}, compiled"),
        ("liuli qwen3", f"hf llama {kind}"),
    ]
    once = dict.fromkeys(pairs)  # where the peers' kind is float32 two of them are the same
    return [(f"{a} / {b}", round(speed[a] / speed[b], 2)) for a, b in once if a in speed and b in speed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for name in options.sizes:
        result = measure(name, options.rounds, measure_machine().compiler and not options.no_compile)
        results.append(result)
        print(f"\n{name}: {result['machine']}, {result['threads']} threads, matmul peak in this run ", end="")
        print(f"{result['peak_FLOPs'] / 1e9:.0f} GFLOP/s {result['dtype']}\n")
        print(f"| {'case':32} | tokens/s | of the peak | first step s |\n|{'-' * 34}|---:|---:|---:|")
        for case, row in result["cases"].items():
            print(f"| {case:32} | {row['tokens_per_s']:,} | {row['share_of_peak']:.1%} | {row['first_step_s']} |")
        for pair, ratio in ratios(result["cases"]):
            print(f"  {pair}: {ratio}x")
        torch._dynamo.reset()
        gc.collect()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
