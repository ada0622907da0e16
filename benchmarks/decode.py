"""Decode speed of the engine beside transformers' `generate`, the same weights, interleaved in one run.

    python benchmarks/decode.py [--rounds 5] [--tokens 64] [--threads N] [--batches 1 16 64]

Tokens per second of decoding alone: the time of a run with one new token is taken off. Greedy, prompts of 64 tokens,
the best of the rounds for each. Before timing, both are shown to write the same tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from liuli.engine import Engine, Sampling
from liuli.model import Transformer, parameter_count, qwen3
from liuli.model.convert import export_config, export_tensors
from liuli.text import Tokenizer

PROMPT = 64


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Transformer(qwen3(4096, 256, 4, context=512)).eval()
    print(
        f"{parameter_count(model.config)['total'] / 1e6:.1f}M parameters, {torch.get_num_threads()} thread(s), greedy"
    )
    cases = {
        "liuli fp32": ours(model, torch.float32),
        "liuli bf16": ours(model, torch.bfloat16),
        "transformers fp32": theirs(model, torch.float32),
        "transformers bf16": theirs(model, torch.bfloat16),
    }
    prompts = torch.randint(16, 272, (max(options.batches), PROMPT))
    same = [cases[name](prompts[:2], options.tokens) for name in ("liuli fp32", "transformers fp32")]
    print(f"the same tokens as transformers: {'yes' if same[0] == same[1] else 'NO'}\n")
    print("| tokens/s |" + "".join(f" batch {batch} |" for batch in options.batches))
    print("|---|" + "---:|" * len(options.batches))
    best = {(name, batch): 0.0 for name in cases for batch in options.batches}
    for _ in range(options.rounds):
        for name, batch in best:
            best[name, batch] = max(best[name, batch], speed(cases[name], prompts[:batch], options.tokens))
    for name in cases:
        print(f"| {name} |" + "".join(f" {best[name, batch]:,.0f} |" for batch in options.batches))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    return parser.parse_args()


Writer = Callable[[torch.Tensor, int], list[list[int]]]
"""Writes so many tokens after each prompt (B, T)."""


def ours(model: Transformer, dtype: torch.dtype) -> Writer:
    """The engine; nothing ends an answer early."""
    copy = Transformer(model.config).to(dtype).eval()
    copy.load_state_dict(model.state_dict())
    tokenizer = Tokenizer.train([f"{number} " for number in range(1000)] * 2, 512)
    engine = Engine(copy, tokenizer)
    engine.stops = frozenset()
    engine.ban_V.zero_()
    engine.bytes_of += [b"?"] * (model.config.vocab_size - len(engine.bytes_of))

    def write(prompts_BT: torch.Tensor, tokens: int) -> list[list[int]]:
        answers = engine.generate(prompts_BT.tolist(), Sampling(temperature=0, max_tokens=tokens))
        return [answer.ids for answer in answers]

    return write


def theirs(model: Transformer, dtype: torch.dtype) -> Writer:
    """transformers' Qwen3 with the same weights."""
    config = export_config(model.config)
    reference = Qwen3ForCausalLM(Qwen3Config(**config)).to(dtype).eval()
    reference.load_state_dict(export_tensors(model), strict=False)  # a tied head is not stored
    reference.tie_weights()

    def write(prompts_BT: torch.Tensor, tokens: int) -> list[list[int]]:
        with torch.inference_mode():
            whole = reference.generate(
                prompts_BT,
                attention_mask=torch.ones_like(prompts_BT),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=9,
            )
        return [row[prompts_BT.shape[1] :] for row in whole.tolist()]

    return write


def speed(write: Writer, prompts_BT: torch.Tensor, tokens: int) -> float:
    """New tokens per second over the whole batch, without the first token, which the prompt's reading gives."""
    started = time.perf_counter()
    write(prompts_BT, 1)
    read = time.perf_counter()
    write(prompts_BT, tokens)
    done = time.perf_counter()
    return len(prompts_BT) * (tokens - 1) / ((done - read) - (read - started))


if __name__ == "__main__":
    main()
