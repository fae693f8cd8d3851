"""Slow loops in NumPy and plain Python, written from the papers: what `autotelic.functional` is checked against.

Nothing here imports the package. Every function takes arrays or lists and returns float64.
"""

import math

import numpy as np


def softmax(z, temperature=1.0):
    """One row of logits to probabilities, with -inf allowed."""
    scaled = [float(v) / temperature for v in z]
    top = max(scaled)
    weights = [math.exp(v - top) for v in scaled]
    return [w / sum(weights) for w in weights]


def token_entropy(logits, temperature=1.0):
    """-sum p ln p, row by row."""
    flat = np.asarray(logits, dtype=np.float64).reshape(-1, np.shape(logits)[-1])
    rows = [-sum(p * math.log(p) for p in softmax(row, temperature) if p > 0) for row in flat]
    return np.array(rows).reshape(np.shape(logits)[:-1])


def group_advantages(rewards, scale="std", baseline="mean", eps=1e-6):
    """Each response against its group, one group at a time."""
    result = []
    for group in np.asarray(rewards, dtype=np.float64):
        n = len(group)
        row = []
        mean = sum(group) / n
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (n - 1))
        for i, r in enumerate(group):
            others = [x for j, x in enumerate(group) if j != i]
            base = mean if baseline == "mean" else sum(others) / len(others)
            constant = max(group) == min(group)
            divisor = {"std": std + eps, "mean": mean, "none": 1.0}[scale]
            row.append(0.0 if constant else (r - base) / divisor)
        result.append(row)
    return np.array(result)


def token_covariance(logprobs, advantages, mask):
    """(ln p - mean)(A - mean) over the tokens of the mask, 0 elsewhere."""
    at = list(zip(*np.nonzero(mask), strict=True))
    result = np.zeros(np.shape(mask))
    if not at:
        return result
    mean_l = sum(float(logprobs[i]) for i in at) / len(at)
    mean_a = sum(float(advantages[i]) for i in at) / len(at)
    for i in at:
        result[i] = (float(logprobs[i]) - mean_l) * (float(advantages[i]) - mean_a)
    return result


def clip_cov(advantages, covariance, mask, fraction, low, high, priority):
    """Zero on the floor(fraction N) candidates of lowest priority, in row-major order on ties."""
    budget = math.floor(fraction * int(np.sum(mask)))
    candidates = [i for i in zip(*np.nonzero(mask), strict=True) if low < covariance[i] < high]
    chosen = sorted(candidates, key=lambda i: (priority[i], i))[:budget]
    result, selected = np.where(mask, advantages, 0.0), np.zeros(np.shape(mask), dtype=bool)
    for i in chosen:
        result[i], selected[i] = 0.0, True
    return result, selected


def kl_cov(advantages, log_ratio, covariance, mask, fraction, coef):
    """A - coef sign(log r) / r on the floor(fraction N) tokens of largest positive covariance."""
    count = math.floor(fraction * int(np.sum(mask)))
    positive = [i for i in zip(*np.nonzero(mask), strict=True) if covariance[i] > 0]
    chosen = sorted(positive, key=lambda i: (-covariance[i], i))[:count]
    result, selected = np.where(mask, advantages, 0.0), np.zeros(np.shape(mask), dtype=bool)
    for i in chosen:
        result[i] -= coef * np.sign(log_ratio[i]) / math.exp(log_ratio[i])
        selected[i] = True
    return result, selected


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low, clip_high):
    """-min(r A, clip(r) A), token by token."""
    result = np.zeros(np.shape(logprobs))
    for i in np.ndindex(np.shape(logprobs)):
        ratio = math.exp(float(logprobs[i]) - float(old_logprobs[i]))
        clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
        result[i] = -min(ratio * float(advantages[i]), clipped * float(advantages[i]))
    return result


def semantic_entropy(clusters):
    """-sum p ln p over clusters; a negative number is a cluster of its own each time it occurs."""
    result = []
    for group in np.asarray(clusters):
        sizes = [1 for c in group if c < 0] + [int(np.sum(group == c)) for c in set(group.tolist()) if c >= 0]
        result.append(-sum(s / len(group) * math.log(s / len(group)) for s in sizes))
    return np.array(result)


def weighted_semantic_entropy(clusters, sequence_logprobs):
    """-sum p(c) ln p(c), p(c) the summed softmax weight of the responses in c."""
    result = []
    for group, logprobs in zip(np.asarray(clusters), np.asarray(sequence_logprobs, dtype=np.float64), strict=True):
        weights, mass = softmax(logprobs), {}
        for i, (c, w) in enumerate(zip(group.tolist(), weights, strict=True)):
            key = ("alone", i) if c < 0 else c
            mass[key] = mass.get(key, 0.0) + w
        result.append(-sum(m * math.log(m) for m in mass.values()))
    return np.array(result)


