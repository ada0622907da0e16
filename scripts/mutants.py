"""Break the code of learning from rewards in 17 known ways, one at a time, and see that the tests notice each.

`python scripts/mutants.py [--only NAME]`. Each mutant is one wrong line that trains without an error and to another
optimum, or along another path (the mistakes that RLHF codebases have shipped). It is made in a copy of the sources; the
working tree is read once and never written. Exit code 1 when a mutant survives, when its line is not found exactly once
(so that this table cannot rot), and when the tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/train/test_policy.py",
    "tests/stages/test_rollout.py",
    "tests/stages/test_optimum.py",
)  # quick ones first
AT_ONCE = 2
SECONDS = 300  # a run that takes longer hangs
POLICY, ROLLOUT, UPDATE, PPO = "train/policy.py", "stages/rollout.py", "stages/experience.py", "stages/ppo.py"


class Mutant(NamedTuple):
    name: str
    file: str  # below src/liuli
    old: str  # found exactly once
    new: str


WHITEN = 'whiten_rewards: Literal["off", "scale", "full"] = '
COST = "cost_BT = kl_terms(old.log_probs_BT, reference_BT, "
PAID = "paid - beta * kl_BT"

MUTANTS = (
    Mutant("rewards scaled, mean kept, by default", PPO, WHITEN + '"off"', WHITEN + '"scale"'),
    Mutant("rewards whitened by default", PPO, WHITEN + '"off"', WHITEN + '"full"'),
    Mutant("k3 as the reward", PPO, COST + "o.kl)", COST + '"k3")'),
    Mutant("absolute KL as the reward", PPO, COST + "o.kl)", COST + '"abs")'),
    Mutant("no KL", POLICY, PAID, "paid"),
    Mutant("KL with the wrong sign", POLICY, PAID, "paid + beta * kl_BT"),
    Mutant("KL averaged over tokens", POLICY, PAID, f"{PAID} / mask_BT.sum(1, keepdim=True)"),
    Mutant(
        "score on every token",
        POLICY,
        "paid = last_drawn(mask_BT).to(kl_BT.dtype) * scores_B[:, None]",
        "paid = mask_BT.to(kl_BT.dtype) * scores_B[:, None]",
    ),
    Mutant(
        "score at the last slot, after the end",
        POLICY,
        "paid = last_drawn(mask_BT).to(kl_BT.dtype) * scores_B[:, None]",
        "paid = torch.zeros_like(kl_BT)\n    paid[:, -1] = scores_B",
    ),
    Mutant(
        "an answer goes on after its end",
        POLICY,
        "next_value = next_advantage = torch.zeros_like(rewards_BT[:, 0])",
        "next_advantage = torch.zeros_like(rewards_BT[:, 0])\n"
        "    next_value = (values_BT * last_drawn(mask_BT)).sum(1)",
    ),
    Mutant("drawn from the top 50", ROLLOUT, "Sampling(temperature, ", "Sampling(temperature, top_k=50, "),
    Mutant(
        "advantages centred by answer",
        PPO,
        "advantages_BT = whiten(advantages_BT, mask_BT)",
        "advantages_BT = whiten(\n"
        "            advantages_BT - advantages_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True), mask_BT\n"
        "        )",
    ),
    Mutant("drawn at temperature 0.8", ROLLOUT, "Sampling(temperature, ", "Sampling(0.8 * temperature, "),
    Mutant(
        "the end outside the mask",
        ROLLOUT,
        "own.extend(said.ids, said.logprobs)",
        'own.extend(said.ids, said.logprobs)\n        own.drawn[-1] = said.stopped_by != "end"',
    ),
    Mutant("whitening counts padding", POLICY, "chosen = x_BT[mask_BT]", "chosen = x_BT.flatten()"),
    Mutant("every answer alike, long or short", UPDATE, 'spread: Spread = "token"', 'spread: Spread = "sequence"'),
    Mutant("the smaller loss of free and held", POLICY, "torch.maximum(free, held)", "torch.minimum(free, held)"),
)

# the tests, told which copy of the package must be the one they import
RUN = """
import sys
from pathlib import Path
import liuli, pytest
assert Path(liuli.__file__).is_relative_to(sys.argv[1]), f"{liuli.__file__} is not the copy in {sys.argv[1]}"
sys.exit(pytest.main(sys.argv[2:]))
"""


class Verdict(NamedTuple):
    killed_by: str  # the test; empty if all passed
    problem: str  # why there is no verdict; empty if there is one
    seconds: float


def mutate(package: Path, mutant: Mutant) -> str:
    """Write a mutant into a copy of the package; what is wrong with its line in the table, or nothing."""
    file = package / mutant.file
    source = file.read_text(encoding="utf-8")
    if (count := source.count(mutant.old)) != 1:
        return f"its line stands {count} times in {mutant.file}, not once: mend the table"
    file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    return ""


def judge(snapshot: Path, mutant: Mutant | None) -> Verdict:
    """Run the tests on a copy of the snapshot with this mutant in it (None: as it is)."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="liuli-mutant-", dir=snapshot) as folder:
        sources = Path(folder).resolve() / "src"
        shutil.copytree(snapshot / "src", sources)
        if mutant is not None and (problem := mutate(sources / "liuli", mutant)):
            return Verdict("", problem, 0.0)
        command = [sys.executable, "-c", RUN, str(sources), "-x", "-q", "--hypothesis-seed=0", *TESTS]
        environment = os.environ | {"PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, cwd=snapshot, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return Verdict("", f"the tests took more than {SECONDS} seconds", SECONDS)
    failed = re.search(r"^FAILED (\S+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return Verdict("", "", seconds)
    if done.returncode == 1 and failed:
        return Verdict(failed[1], "", seconds)
    return Verdict("", "the tests could not run:\n" + (done.stdout + done.stderr)[-2000:], seconds)


def take_snapshot(folder: Path) -> None:
    """Sources and tests as they are now, whoever goes on editing them."""
    ignored = shutil.ignore_patterns("__pycache__", "page")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="the mutants whose name holds this")
    only = parser.parse_args().only
    chosen = [mutant for mutant in MUTANTS if not only or only in mutant.name]
    if not chosen:
        print("no mutant of that name; there are:", *(mutant.name for mutant in MUTANTS), sep="\n  ")
        return 1
    began, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="liuli-mutants-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        snapshot = Path(folder).resolve()
        take_snapshot(snapshot)
        whole = judge(snapshot, None)
        if whole.killed_by or whole.problem:
            print(f"the tests fail without a mutant: {whole.killed_by or whole.problem}")
            return 1
        print(f"{'no mutant':40} all pass  {whole.seconds:5.1f} s", flush=True)
        for mutant, verdict in zip(chosen, pool.map(lambda mutant: judge(snapshot, mutant), chosen), strict=True):
            bad += not verdict.killed_by
            said = f"killed by {verdict.killed_by}" if verdict.killed_by else verdict.problem or "SURVIVED"
            print(f"{mutant.name:40} {verdict.seconds:5.1f} s  {said}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutants killed, {time.monotonic() - began:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
