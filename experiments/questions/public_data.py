"""Turns the rows of public data sets into questions.

The wordings are those of the data sets' papers, lm-eval and HELM, without examples. Rows may have more fields than are
named here. A data set whose copy on the hub has other fields than the authors' file has two row classes.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from msgspec import Struct

from calibration.humaneval import HumanEvalTask
from experiments.questions.workload import Question


class Record(Protocol):
    """A row of a data set."""

    def ask(self) -> Iterable[Question]: ...


class Alpaca(Struct):
    """Taori et al. 2023. Without Alpaca's own prompt frame, as the chat template marks instruction and answer."""

    instruction: str
    output: str
    input: str = ""

    def ask(self) -> Iterator[Question]:
        yield Question(f"{self.instruction}\n\n{self.input}".strip(), self.output, metric="rouge_l")


class XSum(Struct):
    """Narayan et al. 2018: a BBC article, and the sentence that introduces it."""

    document: str
    summary: str

    def ask(self) -> Iterator[Question]:
        please = "Summarize the above article in 1 sentence."
        yield Question(f"Article: {self.document}\n\n{please}", self.summary, metric="rouge_l")


class BoolQ(Struct):
    """Clark et al. 2019: a passage, and a question about it with the answer yes or no."""

    question: str
    passage: str
    answer: bool

    def ask(self) -> Iterator[Question]:
        prompt = f"{self.passage}\nQuestion: {self.question.rstrip('?')}?\nAnswer (yes or no):"
        yield Question(prompt, "yes" if self.answer else "no", metric="accuracy")


class Review(Struct):
    """IMDB, Maas et al. 2011, as on the hub. `label`: 0 negative, 1 positive."""

    text: str
    label: int

    def ask(self) -> Iterator[Question]:
        review = self.text.replace("<br />", "\n")
        prompt = f"{review}\nQuestion: Is this review positive or negative?\nAnswer:"
        yield Question(prompt, ("negative", "positive")[self.label], metric="accuracy")

    def __post_init__(self) -> None:
        if self.label not in (0, 1):
            raise ValueError(f"a label is 0 or 1, not {self.label}")


class PublicText(Struct):
    """An answer of QuAC."""

    text: str


class Turn(Struct):
    """One question of QuAC with its answer."""

    question: str
    orig_answer: PublicText


class Paragraph(Struct):
    """A passage of QuAC with the questions about it."""

    context: str
    qas: list[Turn]


class QuAC(Struct):
    """Choi et al. 2018: a dialogue about a section of Wikipedia, an element of "data" in the authors' file.

    Each question includes the earlier ones with their right answers. The right answer is the teacher's own.
    """

    title: str
    section_title: str
    paragraphs: list[Paragraph]
    background: str = ""

    def ask(self) -> Iterator[Question]:
        for paragraph in self.paragraphs:
            about = f"Title: {self.title}\nBackground: {self.background}\nSection: {self.section_title}"
            pairs = [(turn.question, turn.orig_answer.text) for turn in paragraph.qas]
            yield from _dialogue(f"{about}\nPassage: {paragraph.context}", pairs)


class Texts(Struct):
    """The answers of QuAC on the hub."""

    texts: list[str]


class QuACOnHub(Struct):
    """The same dialogue on the hub: a list for each field."""

    wikipedia_page_title: str
    section_title: str
    context: str
    questions: list[str]
    orig_answers: Texts
    background: str = ""

    def ask(self) -> Iterator[Question]:
        about = f"Title: {self.wikipedia_page_title}\nBackground: {self.background}\nSection: {self.section_title}"
        pairs = zip(self.questions, self.orig_answers.texts, strict=True)
        yield from _dialogue(f"{about}\nPassage: {self.context}", pairs)


class HumanEval(HumanEvalTask, frozen=True):
    """Chen et al. 2021: the beginning of a Python function, and tests that the whole function has to pass."""

    def ask(self) -> Iterator[Question]:
        yield Question(self.request, self.right_answer, self.task_id, metric="tests_passed", task=self)


def _dialogue(about: str, pairs: Iterable[tuple[str, str]]) -> Iterator[Question]:
    for question, answer in pairs:
        about += f"\n\nQuestion: {question}\nAnswer:"
        yield Question(about, answer, metric="token_f1")
        about += f" {answer}"
