"""The microscope's API on a made-up run: live, sorted, paged, and clear about what is gone or damaged."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from liuli.train.trace import traced_steps, write_trace
from tests.server.scripted import LiveServer, make_model, make_run, set_status

STEPS = (0, 40, 80)
QUESTIONS = ("What is 12*7?", "What is the capital of France?", "Say hello.", "法国的首都是哪里？")


def make_traced_run(path: Path, stage: str = "ppo", answers: int = 12) -> Path:
    """A run whose pretraining is over and that is at step 80 of `stage`; three of its steps are traced."""
    run = make_run(path)
    names = ("pretrain", "chat", stage)
    stages = [{"name": n, "state": "running" if n == stage else "done", "seconds": 60, "share": 0.3} for n in names]
    set_status(run, stages=stages, stage=stage, step=80, steps=120)
    samples = [("Paris is nice.", 0), ("Paris is the capital of France.", 80)]
    with open(run / "samples.jsonl", "a") as file:
        for said, step in samples:
            prompts = [{"prompt": "What is the capital of France?", "language": "en", "answer": said}]
            file.write(json.dumps({"time": 2e9 + step, "stage": stage, "step": step, "answers": prompts}) + "\n")
    with open(run / "log.jsonl", "a") as log:
        log.write("\n")
        for step in range(81):
            log.write(json.dumps({"time": 2e9 + step, "stage": stage, **figures(step)}) + "\n")
    for step in STEPS:
        write_trace(run, stage, step, *made_up(step, answers))
    return run


def figures(step: int) -> dict[str, Any]:
    """A run that learns and, after step 50, begins to please the score instead of the truth."""
    noise = random.Random(step).uniform(-0.04, 0.04)
    done = step / 80
    return {
        "step": step,
        "score": -0.4 + 1.9 * done + noise,
        "true_score": 0.3 + 0.5 * done - max(0, done - 0.6) * 1.4 + noise if step % 10 == 0 else None,
        "kl": 9 * done**1.5 + abs(noise) * 8,
        "entropy": 2.1 * math.exp(-1.6 * done) + noise,
        "length": 18 + 26 * done + 60 * noise,
        "stop_rate": min(1, 0.7 + 0.3 * done + noise),
        "explained_variance": 0.8 * (1 - math.exp(-4 * done)) + noise,
        "clip_fraction": 0.02 + 0.1 * done + noise / 4,
        "beta": 0.05,
    }


def made_up(step: int, answers: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Answers with a prompt, a tool's result in the middle of every fourth, and figures where a token was drawn."""
    draw = random.Random(step)
    tokens: dict[str, list[Any]] = {}
    sequences: dict[str, list[Any]] = {}
    for number in range(answers):
        question = QUESTIONS[number % len(QUESTIONS)]
        tool = number % 4 == 0
        said = (
            ["<|call|>", "calculator", ' {"', "expression", '":', ' "', "12", "*", "7", '"}', "<|end|>"] if tool else []
        )
        given = ["<|tool|>", "84", "<|end|>", "<|assistant|>"] if tool else []
        last = ["It", " is", " 84", ",", " of", " course", "!\n\n", "今天", "很", "高兴", ".", "<|end|>"][
            : 4 + step // 8
        ]
        pieces = [(text, False) for text in ("<|bos|>", "<|user|>", question, "<|end|>", "<|assistant|>")]
        pieces += [(t, True) for t in said] + [(t, False) for t in given] + [(t, True) for t in last]
        score = round(draw.gauss(step / 60, 0.5), 3)
        for position, (text, drawn) in enumerate(pieces):
            old = -abs(draw.gauss(0, 1.2))
            new, advantage = old + draw.gauss(0, 0.12), draw.gauss(score - 0.5, 0.7)
            row = {
                "sequence": number,
                "position": position,
                "token": position + 20,
                "text": text,
                "drawn": drawn,
                "logprob_sampler": old,
                "logprob_old": old,
                "logprob_new": new,
                "logprob_ref": old - draw.gauss(0.1, 0.4),
                "kl": draw.gauss(0.02 * step / 8, 0.3),
                "reward": score if position == len(pieces) - 1 else -0.01,
                "value": draw.gauss(0.4, 0.1),
                "advantage": advantage,
                "return": advantage + 0.4,
                "ratio": math.exp(new - old),
                "clipped": abs(new - old) > 0.2,
                "entropy": abs(draw.gauss(1.2, 0.7)),
            }
            for name, value in row.items():
                keep = drawn or name in ("sequence", "position", "token", "text", "drawn")
                tokens.setdefault(name, []).append(value if keep else None)
        answer = {
            "sequence": number,
            "prompt": question,
            "answer": "".join(last).removesuffix("<|end|>"),
            "score": None if number == 5 else score,
            "members": [score - 0.1, score + 0.1],
            "length": len(said) + len(last),
            "finished": last[-1] == "<|end|>",
            "advantage": score - 0.5,
            "right": None if question == "Say hello." else score > 0.4,
        }
        for name, value in answer.items():
            sequences.setdefault(name, []).append(value)
    return tokens, sequences


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(make_traced_run(tmp_path_factory.mktemp("runs") / "laptop")) as server:
        yield server


