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
    """An archive on a server of this machine."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.tar.gz").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *said):
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


def left(path):
    return [one.name for one in path.iterdir() if one.suffix != ".lock"]


def test_an_archive_is_downloaded_once_and_others_may_read_it(here, published):
    path = published.find()
    assert (path, path.read_bytes()) == (here / "a.tar.gz", CONTENT)
    assert path.stat().st_mode & 0o777 == 0o644
    assert replace(published, address="http://127.0.0.1:9/").find() == path
    assert left(here) == ["a.tar.gz"]


def test_the_data_folder_is_made_where_there_is_none(here, published):
    here.rmdir()
    assert published.find().read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(here, published):
    with pytest.raises(UsageError, match=r"its checksum is wrong") as caught:
        replace(published, md5="0" * 32).find()
    assert "\n" not in str(caught.value)
    assert left(here) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.tar.gz", "http://attnprobe.invalid/a.tar.gz"])
def test_where_no_download_works_one_line_says_what_to_put_where(here, published, address, capfd):
    with pytest.raises(UsageError) as caught:
        replace(published, address=address).find()
    assert str(caught.value) == (
        f"{here / 'a.tar.gz'}: no such file, and {address} could not be downloaded (ConnectionError); "
        "put it there yourself, or --data DIR or ATTNPROBE_DATA names another data folder"
    )
    assert capfd.readouterr().err == ""
    assert left(here) == []


def test_an_address_that_is_gone_is_told(here, published):
    with pytest.raises(UsageError, match=r"could not be downloaded \(HTTPError\)"):
        replace(published, address=published.address + "x").find()


def test_a_file_that_is_there_is_used_whatever_its_checksum(here, published):
    (here / "a.tar.gz").write_bytes(b"mine")
    assert published.find().read_bytes() == b"mine"
    assert sha256(published.find()) == hashlib.sha256(b"mine").hexdigest()


def sizes(name):
    return range(1, 9) if name.startswith("data/") else None


def test_members_that_are_wanted_are_read_and_others_passed_over(tmp_path):
    path = pack(tmp_path / "a.tar.gz", {"./data/b": b"two", "other": b"x" * 99, "data/a": b"one"})
    assert list(members(path, sizes)) == [("data/b", b"two"), ("data/a", b"one")]


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"../x": b"1"}, "member '../x' leads out of the archive"),
        ({"data/../../x": b"1"}, "member 'data/../../x' leads out of the archive"),
        ({"/etc/x": b"1"}, "member '/etc/x' leads out of the archive"),
        ({"data/a": link("data/a", tarfile.SYMTYPE)}, "member 'data/a' is no regular file"),
        ({"data/a": link("data/a", tarfile.LNKTYPE)}, "member 'data/a' is no regular file"),
        ({"data/a": link("data/a", tarfile.CHRTYPE)}, "member 'data/a' is no regular file"),
        ({"data/a": link("data/a", tarfile.DIRTYPE)}, "member 'data/a' is no regular file"),
        ({"data/a": b""}, "member 'data/a' has 0 bytes: must have 1 ... 8"),
        ({"data/a": b"123456789"}, "member 'data/a' has 9 bytes: must have 1 ... 8"),
        ({"data/a": b"1", "./data/a": b"2"}, "member 'data/a' comes twice"),
    ],
)
def test_hostile_members_are_refused_by_name(held, said, tmp_path):
    path = pack(tmp_path / "a.tar.gz", held)
    with pytest.raises(UsageError) as caught:
        list(members(path, sizes))
    assert str(caught.value).startswith(f"{path}: {said}")
    assert left(tmp_path) == ["a.tar.gz"]


def test_a_member_is_not_read_before_its_size_is_checked(tmp_path):
    info = tarfile.TarInfo("data/a")
    info.size = 2**40
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf()))
    with pytest.raises(UsageError, match=r"has 1099511627776 bytes: must have 1 \.\.\. 8"):
        list(members(path, sizes))


def test_links_that_nobody_wants_are_passed_over(tmp_path):
    path = pack(tmp_path / "a.tar.gz", {"other": link("other", tarfile.SYMTYPE), "data/a": b"1"})
    assert list(members(path, sizes)) == [("data/a", b"1")]


@pytest.mark.parametrize("damage", ["cut", "cut at a member", "sum", "no gzip", "no tar", "empty"])
def test_damaged_archives_are_refused_in_one_line(damage, tmp_path):
    path = pack(tmp_path / "a.tar.gz", {"data/a": os.urandom(8), "data/b": os.urandom(8)})
    whole = path.read_bytes()
    tar = gzip.decompress(whole)
    inside = io.BytesIO()
    with gzip.GzipFile(fileobj=inside, mode="wb") as stream:
        stream.write(tar[:1024])
    damaged = {
        "cut": whole[: len(whole) // 2],
        "cut at a member": inside.getvalue()[:-8],
        "sum": whole[:-8] + bytes(4) + whole[-4:],
        "no gzip": tar,
        "no tar": gzip.compress(b"something else" * 99),
        "empty": b"",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(
        UsageError, match=r"a\.tar\.gz: not a whole tar\.gz \(.*\); remove it to download it again"
    ) as got:
        list(members(path, sizes))
    assert "\n" not in str(got.value)


def test_whatever_is_damaged_nothing_but_a_usage_error_comes(tmp_path):
    whole = gzip.decompress(pack(tmp_path / "a.tar.gz", {"data/a": b"1", "data/" + "long" * 60: b"2"}).read_bytes())
    path = tmp_path / "b.tar.gz"
    for place in range(0, 2600, 7):
        path.write_bytes(gzip.compress(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                assert set(dict(members(path, sizes)).values()) <= {b"1", b"2", b"k", b"h"}
            except UsageError as error:
                assert "\n" not in str(error)


def test_what_is_missing_is_named(tmp_path):
    complete(tmp_path, ["a", "b"], ["a", "b"])
    with pytest.raises(UsageError, match="lacks b, c"):
        complete(tmp_path, ["a"], ["a", "b", "c"])


def test_an_archive_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        sha256(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        list(members(tmp_path, sizes))
