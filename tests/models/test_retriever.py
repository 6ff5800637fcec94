"""The retriever: what it finds, its artifact, and other embeddings."""

import hashlib
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import FunctionTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.retriever import HELD_OUT, built, embed, finish, search
from workshop import corpus
from workshop.contracts.errors import StartError
from workshop.models.retriever import PASSAGE_WORDS, CorpusRetriever, SentenceEmbedding, TfidfSvd, lesson_passages
from workshop.models.tumours import ArtifactError

pytestmark = pytest.mark.slow

FILE = "retriever.skops"
QUESTION, ANSWER = HELD_OUT[0]
LESSON = """\
# %% [markdown]
# # 07 A small lesson
#
# The code runs in {{ minutes }} at most.
#
# ## Who waits?
#
# The first half of the passage.

# %%
print("no prose")  # not this either

# %% [markdown]
# The other half.
#
# | a | table |
# |---|---|
#
# ### Exercise 1: a task
#
# Write a function.

# %% exercise="07.1"
# solution

# %% [markdown]
# ## Quiz
#
# **1.** Who waits?
# <details><summary>Answer</summary>All <code>def</code> endpoints.</details>
#
# **2.** Who else?
# <details><summary>Answer</summary>Nobody.</details>
"""


@pytest.fixture(scope="module")
def retriever() -> CorpusRetriever:
    return built()


@pytest.fixture
def artifact(retriever, tmp_path) -> Path:
    retriever.save(tmp_path / "retriever")
    return tmp_path / "retriever"


