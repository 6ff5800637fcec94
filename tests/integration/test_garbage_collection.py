"""A process that serves spares the garbage collector what it has loaded at its start."""

import subprocess
import sys

import httpx

from workshop.lab.commands import run_command

APPLICATION = """
import gc, sys
from fastapi import FastAPI
from workshop.integration.uvicorn_server import run
from workshop.machine import bound_socket, listen

app = FastAPI()
app.get("/frozen")(gc.get_freeze_count)
with bound_socket("127.0.0.1", int(sys.argv[1])) as listener:
    listen(listener)
    run(app, listener)
"""
REPLICA = """
import gc
from workshop.integration.replica import replica_of

class Model:
    \"\"\"Holds nothing.\"\"\"

replica_of(Model)("text", "info")
print(gc.get_freeze_count())
"""


def test_on_uvicorn(tmp_path):
    (tmp_path / "application.py").write_text(APPLICATION)
    with run_command("application {port}", name="frozen", folder=tmp_path) as server:
        assert httpx.get(f"{server.url}/frozen").json() > 10_000


def test_in_a_replica():
    frozen = subprocess.run([sys.executable, "-c", REPLICA], capture_output=True, text=True, check=True).stdout
    assert int(frozen) > 10_000
