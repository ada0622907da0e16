"""Draw where recipes of GRPO and PPO end, on problems small enough to know the optimum of.

`python scripts/fixed_points.py` (a minute on an idle core; needs the test extra) writes the pictures of
docs/preferences.md and prints the distances that it quotes. Losses, rewards and advantages are those of the stages;
problems and tabular policies are those of tests/stages.
"""

# ruff: noqa: E402
from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for tests/

from tests.stages.tabular import PROMPTS, Problem, Table, distance
from tests.stages.test_optimum import PPO, A, Answers, exact_step

from liuli.stages.experience import update
from liuli.stages.grpo import GRPOOptions
from liuli.stages.ppo import PPOOptions, ppo_experience, ppo_step
from liuli.stages.rollout import score_all
from liuli.train import Optimizer, OptimizerOptions

GRPO = {
    "k1 in the reward": GRPOOptions(),
    "k2 in the loss": GRPOOptions(leash="loss", kl="k2"),
    "k3 in the loss": GRPOOptions(leash="loss", kl="k3"),
    "k3 in the loss, over std": GRPOOptions(leash="loss", kl="k3", advantage="std"),
    "k1 in the loss": GRPOOptions(leash="loss", kl="k1"),
}
PPOS = {
    "default": PPO,
    "whiten: scale": replace(PPO, whiten_rewards="scale"),
    "whiten: full": replace(PPO, whiten_rewards="full"),
    "k3 as reward": replace(PPO, kl="k3"),
}
PROBLEMS, UPDATES = 5, 300
BARS = "Bars: probability of 12 answers, worst reward to best. Lines: the optimum of reward on a leash."
CURVES = "Distance to the optimum (5 problems; bold: the median)"
CHINESE = {BARS: "柱：12 个回答的概率，奖励从低到高。横线：奖励加 KL 缰绳的最优解。", "off by": "偏离"}
CHINESE |= {"where all begin": "共同的起点", "k1 in the reward": "k1 放进奖励", "k2 in the loss": "k2 放进损失"}
CHINESE |= {"k3 in the loss, over std": "k3 放进损失，除以标准差", "k3 in the loss": "k3 放进损失"}
CHINESE |= {"k1 in the loss": "k1 放进损失", CURVES: "到最优解的距离（5 个问题；粗线：中位数）", "updates": "更新次数"}
CHINESE |= {"default": "默认", "whiten: scale": "白化 scale", "whiten: full": "白化 full", "k3 as reward": "k3 作奖励"}
STYLE = """<style>
text{font:13px system-ui,-apple-system,"Segoe UI","PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
text{fill:#12302f}.pane{fill:#f7fcfb}.quiet{fill:#4c6a6b}.grid{stroke:#0d505424}.mark{stroke:#12302f;stroke-width:2}
.start{fill:#9db5b4}.right{fill:#0b7d7b}.wrong{fill:#d08a2e}path{fill:none}
.line0{stroke:#0b7d7b}.line1{stroke:#b7791f}.line2{stroke:#7c4dba}.line3{stroke:#b3402b}
@media(prefers-color-scheme:dark){
text{fill:#e3f2f0}.pane{fill:#10242a}.quiet{fill:#9dbcbb}.grid{stroke:#ffffff24}.mark{stroke:#e3f2f0}
.start{fill:#5f7f80}.right{fill:#35a99c}.wrong{fill:#c98a3a}
.line0{stroke:#4fd1c1}.line1{stroke:#f0b45c}.line2{stroke:#bd97f0}.line3{stroke:#ff9a83}}
</style>"""


def grpo_ends(beta: float = 0.5) -> dict[str, torch.Tensor]:
    """Probabilities of the answers, worst first: the optimum, where all begin, where each recipe ends."""
    generator = torch.Generator().manual_seed(3)
    reference = torch.log_softmax(torch.randn(A, generator=generator, dtype=torch.float64), 0)
    rewards = torch.randn(A, generator=generator, dtype=torch.float64)
    found = {"optimum": torch.softmax(reference + rewards / beta, 0), "where all begin": reference.exp()}
    for name, options in GRPO.items():
        table = Answers(reference)
        optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
        for number in range(6000):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - number / 6000)
            optimizer.zero_grad()
            exact_step(table, reference, rewards, beta, options).backward()
            optimizer.step()
        found[name] = torch.softmax(table.logits.detach(), 0)
    return {name: p[rewards.argsort()][None] for name, p in found.items()}


