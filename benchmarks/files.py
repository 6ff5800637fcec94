"""Memory and time of prediction jobs: files of several lengths, uploaded, classified and fetched.

The files are made and read row by row, so that this program does not need them in memory either. The exit status is 1
if the service's memory grows with the length of a file: by more than a tenth from the first file to any other.

    make bench, or: python benchmarks/files.py [--rows 1000 --rows 100000] [--no-serve]
"""

import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer
from tools.services import RUNTIMES, running

from workshop.contracts.tumours import FEATURES
from workshop.lab.memory import MARKER, MB, PeakMemory
from workshop.models.tumours import training_data

ALLOWED_GROWTH = 1.1


def write_file(path: Path, n_rows: int) -> None:
    """Write a file with an id in each row, and a bad cell in every thousandth."""
    rows, _ = training_data()
    with path.open("w") as file:
        print("id", *FEATURES, sep=",", file=file)
        for number in range(n_rows):
            cells = rows[number % len(rows)].tolist()
            print(number, *cells[:29], "nan" if number % 1000 == 999 else cells[29], sep=",", file=file)


def form(path: Path, boundary: str) -> Iterator[bytes]:
    """A form with the file, in pieces."""
    yield f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="x.csv"\r\n\r\n'.encode()
    with path.open("rb") as file:
        while piece := file.read(2**16):
            yield piece
    yield f"\r\n--{boundary}--\r\n".encode()


def classify(client: httpx.Client, path: Path, *, as_form: bool) -> int:
    """Upload a file, wait for its job, and fetch the result. Returns the number of rows in it."""
    kind = "multipart/form-data; boundary=limit" if as_form else "text/csv"
    with path.open("rb") as file:
        content = form(path, "limit") if as_form else file
        response = client.post("/v1/prediction-jobs", content=content, headers={"Content-Type": kind})
    job = response.raise_for_status().headers["Location"]
    with client.stream("GET", f"{job}/events") as events:
        *_, last = (line for line in events.iter_lines() if line.startswith("event: "))
    if last != "event: succeeded":
        sys.exit(f"the job has ended with {last}")
    with client.stream("GET", f"{job}/result") as result:
        n_rows = sum(piece.count(b"\n") for piece in result.raise_for_status().iter_bytes()) - 1
    client.delete(job).raise_for_status()
    return n_rows


def main(
    rows: Annotated[list[int] | None, typer.Option()] = None, serve: Annotated[bool, typer.Option()] = True
) -> None:
    """Print a row for each runtime, file, and way to send it."""
    print("| runtime | rows | MB | sent as | seconds | peak memory of the service, MB |")
    print("|---|---|---|---|---|---|", flush=True)
    grows = False
    for name in ["api", "serve, inline"] if serve else ["api"]:
        arguments, variables = RUNTIMES[name]
        peaks: list[int] = []
        for n_rows, kind in product(rows or [1000, 100_000], ["body", "form"]):
            with TemporaryDirectory() as folder:
                file = Path(folder, "measurements.csv")
                write_file(file, n_rows)
                places = {
                    "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/service.sqlite",
                    "WORKSHOP_FILES_URL": f"file://{folder}/files",
                }
                with PeakMemory() as memory, running(arguments, variables | places | {MARKER: memory.marker}) as port:
                    start = time.perf_counter()
                    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
                        n_predicted = classify(client, file, as_form=kind == "form")
                    seconds = time.perf_counter() - start
                if n_predicted != n_rows - n_rows // 1000:
                    sys.exit(f"{n_predicted} rows of {n_rows} were predicted")
                size = file.stat().st_size / MB
            peaks.append(memory.peak)
            print(f"| {name} | {n_rows} | {size:.1f} | {kind} | {seconds:.1f} | {memory.peak / MB:.0f} |", flush=True)
        grows |= max(peaks) > ALLOWED_GROWTH * peaks[0]
    sys.exit(grows)


if __name__ == "__main__":
    typer.run(main)
