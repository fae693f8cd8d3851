"""Sampling through a server with OpenAI's interface, on a small server of our own; vLLM itself: `make test-vllm`."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from autotelic.cli.main import main
from autotelic.errors import UserError
from autotelic.lm import engines
from autotelic.lm.engines import open_engine
from autotelic.lm.sampling import encode, sample


class Server:
    """Answers every request with "4", "4 " ...; keeps what it was asked."""

    def __init__(self):
        self.models, self.owner, self.at_once, self.usage, self.status = ["any_pair"], "someone", 99, True, 200
        self.asked: list[tuple[str, dict]] = []

    def reply(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": name, "owned_by": self.owner} for name in self.models]}
        self.asked.append((path, body))
        count = min(body["n"], self.at_once)
        texts = ["4" + " " * (body["seed"] % 7 + i) for i in range(count)]
        if path == "/v1/chat/completions":
            choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]
        else:
            choices = [{"text": text, "finish_reason": "length"} for text in texts]
        if body.get("return_token_ids"):
            choices = [choice | {"token_ids": [5, 6, 1]} for choice in choices]
        return {"choices": choices} | ({"usage": {"completion_tokens": 10 * count}} if self.usage else {})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(engines, "PAUSE", 0.0)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            found = json.dumps(state.reply(self.path, body)).encode()
            self.send_response(state.status)
            self.end_headers()
            self.wfile.write(found if state.status == 200 else b"no such thing")

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *args):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{web.server_port}"
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


def test_token_ids_go_out_and_groups_come_back_in_order(server):
    """Prompt p asks with seed 3 + 2 p for two responses: their texts tell them apart."""
    engine = open_engine(server.url, "any_pair")
    seen = []
    got = sample(
        engine,
        engine.tokenizer,
        ["1+1=?", "2+2=?", "9=?"],
        k=2,
        temperature=0.7,
        seed=3,
        batch_size=4,
        progress=seen.append,
    )
    assert [len(text) for text in got.texts] == [4, 5, 6, 7, 1, 2]
    assert got.done.all() and not got.ended.any() and got.entropy is None and sorted(seen) == [2, 4, 6]
    assert got.num_tokens.tolist() == [10.0] * 6 and got.complete(2) == [True] * 3
    path, body = min(server.asked, key=lambda asked: asked[1]["seed"])
    assert path == "/v1/completions" and body["prompt"] == encode("1+1=?", engine.tokenizer)
    assert (body["n"], body["temperature"], body["top_p"], body["max_tokens"]) == (2, 0.7, 1.0, 64)
    assert "top_k" not in body  # OpenAI's own server refuses what it does not know


def test_vllms_server_is_told_to_shape_nothing_and_gives_tokens(server):
    """It would take top-k and penalties from the model's generation_config.json."""
    server.owner = "vllm"
    got = sample(open_engine(server.url + "/v1/", "any_pair"), None, ["1+1=?"], k=2)
    body = server.asked[0][1]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert got.tokens == [[5, 6, 1]] * 2 and got.num_tokens.tolist() == [3, 3]


def test_a_server_that_gives_one_response_at_a_time_is_asked_again(server):
    server.at_once, server.usage = 1, False
    got = sample(open_engine(server.url, "any_pair"), None, ["1+1=?"], k=3, seed=1)
    assert [body["n"] for _, body in server.asked] == [3, 2, 1]
    assert [body["seed"] for _, body in server.asked] == [1, 2, 3]
    assert len(set(got.texts)) == 3 and np.isnan(got.num_tokens).all()


def test_without_the_tokenizer_messages_go_out_and_the_server_applies_its_template(server, tmp_path, capsys):
    server.models = ["model-of-a-provider"]
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "2+2=?", "answer": "4"}\n')
    arguments = ["eval", "model-of-a-provider", "--engine", server.url, "--problems", str(data), "--k", "2", "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["mean@2"]["value"] == 1.0 and result["length"]["value"] == 10.0 and result["greedy"]["value"] == 1.0
    assert "entropy" not in result and result["settings"]["engine"] == server.url
    assert "no entropy" in err and "through its chat template" in err
    assert {path for path, _ in server.asked} == {"/v1/chat/completions"}
    assert server.asked[0][1]["messages"] == [{"role": "user", "content": "2+2=?"}]
    assert main([*arguments, "--chat", "off"]) == 0
    assert server.asked[-1] == ("/v1/completions", server.asked[-1][1]) and server.asked[-1][1]["prompt"] == "2+2=?"


def test_select_ranks_what_a_server_sampled(server, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "2+2=?", "answer": "4"}\n{"prompt": "2+3=?", "answer": "5"}\n')
    arguments = ["select", str(data), "--model", "any_pair", "--engine", server.url, "--k", "4", "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert [row["mean"] for row in json.loads(out)["ranking"]] == [1.0, 0.0]
    assert "no token_entropy" in err
    assert main([*arguments, "--by", "token_entropy"]) == 2
    assert "cannot rank by 'token_entropy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [("other", {}, "has no model 'other'; it has any_pair"), ("any_pair", {"dtype": "auto"}, "takes no settings here")],
)
def test_what_a_server_cannot_do_is_one_line(server, model, settings, message):
    with pytest.raises(UserError, match=message):
        open_engine(server.url, model, settings)


def test_an_error_of_the_server_is_one_line(server):
    engine = open_engine(server.url, "any_pair")
    server.status = 400
    with pytest.raises(UserError, match="HTTP 400 no such thing"):
        sample(engine, engine.tokenizer, ["1+1=?"])
    server.status = 503
    with pytest.raises(UserError, match="HTTP 503"):
        sample(engine, engine.tokenizer, ["1+1=?"])
    assert len(server.asked) == 1 + 1 + engines.RETRIES


def test_an_engine_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(engines, "PAUSE", 0.0)
    with pytest.raises(UserError, match="there are transformers, vllm"):
        open_engine("sglang", "any_pair")
    with pytest.raises(UserError, match="gives no answer"):
        open_engine("http://127.0.0.1:9", "any_pair")
