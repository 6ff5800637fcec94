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
        """Start it on ``port``."""
        options = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stop it abruptly, as in a crash: connections are cut off."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def empty_database(self) -> str:
        """Empty the database and return its URL. A new database for each test would take far longer."""
        self.close_connections()
        self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self.url("postgres")

    def close_connections(self) -> None:
        """Close all other connections."""
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()")

    def url(self, database: str) -> str:
        """The URL of a database on this server, for the service."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """Run a statement in the database."""

        async def execute() -> None:
            writes = {"default_transaction_read_only": "off"}  # even if a test has made the database read-only
            connection = await asyncpg.connect(
                host="127.0.0.1", port=self.port, user="postgres", database="postgres", server_settings=writes
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
            stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would stay open as long as the server runs
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            log = self.folder / "log"
            raise RuntimeError(f"{program} failed: {log.read_text() if log.exists() else done.returncode}")


@contextmanager
def running_postgresql(postgres: str) -> Iterator[PostgreSQL]:
    """A new server for the duration of the block.

    Args:
        postgres: path of the program; its tools are in the same folder.
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
