"""How often cosine of embeddings tells equal short answers from different ones, at several thresholds.

    python benchmarks/answers_embedding.py MODEL

MODEL is a name or folder that sentence-transformers can load (`pip install 'autotelic[text]'`). The pairs are ours:
rewordings of one answer, and answers that differ in the word that matters.
"""

import argparse

from autotelic.answers.backends import EmbeddingEquivalence

SAME = [
    ("the mitochondrion", "mitochondria"),
    ("Paris", "the city of Paris"),
    ("World War II", "the Second World War"),
    ("it increases", "it goes up"),
    ("carbon dioxide", "CO2"),
    ("water boils at 100 degrees Celsius", "the boiling point of water is 100 C"),
    ("photosynthesis", "the process of photosynthesis"),
    ("water", "H2O"),
    ("the demand for the good falls", "less of the good is demanded"),
    ("a decrease in temperature", "the temperature drops"),
    ("natural selection", "selection by nature, as Darwin described"),
    ("the United States", "the USA"),
    ("it is not statistically significant", "the result lacks statistical significance"),
    ("both A and B", "A as well as B"),
    ("the contract is void", "the agreement is invalid"),
    ("twelve metres", "12 m"),
]
DIFFERENT = [
    ("Paris", "London"),
    ("it increases", "it decreases"),
    ("World War I", "World War II"),
    ("oxygen", "carbon dioxide"),
    ("supply rises", "demand rises"),
    ("the left ventricle", "the right ventricle"),
    ("he won the case", "he lost the case"),
    ("1912", "1921"),
    ("the contract is void", "the contract is valid"),
    ("it is statistically significant", "it is not statistically significant"),
    ("a decrease in temperature", "an increase in temperature"),
    ("a positive charge", "a negative charge"),
    ("twelve metres", "thirteen metres"),
    ("before the reaction", "after the reaction"),
    ("A causes B", "B causes A"),
    ("at most three", "at least three"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    model = parser.parse_args().model
    print("threshold  same called same  different called same")
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        backend = EmbeddingEquivalence(model, threshold=threshold)
        same, different = ([backend.compare(pair, [(0, 1)])[0] for pair in pairs] for pairs in (SAME, DIFFERENT))
        right, wrong = sum(map(bool, same)), sum(map(bool, different))
        print(f"{threshold:9.1f}  {right:8d} of {len(same)}  {wrong:8d} of {len(different)}")


if __name__ == "__main__":
    main()