def consensus_reward(clusters, denominator="group"):
    """Share of the group (or of its parseable answers) with the same answer."""
    result = []
    for group in np.asarray(clusters).tolist():
        total = len(group) if denominator == "group" else max(sum(c >= 0 for c in group), 1)
        result.append([0.0 if c < 0 else group.count(c) / total for c in group])
    return np.array(result)


def entropy_minimization(logits, mask, temperature, reduction):
    """Mean over tokens, mean over sequences of means, or sum, of the token entropies."""
    rows = []
    for row, keep in zip(token_entropy(logits, temperature), mask, strict=True):
        rows.append([h for h, k in zip(row, keep, strict=True) if k])
    everything = [h for row in rows for h in row]
    if reduction == "token_mean":
        return sum(everything) / len(everything)
    if reduction == "token_sum":
        return sum(everything)
    means = [sum(row) / len(row) for row in rows if row]
    return sum(means) / len(means)


def full_kl(p_logits, q_logits):
    """sum p (ln p - ln q) of one row each."""
    p, q = softmax(p_logits), softmax(q_logits)
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def top_k(values, eligible, k, ids):
    """The k eligible entries of largest value, lower identity first on ties."""
    at = sorted(zip(*np.nonzero(eligible), strict=True), key=lambda i: (-values[i], ids[i]))[:k]
    result = np.zeros(np.shape(eligible), dtype=bool)
    for i in at:
        result[i] = True
    return result


def dppo_keeps(advantage, pi, mu, divergence, low, high):
    """Whether DPPO trains on one token."""
    if divergence == "tv":
        return advantage == 0 or (pi - mu <= high if advantage > 0 else pi - mu >= -low)
    d = mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu + 1e-8) / (1 - pi + 1e-8))
    away = (advantage > 0 and pi > mu) or (advantage < 0 and pi < mu)
    return not (d > high and away)


def erc_keeps(entropy, old_entropy, low, high):
    """Whether ERC trains on one token."""
    return low < (entropy + 1e-8) / (old_entropy + 1e-8) < high


def estr_keeps(logprob, sampler_logprob, sampler_entropy, tau, eps):
    """Whether ESTR trains on one token."""
    return (logprob - sampler_logprob) ** 2 <= tau * (sampler_entropy + eps)


def entrocraft_keeps(advantage, entropy, low, high):
    """Whether Entrocraft trains on one response."""
    if entropy > high:
        return advantage >= 0
    return advantage <= 0 if entropy < low else True


def ce_gppo_loss_gradient(advantage, ratio, beta_low, beta_high, low, high, c):
    """-dL / d ln pi of CE-GPPO's loss for one token, branch by branch."""
    if advantage < 0 and ratio > c:
        return 0.0
    if advantage < 0 and ratio < 1 - low:
        return beta_low * (1 - low) * advantage
    if advantage > 0 and ratio > 1 + high:
        return beta_high * (1 + high) * advantage
    return ratio * advantage


def aem_weights(entropy, mask, prompts, coef, min_range):
    """exp(-coef h) over its mean in the prompt, h the min-max-normalised mean entropy of each turn."""
    spans = []
    for row in range(len(mask)):
        start = None
        for t in range(len(mask[row]) + 1):
            inside = t < len(mask[row]) and mask[row][t]
            if inside and start is None:
                start = t
            if not inside and start is not None:
                spans.append((row, start, t, float(np.mean(entropy[row][start:t]))))
                start = None
    result = np.ones(np.shape(mask))
    for prompt in set(np.asarray(prompts).tolist()):
        own = [span for span in spans if prompts[span[0]] == prompt]
        if not own:
            continue
        low, high = min(s[3] for s in own), max(s[3] for s in own)
        if high - low < min_range:
            continue
        weights = [math.exp(-coef * (s[3] - low) / (high - low)) for s in own]
        for (row, start, end, _), weight in zip(own, weights, strict=True):
            result[row, start:end] = weight / (sum(weights) / len(weights))
    return result


def min_p_proxy(logits, kappa):
    """softmax without the tokens below kappa times the largest probability, renormalised."""
    p = softmax(logits)
    kept = [x if x > kappa * max(p) else 0.0 for x in p]
    return [x / sum(kept) for x in kept]
