"""jobs-backup-encryption: objects in the bucket are unreadable without the key, and altered ones are never returned."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import io
import os
import re
import secrets
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from buckets import FAST_RETRY, file_environment, objects
from commands import run, start, summary
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from distributions import Install
from hypothesis import given
from hypothesis import strategies as st
from memory import peak_memory
from places import ROOT
from servers import Store, operation, operations
from spools import archiver_of

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import ConfigurationError, IntegrityError, StorePaused, WrapperMissing
from jobs_backup.model import Body, BytesBody
from jobs_backup.testing.fault_proxy import Answer, FaultProxy
from jobs_backup_encryption.format import CHUNK_BYTES, HEADER_BYTES, DecryptedBody, EncryptedBody
from jobs_backup_encryption.keys import Keys, key_id

MiB = 1 << 20
KEY, OTHER = bytes(range(32)), bytes(range(100, 132))
BATCH, ANOTHER = "01234567-89ab-4cde-8f01-23456789abcd", "fedcba98-7654-4321-8fed-cba987654321"
BORDERS = (0, 1, 65_535, 65_536, 65_537, 2 * 65_536, 300_000)
SEALED_BYTES = CHUNK_BYTES + 16
DECRYPT = str(Path(sys.executable).with_name("jobs-backup-decrypt"))


def content_of(size: int) -> bytes:
    """Bytes without two equal chunks."""
    return b"".join(hashlib.sha256(number.to_bytes(8, "big")).digest() for number in range(-(-size // 32)))[:size]


def encrypted(content: bytes, key: bytes = KEY, batch: str = BATCH) -> bytes:
    with EncryptedBody(BytesBody(content), key, key_id(key), batch).open() as reader:
        return reader.read()


def decrypted(data: bytes, *keys: bytes) -> bytes:
    with DecryptedBody(BytesBody(data), Keys(keys or (KEY,)), "object").open() as reader:
        return reader.read()


def documented(content: bytes, key: bytes, batch: str) -> bytes:
    """An object made from docs/encryption.md alone, with primitives that the implementation does not use."""
    header = b"jobs-backup enc1" + hmac.digest(key, b"jobs-backup encryption: id of the key", "sha256")[:8] + uuid.UUID(batch).bytes
    secret = hmac.digest(header, key, "sha256")  # HKDF: extract, then expand
    object_key = hmac.digest(secret, b"jobs-backup encryption: key of an object\x01", "sha256")
    made = header
    pieces = [content[at : at + 65_536] for at in range(0, len(content), 65_536)] or [b""]
    for number, piece in enumerate(pieces):
        nonce = number.to_bytes(11, "big") + (b"\1" if number == len(pieces) - 1 else b"\0")
        cipher = Cipher(algorithms.AES256(object_key), modes.GCM(nonce)).encryptor()
        made += cipher.update(piece) + cipher.finalize() + cipher.tag
    return made


class TestFormat:
    @pytest.mark.parametrize(
        ("content", "wanted"),
        [
            (
                b"",
                "6a6f62732d6261636b757020656e6331febb294b2ea63e960123456789ab4cde8f0123456789abcdcb96b7adc9fd11c0b04728a31bb71fc8",
            ),
            (
                b"hello",
                "6a6f62732d6261636b757020656e6331febb294b2ea63e960123456789ab4cde8f0123456789abcdf5cbeda6dae6127ce4137395ff4209e8"
                "afe917e006",
            ),
        ],
    )
    def test_small_objects_are_what_they_always_were(self, content: bytes, wanted: str) -> None:
        assert encrypted(content).hex() == wanted
        assert decrypted(bytes.fromhex(wanted)) == content

    def test_a_large_object_is_what_it_always_was(self) -> None:
        made = encrypted(bytes(range(256)) * 1024)
        assert len(made) == 262_248
        assert hashlib.sha256(made).hexdigest() == "bf93998e1213e8a631b4de6591239c1a8e4bb076f5fdf1df49da5cf71a660135"

    @pytest.mark.parametrize("size", BORDERS)
    def test_it_is_as_documented_and_comes_back(self, size: int) -> None:
        content = content_of(size)
        made = encrypted(content)
        assert made == documented(content, KEY, BATCH)
        body = EncryptedBody(BytesBody(content), KEY, key_id(KEY), BATCH)
        assert body.size == len(made)
        back = DecryptedBody(BytesBody(made), Keys([KEY]), "object")
        assert (back.size, decrypted(made)) == (size, content)

    @given(st.binary(max_size=200), st.binary(min_size=32, max_size=32), st.uuids())
    def test_any_key_and_batch(self, content: bytes, key: bytes, batch: uuid.UUID) -> None:
        made = encrypted(content, key, str(batch))
        assert made == documented(content, key, str(batch))
        assert decrypted(made, key) == content

    def test_another_process_makes_the_same_bytes(self) -> None:
        program = (
            "import sys; from jobs_backup.model import BytesBody; from jobs_backup_encryption.keys import key_id\n"
            "from jobs_backup_encryption.format import EncryptedBody\n"
            "data = sys.stdin.buffer.read(); key = bytes(range(32))\n"
            f"sys.stdout.buffer.write(EncryptedBody(BytesBody(data), key, key_id(key), {BATCH!r}).open().read())"
        )
        content = content_of(200_000)
        made = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, check=True).stdout
        assert made == encrypted(content)

    @pytest.mark.parametrize(("key", "batch"), [(OTHER, BATCH), (KEY, ANOTHER)], ids=["key", "batch"])
    def test_another_key_or_batch_makes_other_bytes_everywhere(self, key: bytes, batch: str) -> None:
        content = content_of(200_000)
        one, other = encrypted(content)[HEADER_BYTES:], encrypted(content, key, batch)[HEADER_BYTES:]
        same = sum(one[at : at + 16] == other[at : at + 16] for at in range(0, len(one), 16))
        assert (len(one), same) == (len(other), 0)

    def test_equal_chunks_do_not_look_alike(self) -> None:
        made = encrypted(bytes(10 * CHUNK_BYTES))[HEADER_BYTES:]
        blocks = [made[at : at + 16] for at in range(0, len(made), 16)]
        assert len(set(blocks)) == len(blocks)


@pytest.mark.parametrize("size", BORDERS)
def test_the_program_in_the_documents_opens_objects(tmp_path: Path, size: int) -> None:
    (program,) = re.findall(r"```python\n(# open_object.py\n.*?)```", (ROOT / "docs/encryption.md").read_text(), re.DOTALL)
    (tmp_path / "keys").write_text(f"{text_of(OTHER)}\n# the old one\n{text_of(KEY)}\n")
    (tmp_path / "object").write_bytes(encrypted(content_of(size)))
    command = [sys.executable, "-c", program, "keys", "object"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout == content_of(size)


bodies = pytest.mark.parametrize("kind", ["encrypted", "decrypted"])


class Meagre(io.BytesIO):
    """A file with short reads, which some files have."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size, 1000) if size and size > 0 else size)