@pytest.fixture
def lessons(tmp_path) -> Path:
    (tmp_path / "07_small_lesson.py").write_text(LESSON)
    return tmp_path


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory) -> Path:
    """A tiny sentence-transformers model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sentences"
    words = sorted({word for entry in corpus.entries() for word in entry.answer.split()})
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words) + 2, **sizes)).save_pretrained(folder)
    return folder


def found(retriever: CorpusRetriever, question: str, k: int) -> list[str]:
    return [hit.passage.text for hit in search(retriever, question, k)]


def test_held_out_questions_find_their_answer(retriever):
    hits = [(found(retriever, question, 5), answer) for question, answer in HELD_OUT]
    for k, share in ((1, 0.75), (3, 0.9), (5, 0.93)):
        assert sum(answer in texts[:k] for texts, answer in hits) / len(hits) > share, k


def test_a_question_of_the_corpus_leads_to_its_answer(retriever):
    entry = corpus.entries()[7]
    hit, *_ = search(retriever, entry.questions[0], 3)
    assert (hit.passage.text, hit.passage.source) == (entry.answer, entry.topic)
    assert hit.score > 0.9


@given(text=st.text() | st.sampled_from(HELD_OUT).map(lambda pair: pair[0]), k=st.integers(1, 10))
def test_each_passage_is_found_once_and_the_best_first(text, k):
    hits = search(built(), text, k)
    scores = [hit.score for hit in hits]
    assert len(hits) in (0, k)
    assert len({hit.passage.id for hit in hits}) == len(hits)
    assert scores == sorted(scores, reverse=True)
    assert all(-1 <= score <= 1 for score in scores)


@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_vectors_have_length_one_or_zero(texts):
    vectors = embed(built(), texts)
    assert (vectors.shape, vectors.dtype) == ((len(texts), 384), np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.all(np.isclose(lengths, 1) | (lengths == 0))


@pytest.mark.parametrize("text", ["", " ", "?!", "the of and", "жжжж"])
def test_a_text_without_a_known_word_is_all_zeros_and_finds_nothing(retriever, text):
    assert not embed(retriever, [text]).any()
    assert search(retriever, text, 3) == []


def test_words_that_the_corpus_does_not_have_lower_the_score(retriever):
    [known], [less_known] = (search(retriever, text, 1) for text in (QUESTION, QUESTION + " жжжж"))
    assert less_known.passage == known.passage
    assert less_known.score < 0.9 * known.score


def test_a_typo_does_no_harm(retriever):
    assert found(retriever, "What is a deploiment handel?", 1) == found(retriever, "What is a deployment handle?", 1)


def test_a_lessons_prose_becomes_passages_below_their_headings(lessons):
    assert [passage.text for passage in lesson_passages(lessons)] == [
        "Who waits: The first half of the passage. The other half.",
        "Quiz: Who waits? All def endpoints.",
        "Quiz: Who else? Nobody.",
    ]
    assert {passage.source for passage in lesson_passages(lessons)} == {"lesson 07: small lesson"}


def test_long_sections_are_divided_between_paragraphs(lessons):
    paragraphs = "".join(f"#\n# {f'word{i} ' * 50}\n" for i in range(5))
    (lessons / "08_long.py").write_text(f"# %% [markdown]\n# ## Long\n{paragraphs}")
    lengths = [len(passage.text.split()) for passage in lesson_passages(lessons) if passage.source == "lesson 08: long"]
    assert lengths == [101, 101, 51]
    assert max(lengths) <= PASSAGE_WORDS + 1


def test_a_passages_id_stays_the_same_when_others_are_added(lessons):
    before = {passage.id for passage in lesson_passages(lessons)}
    (lessons / "07_small_lesson.py").write_text("# %% [markdown]\n# ## New\n#\n# More.\n" + LESSON)
    assert before < {passage.id for passage in lesson_passages(lessons)}


def test_all_ids_differ(retriever):
    hits = search(retriever, QUESTION, retriever.card.passages)
    assert len({hit.passage.id for hit in hits}) == retriever.card.passages


@pytest.mark.parametrize("folder", [None, Path("nowhere")])
def test_without_lessons_only_the_corpus_is_indexed(folder, sentence_model):
    assert finish(CorpusRetriever.build(folder, SentenceEmbedding(str(sentence_model)))).card.passages == len(
        corpus.entries()
    )


def test_the_lessons_can_be_found(retriever):
    hits = search(retriever, "Why does no endpoint of the service hold a handle?", 2)
    assert any(hit.passage.source == "lesson 09: deployment handles" for hit in hits)


def test_the_embedding_is_the_same_every_time():
    texts = [text for entry in corpus.entries() for text in (entry.answer, *entry.questions)]
    first, second = (finish(TfidfSvd.fit(texts).project(texts[:100])) for _ in range(2))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_threads_do_not_disturb_each_other(retriever):
    questions = [question for question, _ in HELD_OUT[:100]]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda question: search(retriever, question, 3), questions))
    assert together == [search(retriever, question, 3) for question in questions]


def test_a_saved_retriever_is_the_same_retriever(retriever, artifact):
    loaded = CorpusRetriever.load(artifact)
    assert loaded.card == retriever.card
    assert search(loaded, QUESTION, 5) == search(retriever, QUESTION, 5)
    np.testing.assert_array_equal(embed(loaded, [QUESTION]), embed(retriever, [QUESTION]))


def test_the_artifact_is_one_file_and_nothing_unfinished(artifact):
    assert [path.name for path in artifact.iterdir()] == [FILE]


def flip_a_byte(folder: Path, at: int) -> None:
    content = bytearray((folder / FILE).read_bytes())
    content[at] ^= 1
    (folder / FILE).write_bytes(content)


def write(folder: Path, parts: object) -> None:
    """Write an artifact with any content and the right checksum."""
    content = skops.io.dumps(parts)
    (folder / FILE).write_bytes(hashlib.sha256(content).digest() + content)


DAMAGES = {
    "no folder": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "no file": lambda folder: (folder / FILE).unlink(),
    "a folder in place of the file": lambda folder: ((folder / FILE).unlink(), (folder / FILE).mkdir()),
    "an empty file": lambda folder: (folder / FILE).write_bytes(b""),
    "a file cut short": lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:1000]),
    "a damaged checksum": lambda folder: flip_a_byte(folder, 0),
    "a damaged middle": lambda folder: flip_a_byte(folder, 10**6),
    "a damaged end": lambda folder: flip_a_byte(folder, -1),
    "untrusted code": lambda folder: write(folder, FunctionTransformer(re.compile)),
    "no parts": lambda folder: write(folder, {}),
    "passages of another form": lambda folder: write(folder, {"embedding": "tfidf-svd", "passages": [["one field"]]}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_bad_artifact_gives_a_one_line_error_with_the_remedy(artifact, damage):
    damage(artifact)
    with pytest.raises(ArtifactError) as caught:
        CorpusRetriever.load(artifact)
    assert isinstance(caught.value, StartError)
    message = str(caught.value)
    assert "\n" not in message
    assert str(artifact) in message
    assert message.endswith("run: python -m workshop train")


def test_loading_while_another_thread_saves_gets_a_whole_artifact(retriever, artifact):
    stop = threading.Event()

    def save_again_and_again():
        while not stop.is_set():
            retriever.save(artifact)

    saver = threading.Thread(target=save_again_and_again)
    saver.start()
    try:
        for _ in range(10):
            assert CorpusRetriever.load(artifact).card == retriever.card
    finally:
        stop.set()
        saver.join()


def test_a_sentence_transformers_model_can_take_the_place_of_tfidf(sentence_model, tmp_path):
    embedding = SentenceEmbedding(str(sentence_model))
    finish(CorpusRetriever.build(None, embedding)).save(tmp_path)
    loaded = CorpusRetriever.load(tmp_path, embedding)
    assert (loaded.card.embedding, loaded.card.dimensions) == ("tiny-sentences", 16)
    for entry in islice(corpus.entries(), 0, None, 50):
        hit, *_ = search(loaded, entry.answer, 1)
        assert (hit.passage.text, hit.score) == (entry.answer, pytest.approx(1, abs=1e-5))
    np.testing.assert_allclose(np.linalg.norm(embed(loaded, ["A replica", "a queue"]), axis=1), 1)


def test_an_index_of_another_embedding_is_refused(artifact, sentence_model):
    with pytest.raises(ArtifactError, match="made with tfidf-svd, not tiny-sentences; run: python -m workshop train"):
        CorpusRetriever.load(artifact, SentenceEmbedding(str(sentence_model)))


def cut_the_weights_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


BAD_MODELS = {
    "no folder": shutil.rmtree,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut short": cut_the_weights_short,
    "a configuration that is not JSON": lambda folder: (folder / "config.json").write_text("{"),
}


@pytest.mark.parametrize("damage", BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_bad_embedding_model_gives_a_one_line_error_that_names_it(sentence_model, tmp_path, damage):
    folder = tmp_path / "bad-model"
    shutil.copytree(sentence_model, folder)
    damage(folder)
    with pytest.raises(StartError) as caught:
        SentenceEmbedding(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
