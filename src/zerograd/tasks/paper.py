"""The paper's tasks: label words after a prompt (Table 12) or in place of a mask (Table 11), texts of the row to choose
from, and questions whose answers are generated (Table 12 of arXiv 2305.17333)."""

from zerograd.tasks.task import Row, Task
from zerograd.tasks.templates import MASK, TaskError

CONJUNCTIONS = {"effect": "so", "cause": "because"}


def _sentence(row: Row) -> str:
    return str(row["sentence"] if "sentence" in row else row["text"]).strip()


def _review(row: Row) -> str:
    return f"{_sentence(row)} It was"


def _means(row: Row) -> str:
    return f'{row["premise"]}\nDoes this mean that "{row["hypothesis"]}" is true?'


def _pair(row: Row) -> str:
    """Premise without its last character, whichever that is, then the hypothesis with a small first letter.

    LM-BFF's template, which takes both texts as they are: their own outer spaces stay.
    """
    premise, hypothesis = str(row["premise"]), str(row["hypothesis"])
    return f"{premise[:-1]}?{MASK}, {hypothesis[:1].lower()}{hypothesis[1:]}"


def _question(row: Row) -> str:
    text = str(row["question"])
    text = text if text.endswith("?") else f"{text}?"
    return text[:1].upper() + text[1:]


def _premise(row: Row) -> str:
    conjunction = CONJUNCTIONS.get(row["question"])
    if conjunction is None:
        raise TaskError(f"has {row['question']!r} in column 'question', where effect or cause belongs")
    return f"{row['premise'].rstrip().removesuffix('.')} {conjunction}"


def _as_clause(text: str) -> str:
    """A sentence that goes on: its first word in small letters, unless it is "I"."""
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def _entities(row: Row) -> list[str]:
    if not row["entities"]:
        raise TaskError("has no candidates in column 'entities'")
    return [row["query"].replace("@placeholder", entity) for entity in row["entities"]]


def _right_entities(row: Row) -> list[int]:
    missing = [a for a in row["answers"] if a not in row["entities"]]
    if missing or not row["answers"]:
        raise TaskError(f"has the answers {row['answers']!r}, which are not all among its entities")
    return [row["entities"].index(answer) for answer in row["answers"]]