class MeagreBody(BytesBody):
    def open(self) -> BinaryIO:
        return Meagre(self._data)


def body_and_bytes(kind: str, size: int, source: Callable[[bytes], Body] = BytesBody) -> tuple[Body, bytes]:
    content = content_of(size)
    if kind == "encrypted":
        return EncryptedBody(source(content), KEY, key_id(KEY), BATCH), documented(content, KEY, BATCH)
    return DecryptedBody(source(documented(content, KEY, BATCH)), Keys([KEY]), "object"), content


class TestBodies:
    @bodies
    @given(size=st.one_of(st.sampled_from(BORDERS), st.integers(0, 300_000)), data=st.data())
    def test_a_slice_is_that_part_of_the_whole(self, kind: str, size: int, data: st.DataObject) -> None:
        body, whole = body_and_bytes(kind, size)
        begin = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(begin, len(whole)))
        with body.slice(begin, end - begin).open() as reader:
            assert reader.read() == whole[begin:end]

    @bodies
    @given(
        size=st.one_of(st.sampled_from(BORDERS), st.integers(0, 300_000)),
        steps=st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(-310_000, 310_000), st.integers(0, 310_000)), max_size=8),
    )
    def test_it_is_a_file_like_any_other(self, kind: str, size: int, steps: list[tuple[int, int, int]]) -> None:
        body, whole = body_and_bytes(kind, size)
        with body.open() as reader, io.BytesIO(whole) as wanted:
            for whence, offset, count in steps:
                to = (
                    abs(offset) if whence == 0 else offset
                )  # otherwise the offset may lead before the beginning, which counts as the beginning
                assert reader.seek(to, whence) == wanted.seek(to, whence)
                assert reader.read(count) == wanted.read(count)
                assert reader.tell() == wanted.tell()

    @bodies
    def test_each_reader_stands_for_itself(self, kind: str) -> None:
        body, whole = body_and_bytes(kind, 200_000)
        with body.open() as one, body.open() as two:
            first = one.read(70_000)
            assert two.read() == whole
            assert first + one.read() == whole

    @bodies
    def test_many_threads_read_at_once(self, kind: str) -> None:
        """As in multipart uploads: each thread has a slice of one body."""
        body, whole = body_and_bytes(kind, 3 * MiB)

        def read(begin: int) -> bool:
            part = body.slice(begin, min(50_000, body.size - begin))
            with part.open() as reader:
                return reader.read() == whole[begin : begin + 50_000]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(0, body.size, 20_000)))

    @bodies
    def test_a_source_that_gives_little_at_a_time_is_read_to_its_end(self, kind: str) -> None:
        body, whole = body_and_bytes(kind, 200_000, MeagreBody)
        with body.open() as reader:
            assert reader.read() == whole

    @bodies
    @pytest.mark.parametrize("missing", [1, 70_000, 199_990])
    def test_a_source_that_ends_too_early_is_noticed(self, kind: str, missing: int) -> None:
        def shorter(data: bytes) -> Body:
            body = BytesBody(data[:-missing])
            body.size = len(data)
            return body

        body, whole = body_and_bytes(kind, 200_000, shorter)
        with pytest.raises(IntegrityError), body.open() as reader:
            assert read_until_error(reader) == whole

    @bodies
    def test_what_is_read_from_is_closed(self, kind: str) -> None:
        opened: list[BinaryIO] = []

        class Watched(BytesBody):
            def open(self) -> BinaryIO:
                opened.append(super().open())
                return opened[-1]

        body, _ = body_and_bytes(kind, 200_000, Watched)
        with body.slice(70_000, 10).open() as reader:
            reader.read()
        assert [file.closed for file in opened] == [True]

    def test_what_is_read_from_is_closed_where_it_is_no_encrypted_object(self) -> None:
        file = io.BytesIO(bytes(100))

        class Watched(BytesBody):
            def open(self) -> BinaryIO:
                return file

        with pytest.raises(IntegrityError, match="does not begin"):
            DecryptedBody(Watched(bytes(100)), Keys([KEY]), "object").open()
        assert file.closed


def read_until_error(reader: BinaryIO) -> bytes:
    """Read all of it. Blocks before an error must be correct: a prefix of the true content."""
    given_ = b""
    while block := reader.read(10_000):
        given_ += block
        assert content_of(200_000).startswith(given_) or documented(content_of(200_000), KEY, BATCH).startswith(given_)
    return given_


# For an object with 200,000 bytes of content: four chunks, the last one with 3,392 bytes.
WHOLE = documented(content_of(200_000), KEY, BATCH)
FIRST, SECOND, THIRD, LAST = (HEADER_BYTES + number * SEALED_BYTES for number in range(4))


def flipped(at: int) -> bytes:
    return WHOLE[:at] + bytes([WHOLE[at] ^ 0x10]) + WHOLE[at + 1 :]


TAMPERED = {
    "magic": flipped(3),
    "version": flipped(15),
    "batch": flipped(30),
    "first byte of a chunk": flipped(FIRST),
    "in a chunk": flipped(SECOND + 500),
    "tag of the first chunk": flipped(SECOND - 1),
    "last chunk": flipped(LAST + 5),
    "tag of the last chunk": flipped(len(WHOLE) - 1),
    "nothing": b"",
    "a part of the header": WHOLE[:20],
    "the header alone": WHOLE[:HEADER_BYTES],
    "cut in the first tag": WHOLE[: HEADER_BYTES + 15],
    "cut to what would be an empty content": WHOLE[: HEADER_BYTES + 16],
    "cut in a chunk": WHOLE[: SECOND + 1000],
    "cut behind the first chunk": WHOLE[:SECOND],
    "cut before the last chunk": WHOLE[:LAST],
    "cut by a byte": WHOLE[:-1],
    "a byte more": WHOLE + b"\0",
    "a chunk more": WHOLE + WHOLE[FIRST:SECOND],
    "itself behind it": WHOLE + WHOLE,
    "two chunks swapped": WHOLE[:FIRST] + WHOLE[SECOND:THIRD] + WHOLE[FIRST:SECOND] + WHOLE[THIRD:],
    "a chunk twice": WHOLE[:SECOND] + WHOLE[FIRST:SECOND] + WHOLE[THIRD:],
    "a chunk left out": WHOLE[:FIRST] + WHOLE[SECOND:],
    "a chunk of another object": WHOLE[:FIRST] + documented(content_of(200_000), KEY, ANOTHER)[FIRST:SECOND] + WHOLE[SECOND:],
    "another object behind this header": WHOLE[:FIRST] + documented(content_of(200_000), KEY, ANOTHER)[FIRST:],
    "this object behind the header of another": documented(b"", KEY, ANOTHER)[:FIRST] + WHOLE[FIRST:],
    "the last chunk made the only one": WHOLE[:FIRST] + WHOLE[LAST:],
    "not encrypted at all": gzip.compress(content_of(200_000)),
}


