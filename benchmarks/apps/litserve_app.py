"""The classifier on LitServe.

The settings that answered most on two cores, of those that we tried: see the comments. What counts is the way of a
request from the API's process over a queue to the process of the model, and back.
"""

# /// script
# dependencies = ["litserve", "scikit-learn", "skops"]
# ///

import sys
from typing import Any

import litserve as ls
import numpy as np
from numpy.typing import NDArray
from tumours import Tumour, load, to_rows

Rows = NDArray[np.float64]


class ManyRows(ls.LitAPI):  # type: ignore[misc]
    """The probabilities of many rows."""

    def setup(self, device: str) -> None:
        """See ``LitAPI``."""
        self.pipeline = load()

    # Validated where the model is. In the API's process, which an annotation of the request asks for, it made no
    # difference that we could tell.
    def decode_request(self, request) -> Rows:  # type: ignore[no-untyped-def]
        """See ``LitAPI``."""
        return to_rows(Tumour.model_validate(each) for each in request)

    def predict(self, rows: Rows) -> Rows:
        """See ``LitAPI``."""
        probabilities: Rows = self.pipeline.predict_proba(rows)
        return probabilities

    def encode_response(self, output: Rows) -> list[Any]:
        """See ``LitAPI``."""
        return output.tolist()


class OneRow(ManyRows):
    """The probabilities of one row."""

    def decode_request(self, request) -> Rows:  # type: ignore[no-untyped-def]
        """See ``LitAPI``."""
        return super().decode_request([request])

    def encode_response(self, output: Rows) -> list[Any]:
        """See ``LitAPI``."""
        return output[0].tolist()


if __name__ == "__main__":
    # Two processes of the API and two of each model: with one of each, large batches took half as long again. Answers
    # return over ZeroMQ, twice as fast as over multiprocessing's queue. No batches of several requests: the model is so
    # quick that to wait for them costs more than they save.
    apis = [OneRow(api_path="/predict"), ManyRows(api_path="/predict-batch")]
    server = ls.LitServer(apis, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[-1]),
        num_api_servers=2,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