SST2 = Task(
    name="sst2",
    hub=("nyu-mll/glue", "sst2"),
    columns=("sentence",),
    labels=("terrible", "great"),
    prompt=_review,
    masked_prompt=lambda row: f"{_review(row)}{MASK}.",
    passage="sentence",
    example={"sentence": "two hours that feel like ten minutes", "label": 1},
)
SST5 = Task(
    name="sst5",
    hub=("SetFit/sst5", None),
    columns=("text",),
    labels=("terrible", "bad", "okay", "good", "great"),
    prompt=_review,
    masked_prompt=lambda row: f"{_review(row)}{MASK}.",
    passage="text",
    test_split="test",
    masked_only=True,
    example={"text": "neither funny nor dull", "label": 2},
)
TREC = Task(
    name="trec",
    hub=("CogComp/trec", None),
    columns=("text",),
    label_column="coarse_label",
    labels=("Expression", "Entity", "Description", "Human", "Location", "Number"),
    prompt=lambda row: f"{_sentence(row)} Topic:",
    masked_prompt=lambda row: f"{MASK}: {_sentence(row)}",
    passage="text",
    test_split="test",
    masked_only=True,
    example={"text": "Which river runs through Vienna ?", "coarse_label": 4},
)
MNLI = Task(
    name="mnli",
    hub=("nyu-mll/glue", "mnli"),
    columns=("premise", "hypothesis"),
    labels=("Yes", "Maybe", "No"),
    prompt=lambda row: f"{_means(row)} Yes, Maybe, or No?\n",
    masked_prompt=_pair,
    passage="premise",
    test_split="validation_matched",
    masked_only=True,
    example={"premise": "The shop opens at nine.", "hypothesis": "The shop is open at ten.", "label": 1},
)
SNLI = Task(
    name="snli",
    hub=("stanfordnlp/snli", None),
    columns=("premise", "hypothesis"),
    labels=("Yes", "Maybe", "No"),
    prompt=lambda row: f"{_means(row)} Yes, Maybe, or No?\n",
    masked_prompt=_pair,
    passage="premise",
    test_split="test",
    masked_only=True,
    example={"premise": "A girl rides a red bicycle.", "hypothesis": "A girl is asleep.", "label": 2},
)
RTE = Task(
    name="rte",
    hub=("aps/super_glue", "rte"),
    columns=("premise", "hypothesis"),
    labels=("Yes", "No"),
    prompt=lambda row: f"{_means(row)} Yes or No?\n",
    masked_prompt=_pair,
    passage="premise",
    example={"premise": "Ada lives in Turin, in Italy.", "hypothesis": "Ada lives in Italy.", "label": 0},
)
CB = Task(
    name="cb",
    hub=("aps/super_glue", "cb"),
    columns=("premise", "hypothesis"),
    labels=("Yes", "No", "Maybe"),
    prompt=lambda row: f'Suppose {row["premise"]} Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?\n',
    passage="premise",
    num_dev=100,
    example={"premise": "I doubt that he ever saw it.", "hypothesis": "he saw it", "label": 1},
)
BOOLQ = Task(
    name="boolq",
    hub=("google/boolq", None),
    columns=("passage", "question"),
    label_column="answer",
    label_values=(True, False),
    labels=("Yes", "No"),
    prompt=lambda row: f"{row['passage']} {_question(row)}\n",
    passage="passage",
    example={"passage": "Whales are mammals that live in the sea.", "question": "is a whale a fish", "answer": False},
)
WSC = Task(
    name="wsc",
    hub=("aps/super_glue", "wsc.fixed"),
    columns=("text", "span1_text", "span2_text"),
    labels=("No", "Yes"),
    prompt=lambda row: (
        f'{row["text"]}\nIn the previous sentence, does the pronoun "{row["span2_text"].lower()}" refer to '
        f"{row['span1_text']}? Yes or No?\n"
    ),
    passage="text",
    example={"text": "Tom thanked Ben because he had helped.", "span1_text": "Ben", "span2_text": "he", "label": 1},
)
WIC = Task(
    name="wic",
    hub=("aps/super_glue", "wic"),
    columns=("word", "sentence1", "sentence2"),
    labels=("No", "Yes"),
    prompt=lambda row: (
        f'Does the word "{row["word"]}" have the same meaning in these two sentences? Yes, No?\n'
        f"{row['sentence1']}\n{row['sentence2']}\n"
    ),
    example={"word": "bank", "sentence1": "We sat on the bank.", "sentence2": "The bank is shut.", "label": 0},
)
MULTIRC = Task(
    name="multirc",
    hub=("aps/super_glue", "multirc"),
    columns=("paragraph", "question", "answer"),
    labels=("No", "Yes"),
    prompt=lambda row: (
        f'{row["paragraph"]}\nQuestion: {row["question"]}\nI found this answer "{row["answer"]}". '
        "Is that correct? Yes or No?\n"
    ),
    passage="paragraph",
    example={"paragraph": "Mia has a cat.", "question": "Which pet has Mia?", "answer": "a dog", "label": 0},
)
COPA = Task(
    name="copa",
    hub=("aps/super_glue", "copa"),
    columns=("premise", "question", "choice1", "choice2"),
    prompt=_premise,
    candidates=lambda row: [_as_clause(row["choice1"]), _as_clause(row["choice2"])],
    passage="premise",
    num_dev=100,
    example={
        "premise": "The ice melted.", "question": "cause", "choice1": "It was cold.", "choice2": "The sun shone.",
        "label": 1,
    },
)  # fmt: skip
RECORD = Task(
    name="record",
    hub=("aps/super_glue", "record"),
    columns=("passage", "query", "entities", "answers"),
    prompt=lambda row: row["passage"].replace("@highlight\n", "- ") + "\n-",
    candidates=_entities,
    correct=_right_entities,
    passage="passage",
    example={
        "passage": "Ada met Ben in Turin.\n@highlight\nThey had coffee", "query": "Then @placeholder took the train.",
        "entities": ["Ada", "Ben"], "answers": ["Ben"],
    },
)  # fmt: skip
SQUAD = Task(
    name="squad",
    hub=("rajpurkar/squad", None),
    columns=("title", "context", "question", "answers"),
    prompt=lambda row: (
        f"Title: {row['title']}\nContext: {row['context']}\nQuestion: {row['question'].strip()}\nAnswer:"
    ),
    answers=lambda row: row["answers"]["text"],
    passage="context",
    example={
        "title": "Tea", "context": "Tea came to Europe in 1610.", "question": "When did tea come to Europe?",
        "answers": {"text": ["1610"], "answer_start": [22]},
    },
)  # fmt: skip
DROP = Task(
    name="drop",
    hub=("ucinlp/drop", None),
    columns=("passage", "question", "answers_spans"),
    prompt=lambda row: f"Passage: {row['passage']}\nQuestion: {row['question'].strip()}\nAnswer:",
    answers=lambda row: row["answers_spans"]["spans"],
    passage="passage",
    example={
        "passage": "Ada won 3 games and Ben won 2.", "question": "How many games were won?",
        "answers_spans": {"spans": ["5"], "types": ["number"]},
    },
)  # fmt: skip
