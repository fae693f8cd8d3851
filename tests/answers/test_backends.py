"""Equivalence of free text: an endpoint on loopback, a tiny classifier, given vectors. Nothing is asked twice."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from autotelic.answers import cluster, cluster_group, equivalence, equivalent, warm_up
from autotelic.answers.backends import PATIENCE, EmbeddingEquivalence, JudgeEquivalence, NLIEquivalence
from autotelic.errors import UserError

TEXTS = ["the sky is blue", "blue", "blue sky", "red", "red", "crimson"]


def topic(text):
    return "blue" if "blue" in text else "red"


def test_embedding():
    vectors = {"blue": [1.0, 0.1], "red": [0.0, 2.0]}
    backend = EmbeddingEquivalence(encode=lambda texts: [vectors[topic(t)] for t in texts], threshold=0.9)
    assert cluster(TEXTS, equivalence=backend) == [0, 0, 0, 1, 1, 1]
    assert backend.num_encoded == 5
    cluster(TEXTS, equivalence=backend)
    assert backend.num_encoded == 5
    with pytest.raises(UserError, match="cosine"):
        EmbeddingEquivalence(threshold=2.0)


def test_nli_runs_a_transformers_classifier(tmp_path, tiny_classifier):
    """The model's own classes decide; the same pair is not classified twice, and batching changes nothing."""
    backend = NLIEquivalence(model=tiny_classifier, batch_size=3)
    verdicts = backend.compare(["blue sky", "blue", "red"], [(0, 1), (0, 2), (1, 2)])
    alone = NLIEquivalence(model=tiny_classifier, batch_size=1)
    assert verdicts == alone.compare(["blue sky", "blue", "red"], [(0, 1), (0, 2), (1, 2)])
    assert backend.num_calls == 6
    assert set(backend._cache.values()) <= {"entailment", "neutral", "contradiction"}


