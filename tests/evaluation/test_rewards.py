"""A user's function as the objective: what it is given, and everything that can be wrong with it."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from zerograd.evaluation.rewards import Reward, RewardError
from zerograd.tasks import Query
from zerograd.tasks.example import Example

EXAMPLES = [Example(i, {"q": f"q{i}", "gold": i, "index": i}, Query(f"p{i}"), [1], []) for i in (3, 4)]


def test_it_gets_prompts_completions_and_columns() -> None:
    seen: dict[str, Any] = {}

    def everything(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [1, True]

    assert Reward("m:f", everything)(EXAMPLES, ["x", "y"]) == [1.0, 1.0]
    assert seen == {"prompts": ["p3", "p4"], "completions": ["x", "y"], "q": ["q3", "q4"], "gold": [3, 4]}
    assert Reward("m:f", lambda prompts, completions, gold: gold)(EXAMPLES, ["x", "y"]) == [3.0, 4.0]


def test_chats_are_given_as_messages() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    example = Example(0, {"messages": turns}, Query(""), [1], [])
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.extend([prompts, completions, columns["messages"]])
        return [0.5]

    assert Reward("m:f", reward)([example], ["hey"]) == [0.5]
    assert seen == [[turns[:1]], [[{"role": "assistant", "content": "hey"}]], [turns]]


def raising(prompts: list[str], completions: list[str]) -> list[float]:
    """Fails for one prompt only."""
    return [1 / (prompt != "p4") for prompt in prompts]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raising, "'m:f' raised ZeroDivisionError: .* (row 4, completion 'y')"),
        (lambda prompts, completions: [1.0] if len(prompts) < 2 else 1 / 0, "rows 3, 4 together"),
        (lambda prompts, completions: [1.0], "returned 1 values for 2 completions"),
        (lambda prompts, completions: None, "returned None for 2 completions"),
        (lambda prompts, completions: [1.0, "a"], "returned 'a', .* for row 4 and the completion 'y'"),
        (lambda prompts, completions: [None, 1.0], "returned None, .* for row 3"),
        (lambda prompts, completions: [float("nan"), 1.0], "returned nan"),
        (lambda completions: [1.0, 1.0], "raised TypeError"),
    ],
)
def test_errors_name_the_function_and_the_example(function: Any, words: str) -> None:
    with pytest.raises(RewardError) as caught:
        Reward("m:f", function)(EXAMPLES, ["x", "y"])
    assert re.search(words.replace("(", r"\(").replace(")", r"\)"), str(caught.value))


def test_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards_of_ours.py").write_text("def short(prompts, completions):\n    return [0.0]\nnumber = 3\n")
    assert Reward.load("rewards_of_ours:short").name == "rewards_of_ours:short"
    for name, words in (
        ("rewards_of_ours:long", "cannot load"),
        ("none:x", "No module"),
        ("rewards_of_ours:number", "not a function"),
    ):
        with pytest.raises(RewardError, match=words):
            Reward.load(name)


def test_a_reward_leaves_the_current_folder_behind_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First, a `datasets.py` beside it would hide the library from whatever is imported later."""
    (tmp_path / "my_reward_here.py").write_text("import my_words\ndef score(completions, **_): return [1.0]\n")
    (tmp_path / "my_words.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = list(sys.path)
    for _ in range(2):
        Reward.load("my_reward_here:score")
        assert sys.path == [*before, str(tmp_path)]
    with pytest.raises(RewardError):
        Reward.load("no_such_module_here:score")
    assert sys.path == [*before, str(tmp_path)]
