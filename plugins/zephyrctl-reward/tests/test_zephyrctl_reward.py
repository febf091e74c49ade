"""Whether the `reward` teacher scores as its classifier does, keeps marks with their answers, and refuses to speak."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import zephyrctl_reward
from zephyrctl_reward import Reward

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Message
from zephyrctl.testing import check_plugin, check_teacher, write_tokenizer

pytestmark = pytest.mark.slow

ASKED = [Message(role="user", content="Where is Paris?")]
ANSWERS = ["In France, on the Seine.", "I do not know.", "Paris"]


def classifier(folder: Path, labels: int = 1) -> Path:
    """A sequence classifier with random weights, saved as any other is."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    write_tokenizer(folder, ["<s>", "</s>"], "<s>", "</s>")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=258, num_labels=labels, initializer_range=0.5, pad_token_id=1, **shape)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model."""
    return classifier(tmp_path_factory.mktemp("reward") / "tiny-reward")


def teacher(folder: Path, **options: Any) -> Reward:
    """The teacher as a recipe makes it."""
    made = plugins.load().teacher("reward", {"model": str(folder), **options})
    assert isinstance(made, Reward)
    return made


def talk(made: Reward, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do some asynchronous work and close the teacher after it."""

    async def do() -> Any:
        try:
            return await work()
        finally:
            await made.close()

    return asyncio.run(do())


def test_it_keeps_the_contract(folder: Path) -> None:
    check_plugin(zephyrctl_reward)
    check_teacher(lambda: teacher(folder), replies=False)
    assert plugins.load().find("teacher", "reward").origin.startswith("zephyrctl-reward ")


def test_scores_are_the_classifier_s_and_marks_stay_in_their_order(folder: Path) -> None:
    """Alone, in a batch and in any order: what scores higher is rated, judged and preferred higher."""
    from zephyrctl_reward.worker import Classifier

    alone = [
        Classifier(str(folder), None).scores(
            [[{"role": "user", "content": "Where is Paris?"}, {"role": "assistant", "content": answer}]], 2048
        )[0]
        for answer in ANSWERS
    ]
    assert len(set(alone)) == 3
    made = teacher(folder, middle=sorted(alone)[1], spread=0.5)

    async def use() -> Any:
        ratings = await made.rate(ASKED, ANSWERS, "honesty")
        turned = await made.rate(ASKED, ANSWERS[::-1], "helpfulness")
        judged = [(await made.judge(ASKED, answer)).score for answer in ANSWERS]
        better = await made.compare(ASKED, ANSWERS[0], ANSWERS[1])
        same = await made.compare(ASKED, ANSWERS[0], ANSWERS[0])
        return ratings, turned, judged, better, same, await made.critique(ASKED, ANSWERS[0])

    ratings, turned, judged, better, same, critique = talk(made, use)
    values = [mark.value for mark in ratings.marks]
    assert values == [made.on_scale(score, 5) for score in alone]
    assert [mark.value for mark in turned.marks] == values[::-1]
    assert sorted(values)[1] == 3.0 and min(values) < 3 < max(values)
    order = sorted(range(3), key=lambda place: alone[place])
    assert sorted(range(3), key=lambda place: values[place]) == order
    assert sorted(range(3), key=lambda place: judged[place]) == order
    assert (better, same) == (float(alone[0] > alone[1]), 0.5)
    assert (critique.overall, critique.text) == (judged[0], f"score {alone[0]:g}")
    assert {mark.rater for mark in ratings.marks} == {"tiny-reward"}


@pytest.mark.parametrize("score", [-1e9, -3.0, 0.0, 3.0, 1e9])
def test_the_scale_is_kept_and_rises(folder: Path, score: float) -> None:
    made = teacher(folder)
    assert 1 <= made.on_scale(score, 5) <= 5 and 1 <= made.on_scale(score, 10) <= 10
    assert made.on_scale(score, 5) <= made.on_scale(score + 1, 5)
    assert (made.on_scale(0, 5), round(made.on_scale(2, 5), 2)) == (3.0, 3.92)


def answered(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What the worker answers to these lines."""
    from zephyrctl_reward.worker import serve

    replies = StringIO()
    serve(StringIO("".join(json.dumps(request) + "\n" for request in requests)), replies)
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def test_of_a_long_conversation_the_end_is_read(folder: Path) -> None:
    talks = [[{"role": "assistant", "content": letter * 400 + "a" * 40}] for letter in "yz"]
    request = {"conversations": talks, "max_tokens": 32}
    _, short, long = answered({"load": str(folder), "revision": None}, request, request | {"max_tokens": 64})
    assert short["scores"][0] == short["scores"][1]
    assert long["scores"][0] != long["scores"][1]


def test_it_refuses_to_speak(folder: Path) -> None:
    """With a remedy, and without starting anything."""
    made = teacher(folder)
    with pytest.raises(ZephyrError, match="only scores") as caught:
        asyncio.run(made.refine("Why?", "Because."))
    assert "as a rater or a judge" in caught.value.remedy
    assert made._worker is None


@pytest.mark.parametrize(("labels", "reason"), [(2, "it has 2 logits"), (0, "cannot be used")])
def test_what_is_no_reward_model_is_refused(tmp_path: Path, labels: int, reason: str) -> None:
    wrong = classifier(tmp_path / "wrong", labels) if labels else tmp_path
    (reply,) = answered({"load": str(wrong), "revision": None})
    assert reason in reply["problem"]
    assert "one logit" in reply["remedy"]


def test_of_a_model_that_cannot_be_loaded_no_worker_is_left(tmp_path: Path) -> None:
    """The next call would ask one that has loaded nothing."""
    made = teacher(tmp_path)

    async def use() -> None:
        with pytest.raises(ZephyrError, match=f"{tmp_path.name}: the reward model cannot be used") as caught:
            await made.judge(ASKED, "Yes.")
        assert "one logit" in caught.value.remedy
        assert made._worker is None

    talk(made, use)