class TestTampering:
    @pytest.mark.parametrize("size", [0, HEADER_BYTES, HEADER_BYTES + 15, SECOND + 1, SECOND + 16, LAST + 15])
    def test_as_many_bytes_as_no_object_has_are_refused_unread(self, size: int) -> None:
        with pytest.raises(IntegrityError, match="which no encrypted object can have"):
            DecryptedBody(BytesBody(WHOLE[:size]), Keys([KEY]), "object")

    @pytest.mark.parametrize("name", TAMPERED)
    def test_what_was_changed_is_an_error(self, name: str) -> None:
        with pytest.raises(IntegrityError), DecryptedBody(BytesBody(TAMPERED[name]), Keys([KEY]), "object").open() as reader:
            assert read_until_error(reader) is None  # it raises

    def test_an_unknown_key_is_named_by_its_id(self) -> None:
        with pytest.raises(WrapperMissing, match=rf"object needs the encryption key {key_id(KEY)}, which is missing"):
            decrypted(WHOLE, OTHER)
        with pytest.raises(WrapperMissing):
            decrypted(flipped(16))

    def test_the_id_of_a_key_that_is_there_does_not_help(self) -> None:
        with pytest.raises(IntegrityError):
            decrypted(WHOLE[:16] + bytes.fromhex(key_id(OTHER)) + WHOLE[24:], KEY, OTHER)

    def test_an_empty_object_is_verified_though_nothing_is_read(self) -> None:
        empty = documented(b"", KEY, BATCH)
        assert decrypted(empty) == b""
        with pytest.raises(IntegrityError):
            DecryptedBody(BytesBody(empty[:-1] + b"x"), Keys([KEY]), "object").open()

    @given(at=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
    def test_any_bit(self, at: int, bit: int) -> None:
        changed = bytearray(WHOLE)
        changed[at] ^= 1 << bit
        body = DecryptedBody(BytesBody(bytes(changed)), Keys([KEY]), "object")
        with pytest.raises((IntegrityError, WrapperMissing)), body.open() as reader:
            assert read_until_error(reader) is None  # it raises

    @given(size=st.integers(0, len(WHOLE) - 1))
    def test_any_length(self, size: int) -> None:
        with pytest.raises(IntegrityError):
            decrypted(WHOLE[:size])

    @given(begin=st.integers(0, 199_999), size=st.integers(1, 100_000))
    def test_in_a_slice_the_chunks_that_it_touches_are_verified(self, begin: int, size: int) -> None:
        body = DecryptedBody(BytesBody(flipped(THIRD + 100)), Keys([KEY]), "object")
        end = min(begin + size, 200_000)
        touches = begin < 3 * CHUNK_BYTES and end > 2 * CHUNK_BYTES
        try:
            with body.slice(begin, end - begin).open() as reader:
                found: bytes | None = reader.read()
        except IntegrityError:
            found = None  # also if it only comes close, because of read-ahead
        assert found is None if touches else found in (None, content_of(200_000)[begin:end])


def text_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


def without_key(text: str, *keys: str) -> None:
    """No eight characters of a key are in the text."""
    found = [key[at : at + 8] for key in keys for at in range(len(key) - 7) if key[at : at + 8] in text]
    assert found == []


class TestKeys:
    @pytest.mark.parametrize(
        "text",
        [
            text_of(b"\xff\xfe\xfd\xfc" * 8),
            base64.urlsafe_b64encode(b"\xff\xfe\xfd\xfc" * 8).decode(),
            base64.urlsafe_b64encode(b"\xff\xfe\xfd\xfc" * 8).decode().rstrip("="),  # as `secrets.token_urlsafe` returns it
            f"  {text_of(bytes([255, 254, 253, 252]) * 8)} ",
        ],
    )
    def test_base64_of_any_kind(self, text: str) -> None:
        assert Keys.from_environment({"JOBS_BACKUP_ENCRYPTION_KEY": text}).current == key_id(b"\xff\xfe\xfd\xfc" * 8)

    def test_of_several_the_first_is_the_current_one_and_all_are_found(self) -> None:
        keys = Keys.from_environment({"JOBS_BACKUP_ENCRYPTION_KEY": f"{text_of(OTHER)} , {text_of(KEY)},"})
        assert keys.current == key_id(OTHER)
        assert [keys.find(key_id(key), "it") for key in (KEY, OTHER)] == [KEY, OTHER]

    def test_a_file_with_comments_and_blank_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text(f"# of 2027\r\n\r\n{text_of(OTHER)}\r\n  # of 2026, {text_of(bytes(32))}\n\n{text_of(KEY)}\n\n")
        keys = Keys.from_environment({"JOBS_BACKUP_ENCRYPTION_KEY_FILE": str(file)})
        assert keys.current == key_id(OTHER)
        assert keys.find(key_id(KEY), "it") == KEY
        with pytest.raises(WrapperMissing):
            keys.find(key_id(bytes(32)), "it")

    def test_ids_tell_keys_apart_and_say_nothing_of_them(self) -> None:
        assert key_id(KEY) == "febb294b2ea63e96"
        keys = [secrets.token_bytes(32) for _ in range(200)]
        assert len({key_id(key) for key in keys}) == 200
        assert [key for key in keys if key.hex()[:6] in key_id(key)] == []

    def test_no_key_is_shown(self) -> None:
        keys = Keys.from_environment({"JOBS_BACKUP_ENCRYPTION_KEY": text_of(OTHER)})
        body = EncryptedBody(BytesBody(b""), OTHER, key_id(OTHER), BATCH)
        without_key(f"{keys!r} {vars(keys)!r} {body!r} {vars(body)!r}", text_of(OTHER), OTHER.hex())

    SECRET = text_of(bytes(range(200, 232)))
    WRONG: tuple[tuple[dict[str, str], str], ...] = (
        ({}, "neither is set"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": SECRET, "JOBS_BACKUP_ENCRYPTION_KEY_FILE": "keys"}, "both are set"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": SECRET[:-4]}, "JOBS_BACKUP_ENCRYPTION_KEY: key 1 is not 32 bytes in base64"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": SECRET + SECRET}, "key 1 is not 32 bytes"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": text_of(bytes(range(200, 248)))}, "key 1 is not 32 bytes"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": f"{SECRET},{SECRET}x"}, "key 2 is not 32 bytes"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": f"{SECRET}{SECRET[:-1]}"}, "key 1 is not 32 bytes"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": SECRET.replace(SECRET[5], "*")}, "key 1 is not 32 bytes"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": "ü" + SECRET}, "key 1 is not 32 bytes"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": SECRET + "\x07"}, "it contains a control character"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY": ","}, "key 1 is not 32 bytes"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY_FILE": "none"}, "JOBS_BACKUP_ENCRYPTION_KEY_FILE: none: No such file or directory"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY_FILE": "."}, "JOBS_BACKUP_ENCRYPTION_KEY_FILE: .: Is a directory"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY_FILE": SECRET}, "JOBS_BACKUP_ENCRYPTION_KEY_FILE holds a key (base64), not a path"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY_FILE": "empty"}, "empty: key 1 is not 32 bytes"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY_FILE": "binary"}, "JOBS_BACKUP_ENCRYPTION_KEY_FILE: binary is not text"),
        ({"JOBS_BACKUP_ENCRYPTION_KEY_FILE": "wrong"}, "wrong: key 2 is not 32 bytes"),
    )

    @pytest.fixture
    def directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "keys").write_text(self.SECRET)
        (tmp_path / "empty").write_text("# none yet\n")
        (tmp_path / "binary").write_bytes(bytes(range(200, 232)))
        (tmp_path / "wrong").write_text(f"{self.SECRET}\n{self.SECRET[2:]}\n")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(("variables", "wanted"), WRONG, ids=[wanted for _, wanted in WRONG])
    def test_what_is_wrong_is_reported_and_the_key_is_not(self, directory: Path, variables: dict[str, str], wanted: str) -> None:
        with pytest.raises(ConfigurationError) as raised:
            Keys.from_environment(variables)
        error = raised.value
        assert wanted in str(error)
        assert error.hint
        without_key(f"{error.one_line()} {error!r}", self.SECRET)
        # Nor is it in a chained error.
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None

    @pytest.mark.parametrize("command", ["archive", "check", "serve", "run", "replay", "delivered"])
    def test_every_command_that_needs_it_says_so(self, directory: Path, command: str) -> None:
        arguments = {"archive": ["--once"], "run": ["--source-id", "web"]}.get(command, [])
        env = file_environment(directory, JOBS_BACKUP_WRAPPERS="ENCRYPTION", JOBS_BACKUP_SERVER_TOKEN="t" * 20)
        for wrong, wanted in (({}, "neither is set"), ({"JOBS_BACKUP_ENCRYPTION_KEY": self.SECRET[:-4]}, "not 32 bytes")):
            code, out, err = run(command, *arguments, env={**env, **wrong}, stdin="")
            assert (code, out) == (2, "")
            assert wanted in err
            assert "openssl rand -base64 32" in err
            assert "[ConfigurationError]" in err
            assert len(err.splitlines()) == 1
            without_key(err, self.SECRET)
        assert objects(directory) == {}

    def test_status_needs_no_key(self, tmp_path: Path) -> None:
        env = file_environment(tmp_path)
        record(encrypting(env, KEY), [b'{"n":1}'], archive=False)
        code, out, _ = run("status", env={**env, "JOBS_BACKUP_WRAPPERS": "ENCRYPTION"})
        assert code == 0
        assert "1 event" in out

    def test_wrappers_shows_its_settings_and_no_key(self, tmp_path: Path) -> None:
        env = {**file_environment(tmp_path, JOBS_BACKUP_WRAPPERS="ENCRYPTION"), "JOBS_BACKUP_ENCRYPTION_KEY": self.SECRET}
        code, out, err = run("wrappers", "encryption", env=env)
        assert (code, err) == (0, "")
        assert "jobs-backup-encryption" in out
        assert "JOBS_BACKUP_ENCRYPTION_KEY_FILE" in out
        without_key(out, self.SECRET)

    def test_env_reports_its_variables_and_needs_no_key(self) -> None:
        code, out, err = run("env", "FILE", env={"JOBS_BACKUP_WRAPPERS": "encryption"})
        assert (code, err) == (0, "")
        assert {"#JOBS_BACKUP_ENCRYPTION_KEY=", "#JOBS_BACKUP_ENCRYPTION_KEY_FILE=/run/secrets/jobs-backup-encryption"} <= set(
            out.splitlines()
        )

    def test_no_log_line_has_a_key(self, tmp_path: Path) -> None:
        env = encrypting(file_environment(tmp_path), KEY, OTHER)
        _, out, err = run("run", "--source-id", "web", "--verbose", env=env, stdin='{"messageId":"m"}\n')
        assert "uploaded web/" in err
        without_key(out + err, text_of(KEY), text_of(OTHER), KEY.hex(), OTHER.hex())


