"""Compression as a setting: formats whose pieces join into one file, and objects that every tool of the format reads."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from buckets import file_environment, objects, realistic
from spools import WEB, claim, content, die, open_spool, record

from jobs_backup import Backup, ConfigurationError, CoreSettings
from jobs_backup.format.compression import GZIP, Compression
from jobs_backup.spool.chunks import ChunkKind

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXTS = ("gzip", "gzip:2", "gzip:3", "gzip:4", "gzip:9", "zstd", "zstd:3", "zstd:19")


def unpack(data: bytes, compression: str) -> bytes:
    """Decompress with common tools, not with our code."""
    return gzip.decompress(data) if compression.startswith("gzip") else zstd.decompress(data)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_a_file_together_and_always_the_same(text: str) -> None:
    compression = Compression.parse(text)
    pieces = [b"", b"a", b'{"n":1}\n' * 100_000, random.Random(1).randbytes(70_000)]
    packed = [compression.compress(piece) for piece in pieces]
    assert unpack(b"".join(packed), text) == b"".join(pieces) == compression.decompress(b"".join(packed))
    assert packed == [Compression.parse(text).compress(piece) for piece in pieces]


@pytest.mark.parametrize("text", TEXTS)
def test_a_piece_has_a_checksum_of_its_own(text: str) -> None:
    data = random.Random(2).randbytes(10_000)  # stored uncompressed, so that a changed byte still leaves a valid piece
    packed = bytearray(Compression.parse(text).compress(data))
    packed[5000] ^= 1
    with pytest.raises((OSError, EOFError, zstd.ZstdError)):
        unpack(bytes(packed), text)


def test_a_higher_level_is_smaller() -> None:
    data = b"".join(event + b"\n" for event in realistic(2000))
    for texts in (("gzip:1", "gzip:3", "gzip:6"), ("zstd:1", "zstd:9")):
        sizes = [len(Compression.parse(text).compress(data)) for text in texts]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lz4", "expected gzip or zstd"),
        ("gzip:0", "expected a level from 1 to 9"),
        ("gzip:10", "expected a level from 1 to 9"),
        ("zstd:20", "expected a level from 1 to 19"),
        ("zstd:", "expected gzip or zstd"),
        ("zstd:-3", "expected gzip or zstd"),
    ],
)
def test_what_is_no_compression_is_reported(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"JOBS_BACKUP_COMPRESSION='{text}': {why}"):
        CoreSettings.from_environment({"JOBS_BACKUP_STORAGE_PROVIDER": "FILE", "JOBS_BACKUP_COMPRESSION": text})


def test_a_compression_is_written_as_it_is_read() -> None:
    assert [str(Compression.parse(text)) for text in TEXTS] == list(TEXTS)
    assert Compression.parse(" GZIP:1 ") == GZIP
    assert str(GZIP) == "gzip"
    assert len({Compression.parse("zstd:3"), Compression.parse("zstd:3"), Compression.parse("zstd")}) == 2


@pytest.mark.parametrize("text", ["gzip", "gzip:6", "zstd", "zstd:5"])
def test_objects_have_the_format_and_its_suffix(tmp_path: Path, text: str) -> None:
    payloads = realistic(3000)
    env = file_environment(tmp_path) | {"JOBS_BACKUP_COMPRESSION": text}
    with Backup.from_env(env) as backup:
        for payload in payloads[:50]:
            backup.record(payload, source_id="web")
        backup.record_many(payloads[50:], source_id="web")
        backup.failed(backup.record(b"{}", source_id="web"), payload=b"{}", error="no")
        backup.flush(120)
    suffix = ".json.gz" if text.startswith("gzip") else ".json.zst"
    found = objects(tmp_path)
    assert len(found) == 2
    assert all(key.endswith(suffix) for key in found)
    (raw,) = (data for key, data in found.items() if key.startswith("web/"))
    lines = unpack(raw, text).splitlines()
    assert len(lines) == 3001
    assert all(payload in line for payload, line in zip(payloads, lines, strict=False))


def test_lines_that_wait_are_packed_and_folded_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs_backup.spool.open_batch.MEMBER_BYTES", 64 << 10)
    for text in ("gzip", "zstd"):
        spool = open_spool(tmp_path / text, compression=Compression.parse(text))
        lines = [b'{"n":%0100d}\n' % number for number in range(990)]
        for start in range(0, 900, 100):  # 11 KB each
            record(spool, lines[start : start + 100])
        for line in lines[900:]:
            record(spool, [line])
        blobs, batch = spool._writer._blobs, spool._writer._open[WEB]
        forms = [chunk.form for chunk in blobs.chunks(batch.id)]
        assert set(forms) == {ChunkKind.MEMBER, ChunkKind.COMPRESSED, ChunkKind.RAW}
        assert batch.fill.spooled < sum(map(len, lines)) / 2
        spool.seal()
        assert unpack(content(spool, claim(spool)), text) == b"".join(lines)
        spool.close()


def test_a_batch_keeps_the_format_that_it_was_opened_with(tmp_path: Path) -> None:
    """The process that replaces a dead one may have another setting."""
    dead = open_spool(tmp_path, compression=Compression.parse("zstd"))
    record(dead, [b'{"n":%d}\n' % number for number in range(900)])
    record(dead, [b"{}\n"])
    die(dead)
    heir = open_spool(tmp_path, compression=GZIP)
    assert heir.recover() == 1
    batch = claim(heir)
    assert batch.key.endswith(".json.zst")
    assert batch.content_type == "application/zstd"
    assert len(zstd.decompress(content(heir, batch)).splitlines()) == 901
    heir.close()


def test_zstd_is_not_imported_where_it_is_not_used(tmp_path: Path) -> None:
    code = "import sys; from jobs_backup import Backup; b = Backup.from_env(); b.record(b'{}', source_id='x'); b.close(); "
    code += "print([name for name in sys.modules if 'zstd' in name])"
    env = os.environ | file_environment(tmp_path)
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout == "[]\n"
