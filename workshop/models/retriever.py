"""Finds the passages that answer a question: the corpus and the lessons as vectors in a FAISS index."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Protocol, Self

import anyio.to_thread
import faiss
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from workshop import corpus
from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.errors import ModelFailedError, StartError
from workshop.contracts.retriever import DEFAULT_EMBEDDING, Hit, Passage, RetrieverCard
from workshop.models import artifacts
from workshop.models.artifacts import ArtifactError

DIMENSIONS = 384
PASSAGE_WORDS = 120
"""The most words in a passage of a lesson, unless a single paragraph has more."""

_FILE = "retriever.skops"
_REMEDY = "run: python -m workshop train"
_DIGEST_BYTES = hashlib.sha256().digest_size
_WORD = re.compile(r"\w+")
_MARKUP = re.compile(r"<summary>.*?</summary>|</?\w+>|\*\*\d+\.\*\* ")


class Embedding(Protocol):
    """Texts as vectors."""

    @property
    def name(self) -> str: ...

    async def project(self, texts: Sequence[str]) -> FloatMatrix:
        """Vectors of shape (n, dimensions), n ≥ 1, of length at most 1.

        The less of a text the embedding knows, the shorter is its vector. Raises what ``Retriever.embed`` raises.
        """
        ...

    async def aclose(self) -> None:
        """Release the embedding's resources."""
        ...


class ComputedEmbedding:
    """An ``Embedding`` that this process computes, in a thread, so that the event loop stays free."""

    name: str

    async def project(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Embedding.project``."""
        return await anyio.to_thread.run_sync(self._compute, texts)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""

    def _compute(self, texts: Sequence[str]) -> FloatMatrix:
        raise NotImplementedError


class TfidfSvd(ComputedEmbedding):
    """TF-IDF of the character n-grams of words, of length 2 to 4, reduced by a truncated SVD. Tolerates typos.

    Stop words such as "how" and "the" are left out: they would make all questions alike.

    Args:
        vectorizer: fitted, without a norm.
        svd: fitted on the vectorizer's rows of length 1.
    """

    name = DEFAULT_EMBEDDING

    def __init__(self, vectorizer: TfidfVectorizer, svd: TruncatedSVD) -> None:
        self.vectorizer = vectorizer
        self.svd = svd
        self._ngrams = vectorizer.build_analyzer()

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Self:
        """Fit on texts. The same texts give the same embedding."""
        vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True, norm=None, dtype=np.float32
        )
        weights = vectorizer.fit_transform(map(_content, texts))
        with threadpool_limits(1):  # on busy cores, several threads wait for each other much longer than they work
            svd = TruncatedSVD(DIMENSIONS, random_state=0).fit(normalize(weights))
        return cls(vectorizer, svd)

    def _compute(self, texts: Sequence[str]) -> FloatMatrix:
        contents = [_content(text) for text in texts]
        weights = self.vectorizer.transform(contents)
        # An n-gram that the corpus does not have weighs as much as its rarest one, and has no direction. So a question
        # about something else has low scores only, however well its few known n-grams fit.
        known = self.vectorizer.vocabulary_
        unknown = np.array([len(set(self._ngrams(content)).difference(known)) for content in contents])
        squares = weights.power(2).sum(axis=1).A1 + unknown * self.vectorizer.idf_.max() ** 2
        vectors: FloatMatrix = self.svd.transform(weights) / np.sqrt(np.maximum(squares, 1.0))[:, None]
        return vectors.astype(np.float64)


class SentenceEmbedding(ComputedEmbedding):
    """A model of ``sentence-transformers``.

    Args:
        source: a folder, or a name on the Hugging Face hub.

    Raises:
        StartError: there is no such model, or its files cannot be used.
    """

    def __init__(self, source: str) -> None:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 takes seconds, and needs PyTorch

        try:
            self._model = SentenceTransformer(source)
        except (OSError, ValueError, SafetensorError) as error:
            raise StartError.because(f"cannot load the embedding model {source}", error) from error
        self.name = Path(source).name

    def _compute(self, texts: Sequence[str]) -> FloatMatrix:
        vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float64)


class CorpusRetriever:
    """Passages, and the vectors that lead to them: one for the passage, and one for each question that it answers.

    Args:
        embedding: makes the vectors.
        passages: what can be found.
        vectors: shape (n, dimensions), rows of length 1.
        owners: shape (n,): index of the passage that each vector leads to.
    """

    def __init__(
        self,
        embedding: Embedding,
        passages: Sequence[Passage],
        vectors: NDArray[np.float32],
        owners: NDArray[np.int64],
    ) -> None:
        dimensions = vectors.shape[1]
        version = hashlib.sha256(vectors.tobytes()).hexdigest()[:12]
        self.card = RetrieverCard(embedding.name, dimensions, len(passages), version)
        self._embedding = embedding
        self._passages = passages
        self._vectors = vectors
        self._owners = owners
        self._max_vectors = int(np.bincount(owners).max())
        self._index = faiss.IndexFlatIP(dimensions)
        self._index.add(vectors)

    @classmethod
    async def build(cls, lessons: Path | None = None, embedding: Embedding | None = None) -> Self:
        """Index the corpus, and the lessons if there are any.

        Args:
            lessons: folder of the lessons' sources.
            embedding: by default ``TfidfSvd``, fitted on them.

        Raises what ``Embedding.project`` raises.
        """
        entries = corpus.entries()
        passages = [_passage(entry.topic, entry.topic, entry.answer) for entry in entries]
        texts = [entry.answer for entry in entries]
        owners = list(range(len(entries)))
        for owner, entry in enumerate(entries):
            texts += entry.questions
            owners += [owner] * len(entry.questions)
        if lessons is not None:
            for passage in lesson_passages(lessons):
                owners.append(len(passages))
                passages.append(passage)
                texts.append(passage.text)
        embedding = embedding or TfidfSvd.fit(texts)
        vectors = normalize(await embedding.project(texts)).astype(np.float32)
        return cls(embedding, passages, vectors, np.array(owners))

    async def project(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Embedding.project``.

        Raises:
            ModelFailedError: the vectors have other dimensions than those of the index.
        """
        vectors = await self._embedding.project(texts)
        if vectors.shape[1] != self.card.dimensions:
            lengths = f"vectors of {vectors.shape[1]} numbers, and the index has {self.card.dimensions}"
            raise ModelFailedError(f"the embedding {self.card.embedding} now makes {lengths}; {_REMEDY}")
        return vectors

    def nearest(self, projection: FloatMatrix, k: int) -> list[Hit]:
        """The ``k`` passages nearest to a text, the best first, by its projection of shape (1, dimensions).

        None for a projection of length 0, of a text without a known word.
        """
        vector = projection.astype(np.float32)
        if not vector.any():
            return []
        # This many vectors lead to at least k passages, even if the first ones all lead to the same.
        scores, rows = self._index.search(vector, min(k * self._max_vectors, self._index.ntotal))
        best: dict[int, float] = {}
        for owner, score in zip(self._owners[rows[0]].tolist(), scores[0].tolist(), strict=True):
            best.setdefault(owner, min(score, 1.0))
        return [Hit(self._passages[owner], score) for owner, score in islice(best.items(), k)]

    async def aclose(self) -> None:
        """Release the embedding's resources."""
        await self._embedding.aclose()

    def save(self, folder: Path) -> None:
        """Write the artifact: one file, so that a reader sees the old one or the new one, never a mixture."""
        parts = {
            "embedding": self.card.embedding,
            "passages": [list(astuple(passage)) for passage in self._passages],
            "vectors": self._vectors,
            "owners": self._owners,
        }
        if isinstance(self._embedding, TfidfSvd):
            parts |= {"vectorizer": self._embedding.vectorizer, "svd": self._embedding.svd}
        content = artifacts.dumps(parts)
        artifacts.write(folder / _FILE, hashlib.sha256(content).digest() + content)

    @classmethod
    def load(cls, folder: Path, embedding: Embedding | None = None) -> Self:
        """Read an artifact.

        Args:
            folder: where ``save`` wrote it.
            embedding: the one that it was built with; by default the ``TfidfSvd`` that it contains.

        Raises:
            ArtifactError: missing, damaged, made with another embedding, or it contains untrusted code.
        """
        try:
            content = (folder / _FILE).read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read the retriever: {error.filename}: {error.strerror}; {_REMEDY}") from error
        digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise ArtifactError(f"the retriever in {folder} is damaged: its checksum differs; {_REMEDY}")
        try:
            parts = artifacts.loads(content)
            passages = [Passage(*fields) for fields in parts["passages"]]
            made_with, wanted = parts["embedding"], embedding.name if embedding else TfidfSvd.name
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"the retriever in {folder} is damaged: it cannot be read; {_REMEDY}") from error
        if made_with != wanted:
            raise ArtifactError(f"the retriever in {folder} was made with {made_with}, not {wanted}; {_REMEDY}")
        embedding = embedding or TfidfSvd(parts["vectorizer"], parts["svd"])
        return cls(embedding, passages, parts["vectors"], parts["owners"])