def ppo_path(options: PPOOptions, seed: int) -> list[float]:
    """The distance of a tabular policy from the optimum after each update."""
    problem, generator = Problem.random(seed), torch.Generator().manual_seed(seed + 100)
    table, found = Table(problem.reference.logits.detach()), []
    optimizer = Optimizer(table, OptimizerOptions(kind="adamw", adam_lr=0.03, adam_eps=1e-5, beta2=0.999))
    prompts = [place % PROMPTS for place in range(512)]
    for number in range(UPDATES):
        rollouts, texts = table.draw(prompts, generator)
        old, reference = score_all(table, rollouts), score_all(problem.reference, rollouts).log_probs_BT
        scores = problem.rewards[torch.tensor(prompts), texts]
        experience = ppo_experience(rollouts, old, reference, scores, problem.beta, options)
        update(table, optimizer, experience, ppo_step(options), scale=1 - number / UPDATES, seed=number)
        found.append(distance(table.probabilities().detach(), problem.optimum()))
    return found


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{text}</text>'


def bars(found: dict[str, torch.Tensor], words: dict[str, str]) -> list[str]:
    """A panel for each recipe, all at one scale."""
    best, pieces = found["optimum"], [label(20, 26, words.get(BARS, BARS), "quiet")]
    for number, name in enumerate(["where all begin", *GRPO]):
        x, y, top = 20 + 250 * (number % 3), *((145, 54), (440, 174))[number // 3]
        far = distance(found[name], best)
        kind = "right" if far < 0.001 else "wrong" if number else "start"
        pieces += [label(x, top, words.get(name, name)), f'<path class="grid" d="M{x} {y}h216"/>']
        pieces += [label(x, top + 18, f"{words.get('off by', 'off by')} {far:.3f}", "quiet")]
        for left, p, q in zip(range(x, x + 216, 18), found[name][0], best[0], strict=True):
            tall, size = 235 * p, f'width="14" height="{235 * p:.1f}"'
            pieces += [f'<rect class="{kind}" x="{left + 2}" y="{y - tall:.1f}" {size}/>']
            pieces += [f'<path class="mark" d="M{left} {y - 235 * q:.1f}h18"/>']
    return pieces


def curves(found: dict[str, list[list[float]]], words: dict[str, str]) -> list[str]:
    """Every third distance, on a logarithmic axis."""
    pieces = [label(20, 26, words.get(CURVES, CURVES), "quiet")]
    pieces += [label(620, 388, words.get("updates", "updates"), "quiet", "end")]
    pieces += [f'<path class="grid" d="M60 {50 + 80 * power}H620"/>' for power in range(5)]
    pieces += [label(52, 54 + 80 * power, f"{10.0**-power:g}", "quiet", "end") for power in range(5)]
    pieces += [label(60 + 560 * n / UPDATES, 388, str(n), "quiet", "middle") for n in (0, 100, 200)]
    for number, (name, paths) in enumerate(found.items()):
        middle = [sorted(step)[PROBLEMS // 2] for step in zip(*paths, strict=True)]
        for path, width, opacity in [*((path, 1, 0.4) for path in paths), (middle, 3, 1)]:
            heights = [50 - 80 * math.log10(max(value, 1e-4)) for value in path]
            line = "L".join(f"{60 + 560 * n / UPDATES:.1f} {heights[n - 1]:.1f}" for n in range(3, UPDATES + 1, 3))
            pieces += [f'<path class="line{number}" stroke-width="{width}" opacity="{opacity}" d="M{line}"/>']
        pieces += [f'<path class="line{number}" stroke-width="3" d="M628 {heights[-1]:.1f}h14"/>']
        pieces += [label(648, heights[-1] + 4, words.get(name, name))]
    return pieces


def main() -> None:
    ends = grpo_ends()
    paths = {name: [ppo_path(options, seed) for seed in range(PROBLEMS)] for name, options in PPOS.items()}
    for name, p in ends.items():
        print(f"GRPO  {name:25} {distance(p, ends['optimum']):.4f}")
    for name, each in paths.items():
        print(f"PPO   {name:25} {' '.join(f'{path[-1]:.4f}' for path in each)}")
    for suffix, words in (("", {}), ("-zh", CHINESE)):
        pictures = {"fixed-points": (460, bars(ends, words)), "ppo-optimum": (412, curves(paths, words))}
        for name, (height, pieces) in pictures.items():
            size = f'width="770" height="{height}" viewBox="0 0 770 {height}"'
            pane = f'<rect class="pane" width="770" height="{height}" rx="12"/>'
            text = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, pane, *pieces, "</svg>\n"]
            (ROOT / f"docs/pictures/{name}{suffix}.svg").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