def test_configuring_imports_neither_library() -> None:
    program = (
        "import sys; from jobs_backup.store.wrappers import Wrappers\n"
        f"Wrappers.from_settings('OPENTELEMETRY,ENCRYPTION', {{'JOBS_BACKUP_ENCRYPTION_KEY': {text_of(KEY)!r}}})\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'cryptography', 'opentelemetry'}))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def encrypting(env: dict[str, str], *keys: bytes) -> dict[str, str]:
    return {**env, **FAST_RETRY, "JOBS_BACKUP_WRAPPERS": "ENCRYPTION", "JOBS_BACKUP_ENCRYPTION_KEY": ",".join(map(text_of, keys))}


def bulky(count: int) -> list[bytes]:
    """Payloads of about a MiB each that hardly compress."""
    return [b'{"messageId":"m%d","data":"%s"}' % (n, base64.b64encode(secrets.token_bytes(MiB))) for n in range(count)]


def record(env: dict[str, str], payloads: list[bytes], source: str = "web", *, archive: bool = True) -> None:
    with Backup.from_env(env, archive=archive) as backup:
        backup.record_many(payloads, source_id=source)
        if archive:
            backup.flush(120)


def replay(env: dict[str, str], *options: str, code: int = 0) -> list[bytes]:
    found, out, err = run("replay", "--payload-only", *options, env=env)
    assert found == code, err
    return out.encode().splitlines()


@pytest.fixture
def env(store: Store, bucket: str, tmp_path: Path) -> dict[str, str]:
    """With permission to write, and no other."""
    return encrypting({**store.environment(bucket), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}, KEY)


def may_read(env: dict[str, str], store: Store, bucket: str) -> dict[str, str]:
    who = store.environment(bucket, "all")
    return env | {name: value for name, value in who.items() if "ENDPOINT" not in name}  # which is a part of a bucket's identity


IN_PARTS = {
    "JOBS_BACKUP_MULTIPART_THRESHOLD": "5MiB",
    "JOBS_BACKUP_PART_SIZE": "5MiB",
    "JOBS_BACKUP_UPLOAD_CONCURRENCY": "1",
    "JOBS_BACKUP_BATCH_BYTES": "64MiB",
}


class TestInTheBucket:
    @pytest.mark.slow
    @pytest.mark.parametrize("compression", ["gzip", "zstd"])
    def test_without_the_key_nothing_is_readable(
        self, store: Store, bucket: str, env: dict[str, str], tmp_path: Path, compression: str
    ) -> None:
        env["JOBS_BACKUP_COMPRESSION"] = compression
        payloads = [b'{"messageId":"m%d","who":"somebody@example.com","n":1.10}' % number for number in range(500)]
        record(env, payloads)
        (key,) = store.keys(bucket)
        assert key.endswith({"gzip": ".json.gz.enc", "zstd": ".json.zst.enc"}[compression])
        data = store.get(bucket, key)
        assert data.startswith(b"jobs-backup enc1")
        for known in (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"somebody", b"messageId", b"payload"):
            assert known not in data
        (tmp_path / "object.gz").write_bytes(data)
        zcat = subprocess.run(["zcat", str(tmp_path / "object.gz")], capture_output=True, check=False)
        assert (zcat.returncode != 0, zcat.stdout) == (True, b"")
        head = store.admin.head_object(Bucket=bucket, Key=key)
        assert head["ContentType"] == "application/octet-stream"
        assert head["Metadata"]["jobs-backup-wrappers"] == f"enc={key_id(KEY)}"
        assert head["Metadata"]["jobs-backup-events"] == "500"
        assert replay(may_read(env, store, bucket)) == payloads
        assert replay(may_read(env, store, bucket), "--list") == payloads
        for options in ([], ["--list"]):
            assert replay(may_read(encrypting(env, OTHER), store, bucket), *options, code=2) == []

    @pytest.mark.slow
    def test_in_parts_it_comes_back_byte_for_byte(self, store: Store, bucket: str, env: dict[str, str], tmp_path: Path) -> None:
        payloads = bulky(12)
        with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
            record(env | IN_PARTS | {"AWS_ENDPOINT_URL_S3": proxy.url}, payloads)
            assert operations(proxy.requests) == {"CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1}
            (key,) = store.keys(bucket)
            data = store.get(bucket, key)
            assert gzip.decompress(decrypted(data)).count(b"\n") == 12
            assert not [payload for payload in payloads if payload[100:140] in data]
            env |= {"AWS_ENDPOINT_URL_S3": proxy.url}
            for options in ([], ["--list"]):
                back = tmp_path / f"back{len(options)}"
                assert run("replay", "--payload-only", "--output", back, *options, env=may_read(env, store, bucket))[0] == 0
                assert back.read_bytes() == b"".join(payload + b"\n" for payload in payloads)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["partNumber=2", "partNumber=3", r"uploadId=[^&]*$"])
    def test_killed_between_parts_the_next_process_goes_on(
        self, store: Store, bucket: str, env: dict[str, str], tmp_path: Path, moment: str
    ) -> None:
        payloads = bulky(12)
        file = tmp_path / "in"
        file.write_bytes(b"".join(payload + b"\n" for payload in payloads))
        with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
            env |= IN_PARTS | {"AWS_ENDPOINT_URL_S3": proxy.url}
            with start("run", file, "--source-id", "web", env=env) as process:

                def kill(_: Any) -> Answer:
                    process.kill()
                    return Answer(503)

                proxy.fail(kill, target=moment)
                process.communicate()
            assert process.returncode == -9
            assert len(store.open_uploads(bucket)) == 1
            before = [part_of(one.target) for one in proxy.requests if operation(one) == "UploadPart" and one.status == 200]
            proxy.clear()
            found = summary("run", file, "--source-id", "web", env=env)
            assert (found["complete"], found["events"], found["open_uploads"]) == (True, 0, [])
            after = [part_of(one.target) for one in proxy.requests if operation(one) == "UploadPart"]
            assert operations(proxy.requests)["CreateMultipartUpload"] == 0
            assert sorted(before + after) == [1, 2, 3], "each part was stored once"
            assert store.open_uploads(bucket) == []
            assert replay(may_read(env, store, bucket)) == payloads

    def test_failures_too(self, store: Store, bucket: str, env: dict[str, str]) -> None:
        with Backup.from_env(env) as backup:
            job = backup.record(b'{"messageId":"m1"}', source_id="web")
            backup.failed(job, payload={"final": "somebody@example.com"}, error=ValueError("HTTP 422"), destination_id="crm")
            backup.flush(120)
        (key,) = [key for key in store.keys(bucket) if "rudder-proc-err-logs" in key]
        assert key.endswith(".json.gz.enc")
        data = store.get(bucket, key)
        assert b"somebody" in gzip.decompress(decrypted(data))
        assert b"somebody" not in data
        for options in ([], ["--list"]):
            assert replay(may_read(env, store, bucket), "--kind", "failed", *options) == [b'{"final":"somebody@example.com"}']

    def test_what_was_delivered_goes_without_being_read(self, store: Store, bucket: str, env: dict[str, str]) -> None:
        with Backup.from_env(env | store.environment(bucket, "put-delete")) as backup:
            jobs = backup.record_many([b'{"n":1}', b'{"n":2}'], source_id="web")
            backup.flush(120)
            assert len(store.keys(bucket)) == 1
            backup.delivered(jobs)
            backup.flush(120)
        summary("archive", "--once", env=env | store.environment(bucket, "put-delete"))
        assert store.keys(bucket) == []

    def test_check_needs_no_right_more(self, store: Store, bucket: str, env: dict[str, str]) -> None:
        code, out, _ = run("check", env=env)
        assert code == 0, out
        assert "ready: events can be backed up" in out
        assert re.search(r"read +refused", out), "the probe is not encrypted, and reading it is no right that is needed"


def part_of(target: str) -> int:
    return int(re.search(r"partNumber=(\d+)", target)[1])  # type: ignore[index]


class TestRotation:
    def test_what_was_recorded_with_a_key_is_sent_with_it(self, store: Store, bucket: str, env: dict[str, str]) -> None:
        record(env, [b'{"n":1}'], "first", archive=False)
        both = encrypting(env, OTHER, KEY)
        record(both, [b'{"n":2}'], "second", archive=False)
        assert summary("archive", "--once", env=both)["complete"]
        used = {
            key.split("/")[0]: (store.get(bucket, key)[16:24].hex(), store.admin.head_object(Bucket=bucket, Key=key)["Metadata"])
            for key in store.keys(bucket)
        }
        assert {source: (id_, metadata["jobs-backup-wrappers"]) for source, (id_, metadata) in used.items()} == {
            "first": (key_id(KEY), f"enc={key_id(KEY)}"),
            "second": (key_id(OTHER), f"enc={key_id(OTHER)}"),
        }
        for options in ([], ["--list"]):
            assert replay(may_read(both, store, bucket), *options) == [b'{"n":1}', b'{"n":2}']

    def test_without_its_key_a_batch_waits_and_the_others_go_on(self, tmp_path: Path) -> None:
        env = file_environment(tmp_path)
        record(encrypting(env, KEY), [b'{"n":1}'], "first", archive=False)
        record(encrypting(env, OTHER), [b'{"n":2}'], "second", archive=False)
        code, _, err = run("archive", "--once", env=encrypting(env, OTHER))
        assert code == 1
        assert f": it needs the encryption key {key_id(KEY)}, which is missing (present: {key_id(OTHER)})" in err
        assert [key.split("/")[0] for key in objects(tmp_path)] == ["second"]
        code, out, _ = run("status", env=encrypting(env, OTHER))
        assert key_id(KEY) in out
        assert "add it after the others in JOBS_BACKUP_ENCRYPTION_KEY" in out
        without_key(out + err, text_of(KEY), text_of(OTHER))
        assert summary("archive", "--once", env=encrypting(env, OTHER, KEY))["complete"]
        assert replay(encrypting(env, OTHER, KEY)) == [b'{"n":1}', b'{"n":2}']

    def test_without_the_wrapper_a_batch_is_not_sent_unencrypted(self, tmp_path: Path) -> None:
        env = file_environment(tmp_path)
        record(encrypting(env, KEY), [b'{"n":1}'], archive=False)
        code, _, err = run("archive", "--once", env={**env, **FAST_RETRY})
        assert (code, objects(tmp_path)) == (1, {})
        assert "add it to JOBS_BACKUP_WRAPPERS" in err
        assert summary("archive", "--once", env=encrypting(env, KEY))["complete"]
        assert replay(encrypting(env, KEY)) == [b'{"n":1}']

    def test_an_upload_that_was_begun_with_a_key_is_continued_with_it(
        self, store: Store, bucket: str, env: dict[str, str], tmp_path: Path
    ) -> None:
        payloads = bulky(8)
        with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
            env |= IN_PARTS | {"AWS_ENDPOINT_URL_S3": proxy.url, "JOBS_BACKUP_RETRY_ATTEMPTS": "1"}
            proxy.fail(Answer(503), target="partNumber=2")
            record(env, payloads, archive=False)
            assert run("archive", "--once", env=env)[0] == 1
            assert len(store.open_uploads(bucket)) == 1
            assert summary("archive", "--once", env=encrypting(env, OTHER, KEY))["open_uploads"] == []
            assert operations(proxy.requests) == {"CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1}
            assert replay(may_read(encrypting(env, KEY), store, bucket)) == payloads


def test_what_is_left_of_a_damaged_batch_is_another_object(tmp_path: Path) -> None:
    """With another uuid, so that nothing is encrypted twice in the same way. Encryption finds the damage."""
    env = encrypting(file_environment(tmp_path), KEY)
    payloads = [b'{"messageId":"m%d","data":"%s"}' % (number, secrets.token_hex(600_000).encode()) for number in range(3)]
    with Backup.from_env(env, archive=False) as backup:
        for payload in payloads:  # one member each
            backup.record(payload, source_id="web")
    catalog, (blobs,) = tmp_path / "spool/catalog.db", (tmp_path / "spool/blobs").glob("*.db")
    with closing(sqlite3.connect(catalog)) as connection:
        ((before,),) = connection.execute("SELECT uuid FROM batches").fetchall()
    with closing(sqlite3.connect(blobs)) as connection, connection:
        (_, second, _) = [job for (job,) in connection.execute("SELECT job FROM chunks ORDER BY job")]
        connection.execute("UPDATE chunks SET data=zeroblob(length(data)) WHERE job=?", (second,))
    run("archive", "--once", env=env)
    ((key, data),) = objects(tmp_path).items()
    after = str(uuid.UUID(bytes=data[24:40]))
    assert after in key
    assert after != before
    assert replay(env) == [payloads[0], payloads[2]]


class TestReplayOfWhatWasChanged:
    @pytest.fixture
    def env(self, tmp_path: Path) -> dict[str, str]:
        """Three objects; the first ones have three chunks."""
        env = encrypting(file_environment(tmp_path), KEY)
        for source in ("first", "second"):
            record(env, [b'{"messageId":"%s","data":"%s"}' % (source.encode(), secrets.token_hex(150_000).encode())], source)
        record(env, [b'{"messageId":"third"}'], "third")
        return env

    def path(self, tmp_path: Path, source: str) -> Path:
        (key,) = [key for key in objects(tmp_path) if key.startswith(f"{source}/")]
        return tmp_path / "bucket" / key

    @pytest.mark.parametrize("options", [[], ["--list"]], ids=["catalog", "list"])
    @pytest.mark.parametrize("at", [0, 30, 45, -1, -20], ids=["magic", "batch", "chunk", "tag", "last chunk"])
    def test_it_is_named_and_nothing_of_it_given(self, env: dict[str, str], tmp_path: Path, options: list[str], at: int) -> None:
        path = self.path(tmp_path, "first")
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
        code, out, err = run("replay", *options, env=env)
        assert code == 1
        assert [name for name in ("first", "second", "third") if f'"messageId":"{name}"' in out] == ["second", "third"]
        assert path.name in err
        assert "[DamagedObject]" in err

    @pytest.mark.parametrize("options", [[], ["--list"]], ids=["catalog", "list"])
    def test_another_object_in_its_place_is_noticed(self, env: dict[str, str], tmp_path: Path, options: list[str]) -> None:
        """Both are valid, complete objects of ours."""
        self.path(tmp_path, "first").write_bytes(self.path(tmp_path, "second").read_bytes())
        code, out, err = run("replay", *options, env=env)
        assert code == 1
        assert out.count('"messageId":"second","data"') == 1
        assert "[DamagedObject]" in err
        assert "has the content of another object" in err

    @pytest.mark.parametrize("options", [[], ["--list"]], ids=["catalog", "list"])
    def test_an_object_that_is_not_encrypted_in_its_place_is_noticed(
        self, env: dict[str, str], tmp_path: Path, options: list[str]
    ) -> None:
        self.path(tmp_path, "third").write_bytes(gzip.compress(b'{"payload":{"forged":true},"createdAt":"2026-01-01T00:00:00Z"}\n'))
        code, out, _ = run("replay", *options, env=env)
        assert code == 1
        assert "forged" not in out


class TestDecrypt:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "object.json.gz.enc"
        file.write_bytes(documented(content_of(3 * MiB), KEY, BATCH))
        return file

    def decrypt(self, file: Path, *keys: bytes, shell: str = '"$0" "$1"', **variables: str) -> tuple[int, bytes, str]:
        env = {"PATH": os.environ["PATH"], "JOBS_BACKUP_ENCRYPTION_KEY": ",".join(map(text_of, keys)), **variables}
        command = ["bash", "-c", shell, DECRYPT, str(file)]
        result = subprocess.run(command, env=env, capture_output=True, check=False)
        err = result.stderr.decode()
        assert "Traceback" not in err
        assert "Exception" not in err
        without_key(err, *map(text_of, (KEY, OTHER)))
        return result.returncode, result.stdout, err

    def test_what_was_encrypted_comes_out(self, file: Path, tmp_path: Path) -> None:
        assert self.decrypt(file, OTHER, KEY) == (0, content_of(3 * MiB), "")
        (tmp_path / "key").write_text(text_of(KEY))
        assert self.decrypt(file, JOBS_BACKUP_ENCRYPTION_KEY_FILE=str(tmp_path / "key")) == (0, content_of(3 * MiB), "")

    def test_with_another_key(self, file: Path) -> None:
        code, out, err = self.decrypt(file, OTHER)
        assert (code, out) == (2, b"")
        assert f"needs the encryption key {key_id(KEY)}, which is missing" in err

    def test_without_a_key(self, file: Path) -> None:
        code, out, err = self.decrypt(file)
        assert (code, out) == (2, b"")
        assert "neither is set" in err

    @pytest.mark.parametrize(
        "damage",
        [lambda data: data[:-1] + b"x", lambda data: data[: 20 * SEALED_BYTES + HEADER_BYTES], lambda data: data + b"x"],
        ids=["the last byte", "cut between chunks", "a byte more"],
    )
    def test_of_one_that_was_changed_nothing_is_given(self, file: Path, damage: Callable[[bytes], bytes]) -> None:
        file.write_bytes(damage(file.read_bytes()))
        code, out, err = self.decrypt(file, KEY)
        assert (code, out) == (1, b"")
        assert err.startswith(f"jobs-backup-decrypt: {file}")
        assert len(err.splitlines()) == 1

    def test_what_is_no_encrypted_object(self, file: Path) -> None:
        file.write_bytes(gzip.compress(content_of(100_000)))
        code, out, err = self.decrypt(file, KEY)
        assert (code, out) == (1, b"")
        assert "does not begin like an encrypted object" in err

    def test_a_reader_that_has_enough(self, file: Path) -> None:
        _, out, err = self.decrypt(file, KEY, shell='"$0" "$1" | head -c 10')
        assert (out, err) == (content_of(10), "")

    def test_a_closed_output(self, file: Path) -> None:
        assert self.decrypt(file, KEY, shell='"$0" "$1" >&-') == (2, b"", "jobs-backup-decrypt: standard output is closed\n")

    def test_a_full_disk(self, file: Path) -> None:
        assert self.decrypt(file, KEY, shell='"$0" "$1" >/dev/full') == (
            1,
            b"",
            "jobs-backup-decrypt: standard output: No space left on device\n",
        )

    def test_no_such_file(self, tmp_path: Path) -> None:
        assert self.decrypt(tmp_path / "none", KEY)[0] == 2


MEASURED = """
import io, resource, sys, time
from jobs_backup.checksum import crc32c
from jobs_backup.model import Body
from jobs_backup_encryption.format import DecryptedBody, EncryptedBody
from jobs_backup_encryption.keys import Keys, key_id

SIZE, KEY = int(sys.argv[1]), bytes(range(32))
BLOCK = memoryview(bytes(range(256)) * 4097 + b"x")  # of no size that chunks have

class Reader(io.RawIOBase):
    at = 0
    def readable(self): return True
    def seekable(self): return True
    def tell(self): return self.at
    def readinto(self, buffer):
        begin = self.at % len(BLOCK)
        block = BLOCK[begin : begin + min(len(buffer), SIZE - self.at)]
        buffer[: len(block)] = block
        self.at += len(block)
        return len(block)

class Content(Body):
    size = SIZE
    def open(self): return io.BufferedReader(Reader(), 1 << 17)

began = time.perf_counter()
encrypted = EncryptedBody(Content(), KEY, key_id(KEY), "01234567-89ab-4cde-8f01-23456789abcd")
decrypted = DecryptedBody(encrypted, Keys([KEY]), "object")
assert encrypted.size == 40 + SIZE + 16 * max(1, -(-SIZE // 65536)) and decrypted.size == SIZE
assert decrypted.crc32c() == Content().crc32c()
print(f"{SIZE / (time.perf_counter() - began) / 1e9:.2f} GB/s", file=sys.stderr)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_object(tmp_path: Path) -> None:
    peaks = {}
    for size in (50_000_000, 5_000_000_000):
        peaks[size] = peak_memory([sys.executable, "-c", MEASURED, str(size)], {"PATH": os.environ["PATH"]})
    print(f"peak memory, KiB: {peaks}")
    assert max(peaks.values()) < 80 * 1024
    assert peaks[5_000_000_000] < peaks[50_000_000] + 4 * 1024


SQUEEZE = """
import os, zlib
from jobs_backup.errors import IntegrityError
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import BytesBody

def content(body):
    with body.open() as reader:
        return reader.read()

class Squeeze:
    # A wrapper that compresses; LEVEL stands for the version of its library, which another version need not agree with.
    API_VERSION = 1
    format = "sq"
    parameter = ""
    @classmethod
    def from_settings(cls, environment):
        return cls()
    @hookimpl(wrapper=True)
    def open_body(self, batch):
        body = yield
        return BytesBody(zlib.compress(content(body), int(os.environ.get("LEVEL", "1"))))
    @hookimpl(wrapper=True)
    def read(self, key):
        body = yield
        try:
            return BytesBody(zlib.decompress(content(body)))
        except zlib.error as error:
            raise IntegrityError(f"{key}: {error}") from None
"""


class TestBehindAnotherWrapper:
    """Its input is encrypted with the batch's nonces: they may never be used for other bytes."""

    @pytest.fixture(autouse=True)
    def squeeze(self, install: Install) -> None:
        install(SQUEEZE, name="SQUEEZE", target="Squeeze", group="jobs_backup.wrappers", distribution="squeeze")

    def test_another_version_of_it_is_not_believed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        env = encrypting(file_environment(tmp_path), KEY) | FAST_RETRY | {"JOBS_BACKUP_WRAPPERS": "squeeze,encryption"}
        payloads = bulky(3)
        (tmp_path / "bucket").rename(tmp_path / "away")
        with Backup.from_env(env) as backup:
            backup.record_many(payloads, source_id="web")
            with pytest.raises(StorePaused, match="does not exist"):
                backup.flush(120)
        (tmp_path / "away").rename(tmp_path / "bucket")
        monkeypatch.setenv("LEVEL", "9")
        with Backup.from_env(env) as backup:
            assert archiver_of(backup).drain(120)
            (waiting,) = session_of(backup).spool.waiting()
            assert "would differ from the first attempt" in waiting.error
        assert objects(tmp_path) == {}
        monkeypatch.setenv("LEVEL", "1")
        with Backup.from_env(env) as backup:
            assert archiver_of(backup).drain(120)
        assert replay(env | {"PYTHONPATH": os.environ["PYTHONPATH"]}) == payloads

    def test_an_upload_is_not_continued_with_other_bytes(
        self, store: Store, bucket: str, env: dict[str, str], tmp_path: Path
    ) -> None:
        payloads = bulky(12)
        file = tmp_path / "in"
        file.write_bytes(b"".join(one + b"\n" for one in payloads))
        with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
            env |= IN_PARTS | {"AWS_ENDPOINT_URL_S3": proxy.url, "JOBS_BACKUP_WRAPPERS": "squeeze,encryption"}
            env |= {"PYTHONPATH": os.environ["PYTHONPATH"]}
            with start("run", file, "--source-id", "web", env=env) as process:

                def kill(_: Any) -> Answer:
                    process.kill()
                    return Answer(503)

                proxy.fail(kill, target="partNumber=2")
                process.communicate()
            assert process.returncode == -9
            proxy.clear()
            code, _, err = run("run", file, "--source-id", "web", env=env | {"LEVEL": "9"})
            assert (code, "would differ from the first attempt" in err) == (1, True), err
            assert run("run", file, "--source-id", "web", env=env)[0] == 0
            assert operations(proxy.requests)["CreateMultipartUpload"] == 0
            assert replay(may_read(env, store, bucket)) == payloads


def test_a_name_that_is_almost_that_of_the_key_is_an_error(tmp_path: Path) -> None:
    """With only a warning, events would be unencrypted in the bucket."""
    key = text_of(OTHER)
    for name in ("JOBS_BACKUP_ENCRYPTION_KEYS", "JOBS_BACKUP_ENCRYPT_KEY", "JOBS_BACKUP_ENCRYPTION_KEYFILE"):
        code, _, err = run("run", "--source-id", "web", env=file_environment(tmp_path) | {name: key}, stdin="{}\n")
        assert (code, f"{name} is set, but JOBS_BACKUP_WRAPPERS does not name encryption" in err) == (2, True), err
        without_key(err, key)
    (tmp_path / "docker.env").write_text(f"JOBS_BACKUP_ENCRYPTION_KEY:{key}\n")
    code, _, err = run("archive", "--once", "--env-file", tmp_path / "docker.env", env=file_environment(tmp_path))
    assert code == 2
    assert "JOBS_BACKUP_ENCRYPTION_KEY... is set" in err
    without_key(err, key.rstrip("="))
    # Kubernetes sets these for a Service named jobs-backup-encryption.
    links = {"JOBS_BACKUP_ENCRYPTION_SERVICE_HOST": "10.0.0.1", "JOBS_BACKUP_ENCRYPTION_PORT_80_TCP": "tcp://10.0.0.1:80"}
    assert run("archive", "--once", env=file_environment(tmp_path) | links)[0] == 0


def test_nothing_of_what_somebody_else_has_put_there(tmp_path: Path) -> None:
    env = encrypting(file_environment(tmp_path), KEY)
    record(env, [b'{"n":1}'])
    (key,) = objects(tmp_path)
    forged = tmp_path / "bucket" / key.removesuffix(".enc")
    forged.write_bytes(gzip.compress(b'{"payload":{"n":2},"createdAt":"2026-11-26T00:00:00Z"}\n'))
    assert replay(env, "--list") == [b'{"n":2}', b'{"n":1}']
    code, out, err = run("replay", "--list", "--payload-only", "--wrapped-only", env=env)
    assert (code, out) == (1, '{"n":1}\n')
    assert f"{forged.relative_to(tmp_path / 'bucket')} has no .enc" in err
    code, _, err = run("replay", "--list", "--wrapped-only", env=file_environment(tmp_path))
    assert (code, "needs a wrapper in JOBS_BACKUP_WRAPPERS" in err) == (2, True)
