import functools
import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
import warnings
from dataclasses import replace

import pytest
from archive_files import pack

from attnprobe.errors import UsageError
from attnprobe.tasks import folder
from attnprobe.tasks.archives import Archive, complete, members, sha256

CONTENT = b"what was published"


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def published(tmp_path):
    """An archive on a local HTTP server."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.tar.gz").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "site"))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Archive("a.tar.gz", f"http://127.0.0.1:{server.server_port}/a.tar.gz", hashlib.md5(CONTENT).hexdigest())
    server.shutdown()
    thread.join()
    server.server_close()


def files_in(path):
    return [file.name for file in path.iterdir() if file.suffix != ".lock"]


def test_an_archive_is_downloaded_once_and_readable_by_other_users(here, published):
    path = published.find()
    assert (path, path.read_bytes()) == (here / "a.tar.gz", CONTENT)
    assert path.stat().st_mode & 0o777 == 0o644
    assert replace(published, address="http://127.0.0.1:9/").find() == path
    assert files_in(here) == ["a.tar.gz"]


def test_a_missing_data_folder_is_created(here, published):
    here.rmdir()
    assert published.find().read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file(here, published):
    with pytest.raises(UsageError, match=r"wrong checksum") as caught:
        replace(published, md5="0" * 32).find()
    assert "\n" not in str(caught.value)
    assert files_in(here) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.tar.gz", "http://attnprobe.invalid/a.tar.gz"])
def test_a_failed_download_reports_where_to_put_the_file_in_one_line(here, published, address, capfd):
    with pytest.raises(UsageError) as caught:
        replace(published, address=address).find()
    assert str(caught.value) == (
        f"{here / 'a.tar.gz'}: no such file, and {address} could not be downloaded (ConnectionError); "
        "put the file there, or --data DIR or ATTNPROBE_DATA sets another data folder"
    )
    assert capfd.readouterr().err == ""
    assert files_in(here) == []


def test_a_missing_address_is_reported(here, published):
    with pytest.raises(UsageError, match=r"could not be downloaded \(HTTPError\)"):
        replace(published, address=published.address + "x").find()


def test_an_existing_file_is_used_whatever_its_checksum(here, published):
    (here / "a.tar.gz").write_bytes(b"mine")
    assert published.find().read_bytes() == b"mine"
    assert sha256(published.find()) == hashlib.sha256(b"mine").hexdigest()


def sizes(name):
    return range(1, 9) if name.startswith("data/") else None


def test_requested_members_are_read_and_others_skipped(tmp_path):
    path = pack(tmp_path / "a.tar.gz", {"./data/b": b"two", "other": b"x" * 99, "data/a": b"one"})
    assert list(members(path, sizes)) == [("data/b", b"two"), ("data/a", b"one")]


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"../x": b"1"}, "member '../x' points outside the archive"),
        ({"data/../../x": b"1"}, "member 'data/../../x' points outside the archive"),
        ({"/etc/x": b"1"}, "member '/etc/x' points outside the archive"),
        ({"data/a": link("data/a", tarfile.SYMTYPE)}, "member 'data/a' is not a regular file"),
        ({"data/a": link("data/a", tarfile.LNKTYPE)}, "member 'data/a' is not a regular file"),
        ({"data/a": link("data/a", tarfile.CHRTYPE)}, "member 'data/a' is not a regular file"),
        ({"data/a": link("data/a", tarfile.DIRTYPE)}, "member 'data/a' is not a regular file"),
        ({"data/a": b""}, "member 'data/a' has 0 bytes: must have 1 ... 8"),
        ({"data/a": b"123456789"}, "member 'data/a' has 9 bytes: must have 1 ... 8"),
        ({"data/a": b"1", "./data/a": b"2"}, "member 'data/a' occurs twice"),
    ],
)
def test_hostile_members_are_refused_by_name(contents, message, tmp_path):
    path = pack(tmp_path / "a.tar.gz", contents)
    with pytest.raises(UsageError) as caught:
        list(members(path, sizes))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert files_in(tmp_path) == ["a.tar.gz"]


def test_a_member_is_not_read_before_its_size_is_checked(tmp_path):
    info = tarfile.TarInfo("data/a")
    info.size = 2**40
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf()))
    with pytest.raises(UsageError, match=r"has 1099511627776 bytes: must have 1 \.\.\. 8"):
        list(members(path, sizes))


def test_links_that_are_not_requested_are_skipped(tmp_path):
    path = pack(tmp_path / "a.tar.gz", {"other": link("other", tarfile.SYMTYPE), "data/a": b"1"})
    assert list(members(path, sizes)) == [("data/a", b"1")]


@pytest.mark.parametrize("damage", ["truncated", "truncated at a member", "checksum", "not gzip", "not tar", "empty"])
def test_damaged_archives_are_refused_in_one_line(damage, tmp_path):
    path = pack(tmp_path / "a.tar.gz", {"data/a": os.urandom(8), "data/b": os.urandom(8)})
    content = path.read_bytes()
    tar = gzip.decompress(content)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as stream:
        stream.write(tar[:1024])
    damaged = {
        "truncated": content[: len(content) // 2],
        "truncated at a member": buffer.getvalue()[:-8],
        "checksum": content[:-8] + bytes(4) + content[-4:],
        "not gzip": tar,
        "not tar": gzip.compress(b"something else" * 99),
        "empty": b"",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(
        UsageError, match=r"a\.tar\.gz: not a complete tar\.gz \(.*\); remove it to download it again"
    ) as caught:
        list(members(path, sizes))
    assert "\n" not in str(caught.value)


def test_any_damaged_byte_raises_only_usage_errors(tmp_path):
    tar = gzip.decompress(pack(tmp_path / "a.tar.gz", {"data/a": b"1", "data/" + "long" * 60: b"2"}).read_bytes())
    path = tmp_path / "b.tar.gz"
    for i in range(0, 2600, 7):
        path.write_bytes(gzip.compress(tar[:i] + bytes([tar[i] ^ 0x5A]) + tar[i + 1 :]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                assert set(dict(members(path, sizes)).values()) <= {b"1", b"2", b"k", b"h"}
            except UsageError as error:
                assert "\n" not in str(error)


def test_missing_members_are_named(tmp_path):
    complete(tmp_path, ["a", "b"], ["a", "b"])
    with pytest.raises(UsageError, match="lacks b, c"):
        complete(tmp_path, ["a"], ["a", "b", "c"])


def test_an_unreadable_archive_is_reported(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        sha256(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        list(members(tmp_path, sizes))