@pytest.fixture
def tiny_classifier(tmp_path):
    """A random two-layer BERT with the label names of an NLI model, in their usual upper case."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "blue", "red", "sky"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    sizes = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, id2label=labels, label2id={v: k for k, v in labels.items()})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def nli(pairs):
    return ["entailment" if topic(a) == topic(b) else "contradiction" for a, b in pairs]


def test_nli_asks_at_most_u_times_u_minus_1_and_nothing_on_a_second_pass():
    batches = []

    def classify(pairs):
        batches.append(len(pairs))
        return nli(pairs)

    backend = NLIEquivalence(classify=classify, batch_size=8)
    assert cluster(TEXTS, equivalence=backend) == [0, 0, 0, 1, 1, 1]
    assert backend.num_calls == sum(batches) == 5 * 4
    assert max(batches) <= 8
    cluster(TEXTS[::-1], equivalence=backend)
    assert backend.num_calls == 20


def test_nli_reads_answers_with_the_question():
    """ "q a1" entails "q a2": two groups with one pair of answers and different questions are asked twice."""
    pairs = []

    def classify(batch):
        pairs.extend(batch)
        return ["entailment" if "colour" in a else "contradiction" for a, _ in batch]

    backend = NLIEquivalence(classify=classify)
    assert cluster(["red", "crimson"], equivalence=backend, question="What colour?") == [0, 0]
    assert cluster(["red", "crimson"], equivalence=backend, question="Which paint?") == [0, 1]
    assert set(pairs) == {(f"{q} {a}", f"{q} {b}") for q in ("What colour?", "Which paint?")
                          for a, b in (("red", "crimson"), ("crimson", "red"))}  # fmt: skip


def test_nli_strict_and_not():
    """entailment one way and neutral the other: not strict equivalence, but equivalence."""
    one_way = lambda pairs: ["entailment" if len(a) > len(b) else "neutral" for a, b in pairs]  # noqa: E731
    strict, loose = NLIEquivalence(classify=one_way), NLIEquivalence(classify=one_way, strict=False)
    assert cluster(["blue sky", "blue"], equivalence=strict) == [0, 1]
    assert cluster(["blue sky", "blue"], equivalence=loose) == [0, 0]
    assert strict.num_asymmetric == 1
    neutral = NLIEquivalence(classify=lambda pairs: ["neutral"] * len(pairs), strict=False)
    assert cluster(["a", "b"], equivalence=neutral) == [0, 1]
    with pytest.raises(UserError, match="labels"):
        cluster(["a", "b"], equivalence=NLIEquivalence(classify=lambda pairs: ["LABEL_0"] * len(pairs)))


@pytest.fixture
def endpoint():
    """An OpenAI-compatible server: fails as often as told, then compares topics."""
    state = {"requests": 0, "failures": 0, "status": 503, "reply": None, "headers": None}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["requests"] += 1
            state["content"] = body["messages"][0]["content"]
            state["headers"] = dict(self.headers)
            if state["failures"] > 0:
                state["failures"] -= 1
                self.send_error(state["status"])
                return
            lines = body["messages"][0]["content"].splitlines()
            a, b = (line.partition(": ")[2] for line in [*lines, ""][-3:-1])
            word = state["reply"] or ("Yes." if topic(a) == topic(b) else "No.")
            usage = {"prompt_tokens": 10, "completion_tokens": 2}
            data = json.dumps({"choices": [{"message": {"content": word}}], "usage": usage}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(state.get("raw", data))

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", state
    server.shutdown()
    server.server_close()
    thread.join()


def judge(url, **options):
    return JudgeEquivalence(url, "tiny", pause=0.001, price=(1.0, 10.0), **options)


def test_judge_clusters_caches_on_disk_and_counts_cost(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    url, state = endpoint
    cache = tmp_path / "judge" / "cache.jsonl"
    backend = judge(url, cache=cache)
    assert cluster(TEXTS, equivalence=backend) == [0, 0, 0, 1, 1, 1]
    assert state["requests"] == backend.num_calls == 10
    assert state["headers"]["Authorization"] == "Bearer key"
    assert backend.cost == pytest.approx(10 * (10 * 1 + 2 * 10) / 1e6)
    cache.write_text(cache.read_text() + '{"key": "cut')
    again = judge(url, cache=cache)
    assert cluster(TEXTS, equivalence=again) == [0, 0, 0, 1, 1, 1]
    assert again.num_calls == 0


def test_judge_retries_and_gives_up(endpoint):
    url, state = endpoint
    state["failures"] = 2
    assert cluster(["blue", "blue sky"], equivalence=judge(url)) == [0, 0]
    answering = judge(url, retries=1)
    assert cluster(["blue", "blue sky"], equivalence=answering) == [0, 0]
    state["failures"] = 100
    result = cluster_group(["red", "crimson"], equivalence=answering)
    assert result.clusters == [0, 1]
    assert result.num_undecided == 1
    state["failures"], state["status"] = 1, 401
    with pytest.raises(UserError, match="HTTP 401"):
        cluster(["red", "crimson"], equivalence=judge(url))
    state["failures"], state["reply"] = 0, "Perhaps"
    assert cluster_group(["red", "crimson"], equivalence=judge(url)).num_undecided == 1
    with pytest.raises(UserError, match="http"):
        JudgeEquivalence("ftp://x", "m")


def test_a_judge_that_does_not_answer_ends_the_run(endpoint):
    """At once where it never has; else after `PATIENCE` pairs in a row, which are undecided."""
    url, state = endpoint
    state["failures"] = 2
    with pytest.raises(UserError, match=r"the judge does not answer: the server at .* HTTP 503"):
        cluster(["red", "crimson"], equivalence=judge(url, retries=1))
    fading = judge(url, retries=0)
    assert cluster(["red", "crimson"], equivalence=fading) == [0, 0]
    texts = [str(i) for i in range(PATIENCE)]
    state["failures"] = PATIENCE
    pairs = [(i, i + 1) for i in range(PATIENCE - 1)]
    assert fading.compare(texts, pairs) == [None] * len(pairs)
    assert fading.compare(texts, [(0, 2), (0, 3)]) == [None, True]  # it is back
    state["failures"] = 100
    with pytest.raises(UserError, match="does not answer"):
        fading.compare(texts, [(0, i) for i in range(4, PATIENCE)] + [(1, i) for i in range(3, PATIENCE)])


def test_a_judge_is_asked_once_before_anything_is_sampled(endpoint, tmp_path, capsys):
    """Down, or without the key: known before the model is loaded. With kept verdicts it need not be there."""
    from autotelic.cli.main import main

    url, state = endpoint
    state["failures"], state["status"] = 100, 401
    cache = tmp_path / "verdicts.jsonl"
    spec = f"judge,url={url},model=m,pause=0,retries=0,api_key_variable=MY_KEY,cache={cache}"
    for command in (["eval", "no_such_model"], ["select", "chain_sums:train", "--model", "no_such_model"]):
        assert main([*command, "--equivalence", spec]) == 2
        error = capsys.readouterr().err
        assert "HTTP 401" in error and "the key is read from MY_KEY" in error and error.count("\n") == 1
    state["failures"] = 0
    warm_up(equivalence(spec))
    assert state["requests"] == 3 and "1 + 1" in state["content"]
    assert cluster(["blue", "blue sky"], equivalence=equivalence(spec)) == [0, 0]
    state["failures"] = 100
    kept = equivalence(spec)
    warm_up(kept)
    assert cluster(["blue", "blue sky"], equivalence=kept) == [0, 0]


@pytest.mark.parametrize("raw", [b"[1]", b"{}", b'{"choices": [{}], "usage": {"prompt_tokens": null}}', b"{"])
def test_a_reply_without_a_verdict_is_undecided(endpoint, raw):
    url, state = endpoint
    asked = judge(url, retries=0)
    assert cluster(["blue", "blue sky"], equivalence=asked) == [0, 0]
    state["raw"] = raw
    assert cluster_group(["red", "crimson"], equivalence=asked).num_undecided == 1


def test_judge_is_asked_with_the_question_and_a_prompt_of_its_own(endpoint):
    """A verifier that ends with a decision; places in what a model wrote are not filled in."""
    url, state = endpoint
    state["reply"] = "They agree.\nFinal Decision: Yes"
    asked = judge(url, prompt="Q {question}\nfirst: {first}\nsecond: {second}")
    assert equivalent("red {second}", "crimson", equivalence=asked, question="Which colour?")
    assert state["content"] == "Q Which colour?\nfirst: crimson\nsecond: red {second}"
    state["reply"] = "Final Decision: No"
    assert not equivalent("red", "crimson", equivalence=judge(url), question="Which colour?")
    with pytest.raises(UserError, match=r"no place for \{second\}"):
        judge(url, prompt="{first}")


def exact(a, b):
    return a == b


def test_equivalence_is_chosen_by_name(endpoint, tmp_path):
    url, _ = endpoint
    found = equivalence(f"judge,url={url},model=m,retries=0,cache={tmp_path / 'c.jsonl'}")
    assert isinstance(found, JudgeEquivalence)
    assert (found.model, found.endpoint.retries) == ("m", 0)
    assert cluster(TEXTS, equivalence=found) == [0, 0, 0, 1, 1, 1]
    loose = equivalence({"name": "nli", "model": "folder", "strict": False, "batch_size": "4"})
    assert isinstance(loose, NLIEquivalence)
    assert (loose.strict, loose.batch_size) == (False, 4)
    near = equivalence("embedding,threshold=0.5")
    assert isinstance(near, EmbeddingEquivalence) and near.threshold == 0.5
    assert equivalence() is equivalence("math") is None
    function = equivalence(f"{__name__}.exact")
    assert cluster(["1/2", "0.5"], equivalence=function) == [0, 1]
    refused = {
        "judge": "needs url and model", "nli,stric=1": "did you mean 'strict'", "nli,strict=2": "true or false",
        "embed": "did you mean 'embedding'[?] One of: math, nli", "a.b.c": "cannot import",
    }  # fmt: skip
    for spec, said in refused.items():
        with pytest.raises(UserError, match=said):
            equivalence(spec)
