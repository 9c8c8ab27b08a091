"""obstore: isal into memory, then its put, which is written in Rust."""

from __future__ import annotations

import io
from typing import Any

import obstore
from benchmarks.contenders.common import REGION, Job, Measured, Zipped, encoded_lines, main, write_objects
from obstore.store import S3Store


def store(job: Job) -> Any:
    # obstore has no option to trust an extra certificate.
    options: dict[str, Any] = {"allow_invalid_certificates": True} if job.certificate else {"allow_http": True}
    return S3Store(
        job.bucket,
        endpoint=job.endpoint,
        region=REGION,
        access_key_id=job.access_key,
        secret_access_key=job.secret_key,
        virtual_hosted_style_request=False,
        client_options=options,
    )


class _Upload(io.BytesIO):
    def __init__(self, to: Any, key: str) -> None:
        super().__init__()
        self._to = to
        self._key = key

    def close(self) -> None:
        if not self.closed:
            self.seek(0)
            obstore.put(self._to, self._key, self)
        super().close()


def work(job: Job, measured: Measured) -> None:
    encoded = encoded_lines(job)
    with measured.section():
        to = store(job)
        write_objects(job, encoded, lambda key: Zipped(_Upload(to, key), "isal"))


if __name__ == "__main__":
    main(work)