def normalized(projections: FloatMatrix) -> FloatMatrix:
    """The same vectors with length 1; a vector of zeros stays as it is."""
    vectors: FloatMatrix = normalize(projections)
    return vectors


def lesson_passages(folder: Path) -> list[Passage]:
    """The prose of the lessons: the Markdown cells of the sources, in jupytext's percent format."""
    return [
        _passage(f"lesson-{path.stem[:2]}", f"lesson {path.stem[:2]}: {path.stem[3:].replace('_', ' ')}", text)
        for path in sorted(folder.glob("[0-9][0-9]_*.py"))
        for text in _prose(path.read_text(encoding="utf-8"))
    ]


def _prose(source: str) -> Iterator[str]:
    """Passages of at most ``PASSAGE_WORDS``, each after its heading; tables, exercises and code are left out."""
    heading, words = "", list[str]()
    for paragraph in _paragraphs(source):
        is_heading, is_quiz = paragraph.startswith("#"), "<details>" in paragraph
        new = _MARKUP.sub("", paragraph).split()
        if words and (is_heading or is_quiz or len(words) + len(new) > PASSAGE_WORDS):
            yield f"{heading}: {' '.join(words)}"
            words = []
        if is_heading:
            heading = paragraph.lstrip("# ").rstrip("?!.")
        elif not (heading.startswith("Exercise") or paragraph.startswith("|") or "{{" in paragraph):
            words += new
    if words:
        yield f"{heading}: {' '.join(words)}"


def _paragraphs(source: str) -> Iterator[str]:
    for cell in re.split(r"(?m)^# %% *", source):
        if cell.startswith("[markdown]"):
            lines = (line.removeprefix("#").strip() for line in cell.splitlines()[1:])
            yield from re.split(r"\n\n+", "\n".join(lines).strip())


def _passage(prefix: str, source: str, text: str) -> Passage:
    """The id depends on the text only: it stays the same when other passages come and go."""
    return Passage(f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:10]}", source, text)


def _content(text: str) -> str:
    return " ".join(word for word in _WORD.findall(text.lower()) if word not in ENGLISH_STOP_WORDS)
