"""Azurite, Microsoft's emulator of Azure Blob Storage, for tests: see `make azurite`. It checks keys, SAS and conditions."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from places import ROOT
from servers import free_ports, one_start_at_a_time, run_server, wait_until_ready

BINARY: Final = ROOT / "build/azurite/node_modules/azurite/dist/src/blob/main.js"
ACCOUNT: Final = "devstoreaccount1"
KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account of every Azurite, from its documentation."""


class Azurite:
    """The emulator, seen from outside."""

    def __init__(self, port: int, log: Path) -> None:
        from azure.storage.blob import BlobServiceClient

        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}/{ACCOUNT}"
        self.service = BlobServiceClient(self.url, credential=KEY, retry_total=0)
        self._numbers = itertools.count(1)

    def container(self) -> str:
        """Create a container and return its name."""
        name = f"events-{next(self._numbers)}"
        self.service.create_container(name)
        return name

    def sas(self, container: str, permissions: str) -> str:
        """Return a SAS for the container that allows exactly these permissions."""
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        return generate_container_sas(
            ACCOUNT,
            container,
            KEY,
            permission=ContainerSasPermissions.from_string(permissions),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )

    def environment(self, container: str, *, sas: str = "", url: str = "") -> dict[str, str]:
        """Variables for AZURE_BLOB to write to the container, with the key or a SAS. `url`: a proxy in front of it."""
        return {
            "JOBS_BACKUP_STORAGE_PROVIDER": "AZURE_BLOB",
            "JOBS_BACKUP_BUCKET": container,
            "AZURE_STORAGE_ACCOUNT": ACCOUNT,
            "AZURE_STORAGE_BLOB_ENDPOINT": f"{url}/{ACCOUNT}" if url else self.url,
            **({"AZURE_STORAGE_SAS_TOKEN": sas} if sas else {"AZURE_STORAGE_ACCESS_KEY": KEY}),
        }

    def keys(self, container: str) -> list[str]:
        """All keys."""
        return [blob.name for blob in self.service.get_container_client(container).list_blobs()]

    def get(self, container: str, key: str) -> bytes:
        """The bytes of an object."""
        return self.service.get_blob_client(container, key).download_blob().readall()

    def properties(self, container: str, key: str) -> Any:
        """The object's headers and metadata."""
        return self.service.get_blob_client(container, key).get_blob_properties()

    def loose_blocks(self, container: str, key: str) -> int:
        """Count the uncommitted blocks of a key. The key must have some, or an object."""
        _, uncommitted = self.service.get_blob_client(container, key).get_block_list("uncommitted")
        return len(uncommitted)


@contextlib.contextmanager
def azurite(directory: Path) -> Generator[Azurite]:
    """Run Azurite, with its data and log in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with one_start_at_a_time():
            (port,) = free_ports(1)
            emulator = stack.enter_context(_closing(Azurite(port, directory / "azurite.log")))
            command = [
                "node", str(BINARY), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(directory / "data"),
                "--silent", "--skipApiVersionCheck", "--disableTelemetry",
            ]  # fmt: skip
            process = stack.enter_context(run_server(command, emulator.log, {}))
            wait_until_ready(process, emulator.log, lambda: _ready(emulator))
        yield emulator


@contextlib.contextmanager
def _closing(emulator: Azurite) -> Generator[Azurite]:
    with emulator.service:
        yield emulator


def _ready(emulator: Azurite) -> None:
    from azure.core.exceptions import AzureError

    try:
        emulator.service.get_service_properties()
    except AzureError as error:
        raise OSError(str(error)) from error
