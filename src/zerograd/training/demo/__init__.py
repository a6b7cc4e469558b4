"""The built-in demo: a toy model and a toy data set, made to show that the program works and nothing more.

`model/` is a three-layer OPT of under a million parameters with its tokenizer, pretrained by ordinary
backpropagation on review text drawn from a small grammar; `data/` holds labelled sentences from the same
grammar (0 negative, 1 positive) that the pretraining text does not contain. The text was built so that the
model starts above chance but far from perfect. Accuracies on it say nothing about real language. Everything
beside this file was written, from the repository root, by

    python scripts/make_demo.py
"""