def ask(live: LiveServer, path: str = "", **asked: Any) -> Any:
    said = httpx.get(f"{live.url}/api/traces{path}", params=asked)
    assert said.status_code == 200, said.text
    return said.json()


def test_stages_have_their_traced_steps_and_every_figure(live: LiveServer) -> None:
    (stage,) = ask(live)["stages"]
    assert (stage["name"], stage["steps"]) == ("ppo", [0, 40, 80])
    assert [point["step"] for point in stage["figures"]] == list(range(81))
    assert stage["figures"][40]["kl"] == pytest.approx(figures(40)["kl"], rel=1e-5)
    assert stage["figures"][41]["true_score"] is None


def test_answers_are_sorted_and_paged_and_what_has_no_score_comes_last(live: LiveServer) -> None:
    everything = ask(live, "/ppo/40")
    assert everything["total"] == 12 and [a["sequence"] for a in everything["answers"]] == list(range(12))
    scores = [a["score"] for a in ask(live, "/ppo/40", sort="score", order="down")["answers"]]
    assert scores[-1] is None and scores[:-1] == sorted(scores[:-1], reverse=True)
    page = ask(live, "/ppo/40", sort="kl", offset=10, limit=5)["answers"]
    assert len(page) == 2 and page[0]["kl"] <= page[1]["kl"]
    low, high = everything["scales"]["advantage"]
    assert low < 0 < high


def test_the_tokens_of_an_answer_and_the_same_prompt_then_and_now(live: LiveServer) -> None:
    said = ask(live, "/ppo/40/4")
    tokens, answer = said["tokens"], said["answer"]
    drawn = [text for text, is_drawn in zip(tokens["text"], tokens["drawn"], strict=True) if is_drawn]
    assert drawn[:2] == ["<|call|>", "calculator"] and "84" not in drawn and len(drawn) == answer["length"]
    undefined = [value is None for value in tokens["advantage"]]
    assert undefined == [not is_drawn for is_drawn in tokens["drawn"]]
    assert answer["kl"] == pytest.approx(sum(value for value in tokens["kl"] if value is not None), rel=1e-4)
    assert [part["step"] for part in said["same_prompt"]] == [0, 80]
    assert {a["prompt"] for part in said["same_prompt"] for a in part["answers"]} == {answer["prompt"]}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ppo/41", 404),
        ("/grpo/40", 404),
        ("/ppo/40/99", 404),
        ("/ppo/-1", 400),
        ("/ppo/x", 400),
        ("/ppo/40/x", 400),
        ("/ppo/40?sort=colour", 400),
        ("/ppo/40?limit=x", 400),
        ("/..%2f..%2fppo/40", 404),
        ("/%2e%2e/40", 404),
    ],
)
def test_what_is_not_there_is_one_clear_error(live: LiveServer, path: str, status: int) -> None:
    said = httpx.get(f"{live.url}/api/traces{path}")
    assert (said.status_code, set(said.json()["error"])) == (status, {"message", "type", "param", "code"})


def test_a_run_is_followed_while_it_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "laptop")
    with LiveServer(run) as live:
        assert ask(live) == {"stages": []}
        with open(run / "log.jsonl", "a") as log:
            log.write(
                'ain"}\n' + json.dumps({"stage": "grpo", "event": "grpo started", "score": 1.0, "step": 1}) + "\n"
            )
            log.write(json.dumps({"stage": "grpo", "step": 1, "score": 0.25, "kl": float("nan")}) + "\n")
            log.write('{"stage": "grpo", "step": 2, "sco')
        (stage,) = ask(live)["stages"]
        assert stage["steps"] == [] and [(p["step"], p["score"], p["kl"]) for p in stage["figures"]] == [
            (1, 0.25, None)
        ]
        write_trace(run, "grpo", 1, *made_up(1, 3))
        assert ask(live)["stages"][0]["steps"] == [1]
        before = ask(live, "/grpo/1")["answers"]
        write_trace(run, "grpo", 1, *made_up(2, 2))  # a resumed run does the step again
        assert len(ask(live, "/grpo/1")["answers"]) == 2 != len(before)
        with open(run / "log.jsonl", "a") as log:
            log.write('re": 0.5}\n' + json.dumps({"stage": "grpo", "step": 1, "score": 0.75}) + "\n")
        assert [p["score"] for p in ask(live)["stages"][0]["figures"]] == [0.75, 0.5]


def test_damage_and_pruning_are_told_without_paths(tmp_path: Path) -> None:
    run = make_traced_run(tmp_path / "laptop")
    with LiveServer(run) as live:
        (run / "traces" / "ppo" / "00000040.tokens.parquet").write_bytes(b"PAR1")
        said = httpx.get(f"{live.url}/api/traces/ppo/40")
        assert (said.status_code, said.json()["error"]["code"]) == (500, "damaged")
        assert str(tmp_path) not in said.text
        shutil.rmtree(run / "traces")
        assert traced_steps(run) == {}
        assert httpx.get(f"{live.url}/api/traces/ppo/80").status_code == 404


def test_a_model_folder_has_no_traces(tmp_path: Path) -> None:
    with LiveServer(make_model(tmp_path / "tiny")) as live:
        assert ask(live) == {"stages": []}
        assert httpx.get(f"{live.url}/api/traces/ppo/1").status_code == 404
