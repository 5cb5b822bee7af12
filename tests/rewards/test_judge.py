"""The judge against a small server that speaks as OpenAI's."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from asyncrl.errors import UserError
from asyncrl.rewards.load import load
from asyncrl.rewards.score import RewardRequest

CHAT = [{"role": "user", "content": "What is 2 + 2?"}]
REPLIES = {
    "good": "Clear and right.\n\n**Score: 8**",
    "both": "I thought of Score: 2 first.\nScore: 7.5",
    "mute": "I would rather not say.",
    "too much": "Score: 11",
    "empty": None,
}


class Server(ThreadingHTTPServer):
    """Replies by what stands in the answer; `asked`: bodies and headers of all requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.statuses = [], []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, dict(self.headers)))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        answer = body["messages"][1]["content"].partition("<answer>\n")[2].partition("\n</answer>")[0]
        said = json.dumps({"choices": [{"message": {"role": "assistant", "content": REPLIES.get(answer)}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("asyncrl.rewards.judge.time.sleep", lambda seconds: None)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture
def judge(server, tmp_path):
    def made(**kwargs):
        url = f"http://127.0.0.1:{server.server_port}/v1"
        kwargs = {"rubric": "Is it right?", "model": "wise", "base_url": url, **kwargs}
        return load("asyncrl.rewards.judge:Judge", tmp_path, kwargs=kwargs)

    return made


def scores(function, *completions, prompt=CHAT, **row):
    number = len(completions)
    return function.score(RewardRequest(prompt, list(completions), [[1]] * number, ["stop"] * number, row))


def test_a_score_is_parsed_by_its_last_match_and_divided_by_the_best(judge):
    good, both = scores(judge(), "good", "both")
    assert (good.reward, both.reward) == (0.8, 0.75)
    assert good.notes == {"verdict": REPLIES["good"]}


def test_what_is_asked(judge, server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k")
    function = judge(api_key_variable="JUDGE_KEY", reference_column="answer", options={"seed": 3})
    assert scores(function, "good", answer=4)[0].error is None
    ((path, body, headers),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer k"
    assert (body["model"], body["temperature"], body["seed"]) == ("wise", 0, 3)
    system, user = body["messages"]
    assert system["content"].startswith("Is it right?\n")
    assert "from 0 to 10" in system["content"]
    assert user["content"] == (
        "<prompt>\nuser: What is 2 + 2?\n</prompt>\n<answer>\ngood\n</answer>\n<reference>\n4\n</reference>"
    )


def test_a_reply_without_a_score_fails_that_completion_alone(judge):
    found = scores(judge(), "mute", "good", "too much", "empty")
    assert [score.reward for score in found] == [None, 0.8, None, None]
    assert found[0].error == "ValueError: the judge's reply has no score"
    assert found[2].error == "ValueError: the judge's score 11 is not from 0 to 10"
    assert found[3].error == "ValueError: the judge's reply has no text"


def test_the_same_text_is_asked_once(judge, server):
    function = judge()
    first = scores(function, "good", "good", "both")
    again = scores(function, "good")
    assert len(server.asked) == 2
    assert [score.extras["cached"] for score in (*first, *again)] == [0.0, 0.0, 0.0, 1.0]
    assert again[0].reward == first[0].reward
    assert scores(function, "good", prompt="another")[0].extras["cached"] == 0.0


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(judge, server):
    server.statuses = [503, 429]
    assert scores(judge(), "good")[0].reward == 0.8
    assert len(server.asked) == 3
    server.statuses = [401]
    (refused,) = scores(judge(), "both")
    assert refused.error.startswith("ConnectionError: the judge at http://127.0.0.1:")
    assert refused.error.endswith("answers HTTP 401 Unauthorized")
    assert len(server.asked) == 4


def test_a_judge_that_is_not_there_is_a_failure(judge):
    (score,) = scores(judge(base_url="http://127.0.0.1:1/v1"), "good")
    assert score.reward is None
    assert "cannot be reached: [Errno 111] Connection refused" in score.error


@pytest.mark.parametrize(
    ("pattern", "message"), [("score", "has no group; put the score in parentheses"), ("(", "is no regular expression")]
)
def test_a_pattern_that_gives_no_score_is_refused(judge, pattern, message):
    with pytest.raises(UserError, match=message):
        _ = judge(pattern=pattern).ready
