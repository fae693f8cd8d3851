"""Sampling through a server with OpenAI's interface, on a small server of our own; vLLM itself: `make test-vllm`."""

import json
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from autotelic import endpoint
from autotelic.cli.main import main
from autotelic.errors import UserError
from autotelic.lm.engines import open_engine
from autotelic.lm.sampling import encode, sample

CUT = b'{"choices'
"""A reply that ends before its length."""


class Server:
    """Answers every request with "4", "4 " ...; keeps what it was asked."""

    def __init__(self):
        self.models, self.owner, self.at_once, self.usage, self.status = ["any_pair"], "someone", 99, True, 200
        self.asked: list[tuple[str, dict]] = []
        self.stops_after, self.raw, self.keys, self.gate = 10**6, None, [], None

    def reply(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": name, "owned_by": self.owner} for name in self.models]}
        self.asked.append((path, body))
        if self.gate is not None and len(self.asked) > 1:
            self.gate.wait(30)
        if len(self.asked) > self.stops_after:
            self.status = 503
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
    monkeypatch.setattr(endpoint, "PAUSE", 0.0)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            state.keys.append(self.headers.get("Authorization"))
            found = json.dumps(state.reply(self.path, body)).encode()
            found = found if state.raw is None else state.raw
            self.send_response(state.status)
            if found == CUT:
                self.send_header("Content-Length", "99")
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
    assert len(server.asked) == 1 + 1 + endpoint.RETRIES


def problems(folder, count):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}+4=?", "answer": "4"}) + "\n" for i in range(count)))
    return str(path)


@pytest.mark.parametrize(("stops_after", "kept"), [(2, 2), (4, 4), (5, 4)])
def test_a_server_that_stops_in_the_middle_loses_nothing_that_it_gave(server, tmp_path, capsys, stops_after, kept):
    """One request at a time: two groups, then none; or all four and no greedy response, or not all of those."""
    server.stops_after, out = stops_after, tmp_path / "out.json"
    options = ["--k", "2", "--batch-size", "2", "--quiet", "--output", str(out)]
    data = problems(tmp_path, 4)
    assert main(["eval", "any_pair", "--engine", server.url, "--problems", data, *options]) == 130
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{kept} prompts") and "mean@2     1.000" in captured.out
    assert "greedy" not in captured.out
    assert f"interrupted: {kept} of 4 prompts were sampled (the server at {server.url}/v1/completions" in captured.err
    assert "HTTP 503" in captured.err
    assert len(json.loads(out.read_text())["1.0"]["samples"]) == kept
    assert main(["score", str(out), "--json"]) == 0


def test_what_a_server_gave_before_it_stopped_is_ranked_and_swept(server, tmp_path, capsys):
    server.stops_after, data = 2, problems(tmp_path, 3)
    options = ["--k", "2", "--batch-size", "2", "--json"]
    assert main(["select", data, "--model", "any_pair", "--engine", server.url, *options]) == 130
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["ranking"]) == 2
    assert "interrupted: 2 of 3 prompts at temperature 1.0 (the server at" in captured.err
    arguments = ["eval", "any_pair", "--engine", server.url, "--problems", data, *options, "--no-greedy"]
    server.asked.clear()
    server.stops_after, server.status = 3, 200
    assert main([*arguments, "--temperature", "1", "2"]) == 130
    captured = capsys.readouterr()
    assert json.loads(captured.out)["num_prompts"] == 3
    assert "nothing was sampled at temperature 2.0 (the server at" in captured.err


@pytest.mark.parametrize("command", [["eval", "any_pair", "--problems"], ["select", "--model", "any_pair"]])
def test_a_server_that_gives_nothing_is_one_line(server, tmp_path, capsys, command):
    server.stops_after = 0
    assert main([*command, problems(tmp_path, 2), "--engine", server.url, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("autotelic: error: the server at") and captured.err.count("\n") == 1


def test_ctrl_c_does_not_wait_for_what_is_under_way(server):
    """The first response is there, the second does not come; its thread keeps no process alive."""
    server.gate = threading.Event()

    def interrupt(done):
        raise KeyboardInterrupt

    before, began = set(threading.enumerate()), time.monotonic()
    options = {"k": 1, "progress": interrupt, "keep_interrupted": True}
    got = sample(open_engine(server.url, "any_pair"), None, ["1+1=?", "2+2=?"], **options)
    assert got.done.sum() == 1 and got.stopped == "" and time.monotonic() - began < 10
    ours = [thread for thread in threading.enumerate() if thread not in before and "Thread" not in thread.name]
    assert all(thread.daemon for thread in ours)
    server.gate.set()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (CUT, "gives no answer: IncompleteRead"),
        (b"[]", "gives no answer: the reply is no JSON object"),
        (b"<html>", "gives no answer: the reply is no JSON"),
        (b"{}", r"gave no response: \{\}"),
        (b'{"choices": []}', "gave no response"),
        (b'{"choices": [{"index": 0}]}', "gave no response"),
    ],
)
def test_a_reply_that_cannot_be_read_is_one_line(server, raw, message):
    engine = open_engine(server.url, "any_pair")
    server.raw = raw
    with pytest.raises(UserError, match=message):
        sample(engine, engine.tokenizer, ["1+1=?"])


def test_a_key_goes_out_and_is_named_where_it_is_wanted(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    open_engine(server.url, "any_pair")
    assert server.keys == ["Bearer secret"]
    server.status = 401
    with pytest.raises(UserError, match="refused: HTTP 401 no such thing; the key is read from OPENAI_API_KEY"):
        open_engine(server.url, "any_pair")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://", "is no address of a server"),
        ("ftp://host/v1", "is no address of a server"),
        ("http://host:port", "is no address of a server"),
        ("https://HERE", "gives no answer.*SSL"),
        ("transformers,dtype=auto", "takes no settings, got dtype"),
        ("vllm,max_model_len", "'max_model_len' is no setting"),
        ("vllm,max_model_len=[", "a value cannot be read"),
        ("vllm,nonsense=1", "vLLM cannot start with 'any_pair'.*unexpected keyword argument 'nonsense'"),
        ("localhost:8000", "there are transformers, vllm"),
    ],
)
def test_an_engine_that_cannot_be_is_one_line(server, monkeypatch, capsys, name, message):
    class LLM:
        def __init__(self, model, tokenizer, disable_log_stats, dtype="auto", enforce_eager=False):
            pass

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=LLM))
    name = name.replace("HERE", server.url.removeprefix("http://"))
    assert main(["eval", "any_pair", "--engine", name, "--limit", "1", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(UserError, match=message):
        raise UserError(error)


def test_an_engine_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.0)
    with pytest.raises(UserError, match="there are transformers, vllm"):
        open_engine("sglang", "any_pair")
    with pytest.raises(UserError, match="gives no answer"):
        open_engine("http://127.0.0.1:9", "any_pair")
