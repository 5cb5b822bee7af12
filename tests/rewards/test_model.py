"""A reward model of random weights against the logits of the model itself."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

from asyncrl.errors import UserError
from asyncrl.models import make_tiny_llama
from asyncrl.rewards.load import load
from asyncrl.rewards.score import RewardRequest

CHAT = [{"role": "system", "content": "be terse"}, {"role": "user", "content": "two plus two"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    def made(num_labels=1, template=TEMPLATE):
        folder = make_tiny_llama(tmp_path_factory.mktemp("model"), seed=0)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.chat_template = template
        config = LlamaConfig.from_pretrained(folder, num_labels=num_labels, pad_token_id=0)
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        saved = tmp_path_factory.mktemp("classifier")
        model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        return saved, model.eval(), tokenizer

    return made


def function_of(folder, **kwargs):
    return load("asyncrl.rewards.model:SequenceClassifier", folder, kwargs={"model": str(folder), **kwargs})


def scores(folder, *completions, prompt=CHAT, **kwargs):
    function = function_of(folder, **kwargs)
    function.check_columns(["prompt", "answer"])
    number = len(completions)
    row = {"prompt": prompt, "answer": "4"}
    return function.score(RewardRequest(prompt, list(completions), [[1]] * number, ["stop"] * number, row))


def test_the_reward_is_the_models_output_for_the_chat_that_its_template_makes(folder_of):
    folder, model, tokenizer = folder_of(num_labels=2)
    found = scores(folder, "four", "a longer answer: four", label=1)
    for score, answer in zip(found, ("four", "a longer answer: four"), strict=True):
        text = f"system: be terse\nuser: two plus two\nassistant: {answer}\n"
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            assert score.reward == pytest.approx(float(model(input_ids=tokens).logits[0, 1]), abs=1e-5)
    assert found[0].reward != found[1].reward


def test_a_text_is_a_users_message(folder_of):
    folder, *_ = folder_of()
    (text,), (chat,) = (
        scores(folder, "four", prompt=prompt)
        for prompt in ("two plus two", [{"role": "user", "content": "two plus two"}])
    )
    assert text.reward == chat.reward is not None


def test_a_chat_that_is_too_long_fails(folder_of):
    folder, *_ = folder_of()
    (score,) = scores(folder, "four", max_tokens=8)
    assert score.reward is None
    assert "tokens, more than max_tokens 8" in score.error


def test_models_whose_score_would_mean_nothing_are_refused(folder_of, tmp_path):
    several, *_ = folder_of(num_labels=2)
    plain, *_ = folder_of(template=None)
    language_model = make_tiny_llama(tmp_path / "model", seed=0)
    for folder, kwargs, message in (
        (several, {}, r"has 2 outputs; say which is the reward, label=0 to 1"),
        (several, {"label": 2}, r"has no output 2, only 0 to 1; say one of them as label"),
        (plain, {}, r"has no chat template; take one that was trained on chats"),
        (language_model, {}, r"lacks score\.weight, so its scores would be random; take a classifier"),
    ):
        with pytest.raises(UserError, match=message):
            _ = function_of(folder, **kwargs).ready
