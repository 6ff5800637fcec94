"""A real PostgreSQL server on a free port, with its data in a folder of its own."""

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import asyncpg

from workshop.machine import free_port

TRIES = 3  # another process may take a port that was free


@dataclass
class PostgreSQL:
    """A server: ``start`` and ``stop`` return when it has started or stopped. Its superuser is ``postgres``."""

    binaries: Path
    folder: Path
    user: str | None
    port: int = 0

    def start(self) -> None:
        """Start it, on the port that it had before."""
        options = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stop it as a crash does: connections are cut off."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """The URL of a database that holds nothing."""
        name = f"test_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str) -> str:
        """Of a database on this server, for the service."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement, outside of a transaction."""

        async def execute() -> None:
            connection = await asyncpg.connect(
                host="127.0.0.1", port=self.port, user="postgres", database=database, ssl=False
            )
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(execute())

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            user=self.user,
            group=self.user and pwd.getpwnam(self.user).pw_gid,
            extra_groups=[] if self.user else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would stay open for as long as it runs
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            log = self.folder / "log"
            raise RuntimeError(f"{program} failed: {log.read_text() if log.exists() else done.returncode}")


@contextmanager
def running_postgresql(postgres: str) -> Iterator[PostgreSQL]:
    """A new server for the length of the block.

    Args:
        postgres: path of the program; its helpers lie beside it.
    """
    # PostgreSQL refuses to run as root, and no other user may enter pytest's folders.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(mkdtemp(prefix="postgresql-"))
    if user:
        shutil.chown(folder, user)
    server = PostgreSQL(Path(postgres).parent, folder, user)
    try:
        server._run("initdb", "-D", "data", "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8")
        for tries_left in reversed(range(TRIES)):
            server.port = free_port()
            try:
                server.start()
                break
            except RuntimeError:
                if not tries_left:
                    raise
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
